"""Inspection of a dataset on a screen: the numbers of each split, then the defects, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdlab.cli.screen.console import UNLIMITED, Screen, duration, grid

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from kdlab.datasets.base import DatasetFiles
    from kdlab.inspection.examine import Inspection
    from kdlab.inspection.findings import Defect
    from kdlab.inspection.summary import Summary

_LOOKS = {"error": "bold red", "warn": "yellow", "note": "", "info": "dim"}
_CLASSES, _TRAITS = 12, 4
_EXAMPLES = 3
_WIDE = 150
"""Columns from which examples stand next to their defect, and not below."""
_NAME_WIDTH = 32


@contextmanager
def counting(screen: Screen) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with count, rate and time left for what `inspection` tells of its progress."""
    if not screen.live:
        yield lambda what, done, total: screen.say(f"checking {total} {what}") if not done else None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("checking {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=screen.err, transient=True) as bar:
        task = bar.add_task("the dataset", total=None, pace="")

        def told(what: str, done: int, total: int) -> None:
            if not done:
                bar.reset(task, description=what, total=total, pace="")
            now = bar.tasks[0]
            pace = f"{now.speed:.0f}/s  ETA {duration(now.time_remaining or 0)}" if now.speed else ""
            bar.update(task, completed=done, pace=pace)

        yield told


def report(
    screen: Screen, files: DatasetFiles, found: Inspection, scale: Sequence[int] | None = None
) -> None:
    """Print all of it to stdout; what needs no action is only counted, but with -v.

    Args:
        screen: where to.
        files: the dataset.
        found: in it.
        scale: width and height that images are resized to fit.
    """
    from rich.text import Text

    screen.data(Text(f"{found.name}  fingerprint {found.fingerprint}", style="bold"))
    room = screen.out.width - 9
    for name, split in (("train", files.train), ("val", files.val)):
        path = str(split.labels)
        if len(path) > room:
            path = f"…{path[1 - room :]}"  # many begin alike
        screen.data(f"  {name:<5}  {path}")
    if found.summaries:
        screen.data("")
        _show_numbers(screen, found.summaries, scale)
    screen.data("")
    shown = [defect for defect in found.defects if screen.verbose or defect.severity != "info"]
    for line in _lines(shown, screen.out.width) if shown else ():
        screen.data(line)
    if hidden := len(found.defects) - len(shown):
        kinds = "kind of finding that needs" if hidden == 1 else "kinds of finding that need"
        screen.data(Text(f"{hidden} more {kinds} no action: -v", style="dim"))
    if found.defects:
        screen.data("")
    counts = Counter(defect.severity for defect in found.defects)
    words = {"error": "error", "warn": "warning", "note": "note"}
    told = ", ".join(_number(counts[severity], word) for severity, word in words.items())
    if not found.usable:
        screen.data(Text(f"{told}; training cannot use this data: mend the errors", style="bold red"))
        return
    left_out = f", leaving out {_number(found.left_out, 'broken image')}" if found.left_out else ""
    screen.data(Text(f"{told}: training can use this data{left_out}", style="bold"))


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _show_numbers(screen: Screen, summaries: Sequence[Summary], scale: Sequence[int] | None) -> None:
    """Of many splits those that a job reads, where a terminal has no room for all; numbers are never cut."""
    from rich.text import Text

    table = _numbers(summaries, scale, all_classes=screen.verbose)
    needed = screen.out.measure(table, options=screen.out.options.update_width(UNLIMITED)).maximum
    if needed > screen.out.width and (others := summaries[2:-1]):
        screen.data(_numbers([*summaries[:2], summaries[-1]], scale, all_classes=screen.verbose))
        names = ", ".join(split.name for split in others)
        screen.data(Text(f"no room here for {names}: see --json, or a terminal of {needed} columns", "dim"))
        return
    screen.data(table)


def _numbers(summaries: Sequence[Summary], scale: Sequence[int] | None, *, all_classes: bool) -> Table:
    """A column a split."""
    from rich.text import Text

    heads = [Text(split.name, style="bold") for split in summaries]
    rows: list[list[Text | str]] = [["", *heads, Text("share", style="dim")]]
    for name, values in _rows(summaries, scale, all_classes=all_classes):
        title = Text(name, style="dim" if name.startswith(" ") else "")
        title.truncate(_NAME_WIDTH, overflow="ellipsis")
        rows.append([title, *values])
    return grid(rows, right=range(1, len(rows[0])))


def _rows(
    summaries: Sequence[Summary], scale: Sequence[int] | None, *, all_classes: bool
) -> Iterator[tuple[str, list[str]]]:
    last = summaries[-1]

    def row(name: str, form: str) -> tuple[str, list[str]]:
        return name, [form.format(split) for split in summaries]

    yield row("images", "{0.images:,}")
    yield row("  without objects", "{0.without_objects:,}")
    yield from _counted([split.formats for split in summaries], last.images, _TRAITS, "formats")
    yield from _counted([split.image_sizes for split in summaries], last.images, _TRAITS, "sizes")
    yield row("  pixel values, of 0..255", "{0.levels[0]}..{0.levels[1]}")
    yield row("objects", "{0.objects:,}")
    yield row("  crowd or difficult", "{0.crowds:,}")
    yield row("  an image: least/median/most", "{0.per_image[0]}/{0.per_image[1]:g}/{0.per_image[2]}")
    yield row("  narrowest x lowest, px", "{0.narrowest_px:g} x {0.lowest_px:g}")
    names = {"small": "small, < 32x32 px", "medium": "medium", "large": "large, >= 96x96 px"}
    for key, name in names.items():
        yield _shares(name, [split.sizes[key] for split in summaries], last.objects)
    for key in names if scale else ():
        counts = [(split.scaled_sizes or {}).get(key, 0) for split in summaries]
        yield _shares(f"{key} at scale {scale[0]}x{scale[1]}" if scale else key, counts, last.objects)
    yield f"classes: {len(last.classes)}", []
    shown = len(last.classes) if all_classes else _CLASSES
    yield from _counted([split.classes for split in summaries], last.objects, shown, "classes (-v)")


def _counted(
    counts: Sequence[dict[str, int]], total: int, shown: int, what: str
) -> Iterator[tuple[str, list[str]]]:
    """A row for each of the most frequent, as the last of `counts` has them, and one for the rest."""
    ranked = sorted(counts[-1], key=lambda name: -counts[-1][name])
    kept = ranked if len(ranked) <= shown + 1 else ranked[:shown]
    for name in kept:
        yield _shares(name, [split.get(name, 0) for split in counts], total)
    if rest := ranked[len(kept) :]:
        sums = [sum(split.get(name, 0) for name in rest) for split in counts]
        yield _shares(f"{len(rest)} other {what}", sums, total)


def _shares(name: str, counts: Sequence[int], total: int) -> tuple[str, list[str]]:
    """A row of counts, and the share that the last of them has of a total."""
    share = f"{100 * counts[-1] / total:.1f} %" if total else ""
    return f"  {name}", [*(f"{count:,}" for count in counts), share]


def _lines(defects: Sequence[Defect], width: int) -> Iterator[Text]:
    """A line a defect, its examples behind it or below; what is too long loses its end."""
    from rich.text import Text

    counts = [f"{defect.count:,}" for defect in defects]
    digits, words = max(map(len, counts)), max(len(defect.what) for defect in defects)
    badge = max(len(defect.severity) for defect in defects)
    for defect, count in zip(defects, counts, strict=True):
        examples = Text(_examples(defect), style="dim")
        severity = Text(f"{defect.severity:<{badge}}", style=_LOOKS[defect.severity])
        line = Text.assemble(severity, f"  {count:>{digits}}  ")
        lines = [line]
        if examples and width < _WIDE:
            lines.append(Text(" " * len(line)) + examples)
        line.append(defect.what)
        if examples and width >= _WIDE:
            line.append(" " * (words - len(defect.what) + 2)).append_text(examples)
        for text in lines:
            text.truncate(width, overflow="ellipsis")
            yield text


def _examples(defect: Defect) -> str:
    """A few places, of all splits before of all files; numbers of objects count from 0."""
    if not any(place.split or str(place) for place in defect.places):
        return ""
    # the first of each split before the second of any
    seen: Counter[str] = Counter()
    ranked = []
    for order, place in enumerate(defect.places):
        ranked.append((seen[place.split], order))
        seen[place.split] += 1
    parts = []
    for order in sorted(order for _, order in sorted(ranked)[:_EXAMPLES]):
        place = defect.places[order]
        part = ": ".join(filter(None, (place.split, str(place))))
        if not str(place):
            part = f"{place.split} {place.count:,}".strip()
        parts.append(part)
    more = sum(bool(str(place)) for place in defect.places) - len(parts)
    if more > 0:
        parts.append(f"{more:,} more")
    return "; ".join(parts)
