"""Write a small Stable Diffusion with the real CLIP vocabulary: `python examples/make_tiny_sd.py OUT`.

Real diffusers and transformers classes, random weights, the same bytes each time. It shows the machinery, it
paints nothing. An OUT that is there already is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.files import whole_folder
from trainer.models.clip_vocab import vocabulary_file
from trainer.tiny import make_sd


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python examples/make_tiny_sd.py OUT", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    if (out / "model_index.json").is_file():
        print(out)
        return 0
    vocabulary = vocabulary_file()
    if vocabulary is None:
        print("error: the CLIP vocabulary is missing. pip install --no-deps open-clip-torch", file=sys.stderr)
        return 1
    with whole_folder(out) as made:
        make_sd(made, vocabulary=vocabulary)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
