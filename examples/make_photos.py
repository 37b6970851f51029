"""Write a dataset of real photographs: `python examples/make_photos.py OUT`.

The pictures that scikit-image ships, as they are (sizes, modes and formats differ), with metadata.csv.
"""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.files import whole_folder

CAPTIONS = {
    "astronaut.png": "a photo of an astronaut in an orange suit, smiling",
    "brick.png": "a photo of a brick wall, texture",
    "camera.png": "a black and white photo of a man with a camera on a tripod",
    "chelsea.png": "a photo of a tabby cat, close up",
    "clock_motion.png": "a blurred photo of a clock, grey",
    "coffee.png": "a photo of a cup of coffee on a wooden table",
    "coins.png": "a photo of old coins in rows",
    "grass.png": "a photo of grass, texture",
    "gravel.png": "a photo of gravel, texture",
    "hubble_deep_field.jpg": "a photo of many galaxies, deep field",
    "ihc.png": "a microscope photo of stained tissue",
    "logo.png": "a round logo of a lizard, green and orange",
    "moon.png": "a photo of the surface of the moon",
    "motorcycle_left.png": "a photo of a motorcycle in a garage",
    "page.png": "a photo of a printed page",
    "retina.jpg": "a medical photo of a retina",
    "rocket.jpg": "a photo of a rocket on its launch pad at night",
    "text.png": "a photo of a handwritten formula",
}


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python examples/make_photos.py OUT", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    if (out / "metadata.csv").is_file():
        print(out)
        return 0
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        print("error: the photographs come with scikit-image. pip install scikit-image", file=sys.stderr)
        return 1
    source = Path(spec.origin).parent / "data"
    with whole_folder(out) as made:
        for name in CAPTIONS:
            shutil.copyfile(source / name, made / name)
        with (made / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "text"), *CAPTIONS.items()])
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
