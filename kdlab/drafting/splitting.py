"""A split of labelled images in two: equal shares of each class, and no near-duplicates across."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdlab.datasets.base import EXPORTED
from kdlab.drafting.foreign import Labels

SHARE = 0.2
FEWEST, MOST = 20, 2000
"""Validation images, where there are enough to choose from."""
ALIKE, FRAMES = 3, 12
"""Bits of 64 in which the hashes of two near-duplicates differ at most, and of two frames that follow."""
_MOST_COMPARED = 20_000
_NUMBERED = re.compile(r"(.*?)(\d+)\D*")


def cut(labels: Labels, root: Path, seed: int = 0) -> tuple[Labels, Labels, str]:
    """The labels of the images to learn from and of those to measure on, and how they were chosen.

    Where the images have roles these decide, test in the place of a missing val. Else a fifth is measured on,
    20 to 2,000 images where there are enough. Near-duplicates, frames that follow one another and copies that
    an export made of one photograph stay together.

    Args:
        labels: of all images.
        root: to which their file names are relative.
        seed: of the choice.
    """
    roles = Counter(image.get("role", "") for image in labels["images"])
    measured = "val" if roles["val"] else "test"
    if roles["train"] and roles[measured]:
        names = {"train": "train", measured: "val"}
        parts = {
            image["id"]: names[image["role"]] for image in labels["images"] if image.get("role") in names
        }
        how = f"as its folders say: train, and {measured} to measure on"
        if others := len(labels["images"]) - len(parts):
            how += f"; {others} labelled images in neither are left out"
    else:
        together = groups([image["file_name"] for image in labels["images"]], root)
        classes: dict[int, Counter[int]] = {image["id"]: Counter() for image in labels["images"]}
        for box in labels["annotations"]:
            classes[box["image_id"]][box["category_id"]] += 1
        ids = [image["id"] for image in labels["images"]]
        names = [image["file_name"] for image in labels["images"]]
        pieces = [piece for group in together for piece in _pieces(group, names)]
        sets = [[ids[place] for place in piece] for piece in pieces]
        chosen = stratified(sets, classes, seed)
        parts = {number: "val" if number in chosen else "train" for number in ids}
        larger = sum(len(group) > 1 for group in together)
        how = f"a fifth to measure on, by image, stratified by class, seed {seed}"
        if larger:
            many = "s" * (larger > 1)
            how += f"; near-duplicates and frames kept together, {larger} group{many}"
        if cut_up := len(pieces) - len(together):
            how += f", {cut_up} of them cut once in the order of names, being more than a fifth of all"
    return _part(labels, parts, "train"), _part(labels, parts, "val"), how


def _pieces(group: list[int], names: Sequence[str]) -> list[list[int]]:
    """A group of places in `names`; one that is too large to measure on in two, as a film is cut once."""
    share = _share(len(names))
    if len(group) <= max(1, round(share * len(names))):
        return [group]
    ordered = sorted(group, key=lambda place: [*map(_in_order, re.split(r"(\d+)", names[place]))])
    first = len(group) - max(1, math.floor(share * len(group)))
    return [ordered[:first], ordered[first:]]


def _in_order(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _part(labels: Labels, parts: dict[int, str], name: str) -> Labels:
    kept = [image for image in labels["images"] if parts.get(image["id"]) == name]
    ids = {image["id"] for image in kept}
    return {
        "images": [{key: value for key, value in image.items() if key != "role"} for image in kept],
        "annotations": [box for box in labels["annotations"] if box["image_id"] in ids],
        "categories": labels["categories"],
    }


def stratified(sets: Sequence[Sequence[int]], classes: dict[int, Counter[int]], seed: int) -> set[int]:
    """Ids of the images to measure on: groups are placed by their rarest class, where it lacks most.

    Args:
        sets: ids of the images that stay together.
        classes: objects of each image by class.
        seed: of the order in which equal groups are placed.
    """
    total = sum(map(len, sets))
    share = _share(total)
    wanted: Counter[int | None] = Counter({None: round(share * total)})
    counts: Counter[int] = sum(classes.values(), Counter())
    wanted.update({name: share * count for name, count in counts.items()})  # type: ignore[dict-item]
    order = list(sets)
    random.Random(seed).shuffle(order)
    held = {id(group): sum((classes[one] for one in group), Counter()) for group in order}
    # groups with the rarest class first: those of a frequent one can still be placed anywhere
    order.sort(key=lambda group: min((counts[name] for name in held[id(group)]), default=total * 1000))
    chosen: set[int] = set()
    for group in order:
        own = held[id(group)]
        rarest = min(own, key=lambda name: counts[name], default=None)
        need = own[rarest] if rarest is not None else len(group)
        fits = wanted[None] >= len(group) and wanted[rarest] >= need / 2
        if fits:
            chosen.update(group)
            wanted[None] -= len(group)
            wanted.subtract(own)
    return chosen


def _share(total: int) -> float:
    return min(max(SHARE, min(FEWEST / max(1, total), 0.5)), MOST / max(1, total))


def groups(names: Sequence[str], root: Path) -> list[list[int]]:
    """Places in `names` that belong together, each in one group.

    Args:
        names: of images, relative to `root`.
        root: their folder.
    """
    parent = list(range(len(names)))

    def find(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    def join(one: int, other: int) -> None:
        parent[find(other)] = find(one)

    by_source: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        by_source[EXPORTED.sub("", name)].append(place)
    for places in by_source.values():
        for other in places[1:]:
            join(places[0], other)
    hashes = _hashes(names, root)
    for one, other in _near(hashes):
        join(one, other)
    for one, other in _following(names):
        if int(np.bitwise_count(hashes[one] ^ hashes[other])) <= FRAMES:
            join(one, other)
    found: defaultdict[int, list[int]] = defaultdict(list)
    for place in range(len(names)):
        found[find(place)].append(place)
    return list(found.values())


def _following(names: Sequence[str]) -> Iterable[tuple[int, int]]:
    """Pairs of images whose names differ in a number that counts on."""
    numbered: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, name in enumerate(names):
        if match := _NUMBERED.fullmatch(EXPORTED.sub("", name)):
            numbered[match[1]].append((int(match[2]), place))
    for pairs in numbered.values():
        pairs.sort()
        for (low, one), (high, other) in pairwise(pairs):
            if high - low <= 2:
                yield one, other


def _near(hashes: NDArray[np.uint64]) -> Iterable[tuple[int, int]]:
    """Pairs of near-duplicates; of very many images those of equal hashes alone."""
    if len(hashes) > _MOST_COMPARED:
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        yield from ((int(order[place]), int(order[place + 1])) for place in same)
        return
    for one in range(len(hashes) - 1):
        near = np.flatnonzero(np.bitwise_count(hashes[one + 1 :] ^ hashes[one]) <= ALIKE)
        yield from ((one, one + 1 + int(other)) for other in near)


def _hashes(names: Sequence[str], root: Path) -> NDArray[np.uint64]:
    """(N,) whether each of 64 cells of an image is darker than the one to its right; 64 bits each."""
    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(lambda name: _hash(root / name), names)), dtype=np.uint64)


def _hash(path: Path) -> int:
    """Of an image; of one that cannot be read a number of its own, so that it is like no other."""
    try:
        if not path.is_file():
            raise OSError("a pipe may never have any content")
        with Image.open(path) as image:
            image.draft("L", (36, 32))
            if image.mode.startswith("I"):
                # Pillow cuts 16 bits off at 255
                values = np.asarray(image, dtype=np.float64)
                scaled = 255 * (values - values.min()) / max(1.0, np.ptp(values))
                image = Image.fromarray(scaled.astype(np.uint8))
            cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    except Exception:  # Pillow's formats raise what they like on broken files, and the doctor tells them
        return random.Random(str(path)).getrandbits(64)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")
