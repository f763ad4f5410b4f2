"""A small data set without any defect, which a test spoils before it is written and examined."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdlab.datasets.base import DatasetFiles, Split
from kdlab.inspection import across
from kdlab.inspection.examine import Inspection, examine

SIZE = (200, 150)


@pytest.fixture(autouse=True)
def _few_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No set is too small, so that one of four images has no defect."""
    monkeypatch.setattr(across, "FEW_IMAGES", 0)
    monkeypatch.setattr(across, "FEW_OBJECTS", 0)


BOXES = ([10.5, 10.5, 60.5, 50.5], [100.5, 60.5, 50.5, 60.5])


def picture(number: int = 0, mode: str = "RGB", form: str = "JPEG", turned: int = 1) -> bytes:
    """An image file of `SIZE`, its content another for each number, `turned` its EXIF's orientation."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.linear_gradient("L").rotate(number).resize(SIZE).convert(mode).save(file, form, exif=exif)
    return file.getvalue()


class DataSet:
    """Two splits of two images with two objects of two classes each; COCO labels in memory.

    Args:
        root: folder to write to.

    Attributes:
        labels: COCO labels by split; `write` puts them to annotations/SPLIT.json.
        files: contents of all other files by their path below the root.
        folders: what the names of a split's images are relative to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.labels: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.folders = {"train": "images/train", "val": "images/val"}
        for split, names, first in (("train", "ab", 1), ("val", "cd", 11)):
            self.labels[split] = {
                "info": {"year": 2026},
                "licenses": [{"id": 1}],
                "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
                "images": [],
                "annotations": [],
            }
            for number, name in enumerate(names, start=first):
                self.add_image(split, number, f"{name}.jpg")

    def add_image(self, split: str, number: int, name: str) -> None:
        """Another image with an object of each class."""
        width, height = SIZE
        entry = {"id": number, "file_name": name, "width": width, "height": height, "license": 1}
        self.labels[split]["images"].append(entry)
        self.files[f"images/{split}/{name}"] = picture(number)
        for category, box in enumerate(BOXES, start=1):
            self.add_box(split, number, [*box], category)

    def add_box(self, split: str, image: int, box: list[Any], category: int = 1) -> None:
        """Another object of an image, given by its id."""
        objects = self.labels[split]["annotations"]
        number = max((entry["id"] for entry in objects), default=1000 * len(self.labels)) + 1
        entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        objects.append(entry | {"segmentation": [[1.5, 1.5, 2.5, 2.5, 1.5, 2.5]]})

    def rename(self, split: str, index: int, name: str, content: bytes | None = None) -> None:
        """Call the split's image another, and maybe replace its file."""
        image = self.labels[split]["images"][index]
        old = self.files.pop(f"images/{split}/{image['file_name']}")
        image["file_name"] = name
        self.files[f"images/{split}/{name}"] = old if content is None else content

    def add_split(self, split: str, labels: Any = None) -> None:
        """A labelled split beside train and val; without labels a copy of train's with ids of its own."""
        copied: dict[str, Any] = json.loads(json.dumps(self.labels["train"]))
        for entry in copied["images"]:
            entry.update(id=entry["id"] + 50, file_name=f"{split}-{entry['file_name']}")
            self.files[f"images/{split}/{entry['file_name']}"] = picture(entry["id"])
        for entry in copied["annotations"]:
            entry.update(id=entry["id"] + 5000, image_id=entry["image_id"] + 50)
        self.labels[split] = copied if labels is None else labels
        self.files.setdefault(f"images/{split}/.keep", b"")

    def write(self) -> DatasetFiles:
        """Put all of it on disk."""
        contents = {
            f"annotations/{split}.json": json.dumps(found).encode() for split, found in self.labels.items()
        }
        for name, content in {**contents, **self.files}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        train, val = (
            Split(self.root / folder, self.root / "annotations" / f"{split}.json")
            for split, folder in self.folders.items()
        )
        return DatasetFiles("coco", ("cat", "dog"), train, val, "0" * 16)

    def add_xml(self) -> None:
        """An XML file without a defect for each image, as if the labels had been converted."""
        for split, labels in self.labels.items():
            for image in labels["images"]:
                name = image["file_name"]
                image["xml"] = f"xml/{Path(name).stem}.xml"
                image["file_name"] = f"images/{name}"
                self.files[f"images/{name}"] = self.files.pop(f"images/{split}/{name}")
                self.files[image["xml"]] = xml(name)
        self.folders = {"train": ".", "val": "."}

    def examine(self, **options: Any) -> Inspection:
        """Write and inspect it."""
        return examine(self.write(), **options)


def xml(
    filename: str,
    *,
    folder: str = "images",
    path: str = "",
    size: tuple[int, int] = SIZE,
    box: tuple[int, ...] = (1, 1, 50, 50),
    difficult: int = 1,
    truncated: int = 0,
) -> bytes:
    """A VOC file with one object."""
    corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><folder>{folder}</folder><filename>{filename}</filename><path>{path}</path>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size><object><name>cat</name>"
        f"<truncated>{truncated}</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object></annotation>"
    ).encode()


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """A set without any defect."""
    return DataSet(tmp_path / "set")


@pytest.fixture
def voc_data(data: DataSet) -> DataSet:
    """The same as if it had been converted from XML."""
    data.add_xml()
    return data


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    """`make_picture(number, mode, form)`: an image file."""
    return picture


@pytest.fixture(scope="session")
def make_xml() -> Callable[..., bytes]:
    """`make_xml(filename, size=...)`: a VOC file."""
    return xml


@pytest.fixture(scope="session")
def told() -> Callable[[Inspection, str], list[str]]:
    """`told(found, kind)`: "SPLIT: PLACE" of every place of a kind; empty where there is none."""

    def told(found: Inspection, kind: str) -> list[str]:
        places = [place for defect in found.defects if defect.kind == kind for place in defect.places]
        return [f"{place.split}: {place}" for place in places]

    return told
