"""What a step costs at COCO's size: RetinaNet with ResNet-101 to ResNet-50, random weights, made-up images.

`python -m tests.benchmarks.coco_size` prints the table of `kdlab bench` for each precision and downloads
nothing. `--only fp32 bf16` takes some precisions, `--rounds 5` fewer steps, `--small` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

CLASSES, OBJECTS = 80, 7
PRECISIONS = {
    "fp32": (),
    "fp16": ("schedule.precision=fp16",),
    "bf16": ("schedule.precision=bf16",),
    "bf16, channels last": ("schedule.precision=bf16", "schedule.channels_last=true"),
    "fp32, teacher in bf16": ("teacher.precision=bf16",),
    "fp32, teacher in bf16 and compiled": ("teacher.precision=bf16", "teacher.compile=true"),
    "bf16, teacher compiled": ("schedule.precision=bf16", "teacher.compile=true"),
}
RECIPE = """\
# RetinaNet {teacher} to {student} on made-up images
dataset: {{name: coco, root: {root}, train_images: images, val_images: images, train_labels: labels.json,
          val_labels: labels.json, scale: [{width}, {height}]}}
teacher: {{detector: retinanet, backbone: {teacher}, schedule: {{epochs: 1}}}}
student: {{detector: retinanet, backbone: {student}}}
schedule: {{preset: 1x, batch_size: {batch}}}
arms:
  baseline: {{}}
  rm+pfi: {{rm: {{}}, pfi: {{}}}}
  fgd: {{fgd: {{}}}}
  gid: {{gid: {{}}}}
seeds: [0]
"""


def make_images(folder: Path, count: int, width: int, height: int) -> None:
    """Noise, with boxes of all sizes."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, boxes = [], []
    for number in range(count):
        # as COCO has them: wide and tall
        size = (width, height) if number % 4 else (height, width)
        pixels = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]})
        for _ in range(OBJECTS):
            w, h = (max(8, int(side * random.uniform(0.02, 0.6))) for side in size)
            x, y = (int(random.uniform(0, side - own)) for side, own in zip(size, (w, h), strict=True))
            label = int(random.integers(CLASSES)) + 1
            boxes.append(
                {"id": len(boxes), "image_id": number, "category_id": label, "bbox": [x, y, w, h],
                 "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    names = [{"id": number + 1, "name": f"class {number + 1}"} for number in range(CLASSES)]
    told = {"images": images, "annotations": boxes, "categories": names}
    (folder / "labels.json").write_text(json.dumps(told))


def main() -> None:
    """Make the images and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny models and images")
    parser.add_argument(
        "--only", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="PRECISION"
    )
    parser.add_argument("--rounds", help="steps of each kind that are measured")
    asked = parser.parse_args()
    small = asked.small
    with TemporaryDirectory() as name:
        folder = Path(name)
        size = {"width": 160, "height": 96} if small else {"width": 1333, "height": 800}
        make_images(folder, 8 if small else 64, **size)
        models = {"teacher": "resnet18", "student": "resnet18"} if small else {
            "teacher": "resnet101", "student": "resnet50",
        }  # fmt: skip
        recipe = RECIPE.format(root=folder, batch=2 if small else 16, **size, **models)
        (folder / "coco_size.yaml").write_text(recipe)
        for title in asked.only:
            if small and "fp16" in title:
                continue
            overrides = PRECISIONS[title]
            words = [word for override in overrides for word in ("--set", override)]
            rounds = ["--rounds", asked.rounds or ("2" if small else "20")]
            command = [sys.executable, "-m", "kdlab", "bench", "coco_size.yaml", "-y", "-q", *rounds, *words]
            print(f"\n{title}", flush=True)
            subprocess.run(command, cwd=folder, check=False)


if __name__ == "__main__":
    main()
