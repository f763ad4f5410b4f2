"""Footnotes of a comparison: how to read it, what is missing, where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median

from kdlab.jobs.job import TOLERATED_AP
from kdlab.jobs.status import JobStatus
from kdlab.reporting.arms import Arm
from kdlab.reporting.columns import STAR, WITH_TEACHER, gap_left_open, step_ratios
from kdlab.reporting.comparison import SIGNIFICANT, Comparison, Gain
from kdlab.reporting.statistics import SEEDS_FOR_A_TEST, SEEDS_FOR_SMALL_GAINS
from kdlab.reporting.tables import Column

_SHOWN = 4
"""Classes that a footnote names."""
_DOUBTED = ("dAP", "method_x", "latency_ms")
"""Columns whose numbers can be less than they seem."""
USELESS_AP = 1.0
"""A teacher below this AP, in points, has nothing to teach: most often its weights did not load."""


def footnotes(comparison: Comparison, shown: Sequence[Column]) -> Iterator[str]:
    """All that a reader of these columns must know, a sentence each."""
    records, recipe = comparison.records, comparison.plan.recipe
    seeds = {record.job.seed for arm in comparison.arms for record in arm.records}
    spread = "mean ± sample deviation over " if len(seeds) > 1 else ""
    yield f"after the last epoch, {spread}{_seeds(seeds)}" if seeds else "no student in it"
    yield from _too_few_seeds(comparison.gains)
    has_gains = any(column.key == "dAP" for column in shown)
    if has_gains:
        yield from _least_gains(comparison.gains)
    yield from dict.fromkeys(column.reading for column in shown if column.reading)
    if any(column.key in ("step_x", "method_x") for column in shown):
        yield from _benched(comparison)
    if has_gains:
        yield from _stars(comparison)
    if any(column.key in _DOUBTED for column in shown):
        yield from _doubts(comparison)
    yield from _undetected(comparison)
    if stage := recipe.get("stage"):
        yield f"teacher: {recipe['teacher']['arm']} seed {recipe['teacher']['seed']} of {stage['name']}"
    for record in records:
        if record.job.is_teacher:
            yield from teacher_notes(record)
    yield from _unlearned(comparison)
    yield from _lacking(comparison)
    for arm in comparison.arms:
        yield from _paired(comparison, arm)
    yield from provenance(records)
    if comparison.baseline is None and comparison.arms:
        yield "no gains: no arm is without methods"
    if "metrics" in recipe.get("query", ""):
        yield "warning: these runs were chosen by their results, so what they have in common can be luck"
    yield f"plan {comparison.plan.id} of {recipe['name']}"
    if command := recipe.get("command"):
        changed = "the recipe has changed since or is not here, so that now makes another plan"
        yield f"made by: {command}; {changed}" if comparison.outdated else f"made again by: {command}"


def _too_few_seeds(gains: Mapping[str, Gain]) -> Iterator[str]:
    """That nothing is known of other seeds, where there are too few."""
    most = max((len(gain.seeds) for gain in gains.values()), default=0)
    if 0 < most < SEEDS_FOR_A_TEST:
        seeds = f"{most} seed{'s' * (most > 1)}"
        yield f"{seeds} cannot say what others would gain: no p, no star, no bold below {SEEDS_FOR_A_TEST}"


def _least_gains(gains: Mapping[str, Gain]) -> Iterator[str]:
    """How small a gain few seeds could have shown."""
    few = sorted(
        (gain.interval.half_width, name, len(gain.seeds))
        for name, gain in gains.items()
        if gain.interval and len(gain.seeds) < SEEDS_FOR_SMALL_GAINS
    )
    if not few:
        return
    counts = sorted(seeds for *_, seeds in few)
    seeds = " to ".join(dict.fromkeys(f"{count}" for count in (counts[0], counts[-1])))
    least = " to ".join(dict.fromkeys(f"{half:.1f} AP ({name})" for half, name, _ in (few[0], few[-1])))
    unseen = "half the width of dAP 95 %; smaller ones may be there unseen"
    yield f"{seeds} seeds could show gains from {least} on, {unseen}"


def _stars(comparison: Comparison) -> Iterator[str]:
    """What a star says, why a p below 0.05 lacks one, and which p is of no other images."""
    tested = {name: gain.p for name, gain in comparison.gains.items() if gain.p is not None}
    if tested:
        yield STAR
    alone = [name for name, p in tested.items() if p < SIGNIFICANT and not comparison.gains[name].supported]
    if alone:
        luck = f"among {comparison.tests} arms luck makes such a p too often"
        yield f"{', '.join(alone)}: p < {SIGNIFICANT} but no star: {luck}"
    if these := [name for name in tested if comparison.gains[name].other_images is None]:
        yield f"{', '.join(these)}: dAP 95 % and p are for other seeds on these images alone"


def _benched(comparison: Comparison) -> Iterator[str]:
    """Whose steps were timed with nothing beside them."""
    arms = [arm for arm in comparison.arms if arm.distils]
    names = [arm.name for arm in arms if any(one.id in comparison.benched for one in arm.results.values())]
    if names:
        whose = "" if len(names) == len(arms) else f" of {', '.join(names)}"
        yield f"step x, method x{whose}: by kdlab bench, with nothing else of kdlab beside it"


def _doubts(comparison: Comparison) -> Iterator[str]:
    """Times that cannot be, and whose images cannot be resampled, or not together."""
    ratios = {arm.name: step_ratios(comparison, arm, WITH_TEACHER) for arm in comparison.arms}
    quick = [name for name, own in ratios.items() if own and median(own) < 1]
    if quick:
        yield f"method x below 1 cannot be; the machine was busy with other work: {', '.join(quick)}"
    for gap in dict.fromkeys(gap_left_open(gain) for gain in comparison.gains.values()):
        if gap:
            yield f"gap closed: {gap}"
    known = [comparison.latency_ms(arm) is not None for arm in comparison.rows]
    if comparison.teacher and known[0] and any(known[1:]) and comparison.latencies_apart:
        yield "latency: teacher and student were measured at different times: trust no ratio of the two"
    if comparison.unlike:
        yield "no interval over images between models that were measured on other images or objects"
    if count := len(comparison.unsampled):
        labels = ", ".join(comparison.unsampled[:4]) + (", ..." if count > 4 else "")
        jobs = f"{count} job{'s' * (count > 1)}"
        yield f"no interval over images for {jobs} without AP on resampled images: {labels}"


def _undetected(comparison: Comparison) -> Iterator[str]:
    """Of which jobs no errors are told, and which were not measured on the teacher's objects."""
    if not comparison.lost:
        return
    teacher = comparison.teacher
    has_teacher = teacher is not None and bool(comparison.lost_of(teacher))
    for arm in comparison.rows:
        known, done = len(comparison.lost_of(arm)), len(arm.results)
        if known < done:
            yield f"{arm.name}: no errors of {done - known} of {done} jobs, whose detections are not known"
        yield from _unfound(comparison, arm)
        apart = known - len(comparison.agreements(arm))
        if has_teacher and arm is not teacher and apart:
            yield f"{arm.name}: {apart} of {known} were measured on other objects than the teacher"


def _unfound(comparison: Comparison, arm: Arm) -> Iterator[str]:
    """Classes of which an arm finds nothing, for the errors that concern objects hide that."""
    seeds: dict[int, list[int]] = {}
    for seed, one in comparison.lost_of(arm).items():
        for label in one.unfound:
            seeds.setdefault(label, []).append(seed)
    if seeds:
        told = [f"{comparison.classes[label]} ({_seeds(own)})" for label, own in sorted(seeds.items())]
        more = f", {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        classes = f"{', '.join(told[:_SHOWN])}{more}"
        yield f"{arm.name}: finds no object of {classes}; miss and FN hide what that costs"


def _lacking(comparison: Comparison) -> Iterator[str]:
    """Which jobs ran out of memory and were trained in parts, and which have no result."""
    parts = {record.job.label: record.job.spec.micro_batch for record in comparison.records}
    if told := ", ".join(f"{label} ({images} images)" for label, images in parts.items() if images):
        reading = "gradients of smaller forward passes were summed to the same batch"
        yield f"ran out of GPU memory: {told}; {reading}, each with its own normalisers"
    for arm in comparison.arms:
        states = [f"seed {one.job.seed} {one.state}" for one in arm.records if one.result is None]
        if states:
            yield f"{arm.name}: n={len(arm.results)} of {arm.planned}, {', '.join(states)}"


def teacher_notes(record: JobStatus) -> Iterator[str]:
    """Where a teacher came from, and whether it is one to learn from."""
    if record.result is None:
        yield f"teacher: {record.state}"
        return
    if checkpoint := record.result.model.get("checkpoint"):
        whole = "" if checkpoint["keys"]["whole"] else ", loaded in part"
        yield f"teacher: measured from {checkpoint['file']}, sha256 {checkpoint['sha256'][:8]}{whole}"
    found, expected = record.result.metrics.get("AP", 0.0), record.job.inputs.expect_ap
    if expected is None:
        if found < USELESS_AP:
            yield f"warning: the teacher has AP {found:.1f}, so there is nothing to learn from it"
    elif abs(found - expected) > TOLERATED_AP:
        side = "above" if found > expected else "below"
        yield f"teacher: {abs(found - expected):.1f} AP {side} teacher.expect_ap {expected:.1f}"


def _unlearned(comparison: Comparison) -> Iterator[str]:
    """A teacher below its student; a baseline that learned nothing, or nothing since half of its epochs."""
    baseline = comparison.baseline
    if baseline is None or not (own := baseline.over_seeds("AP")):
        return
    mean = fmean(own)
    taught = comparison.teacher.over_seeds("AP") if comparison.teacher else []
    if taught and mean >= USELESS_AP and taught[0] < mean:
        fix = "train it longer or take a larger one"
        yield f"warning: the teacher, AP {taught[0]:.1f}, is below the baseline, {mean:.1f}: {fix}"
    pairs = [(one.best, one.last) for one in baseline.results.values()]
    if max(own) < USELESS_AP:
        fix = "see its losses (report --plots), kdlab doctor --data, and a lower or higher schedule.lr"
        yield f"warning: the baseline has learned nothing, AP {mean:.1f}: {fix}"
    elif all(best.epoch and last.epoch and 2 * best.epoch <= last.epoch for best, last in pairs):
        epochs = ", ".join(dict.fromkeys(str(best.epoch) for best, _ in pairs))
        fix = "fewer epochs or a lower schedule.lr"
        yield f"warning: the baseline was best at epoch {epochs} of {pairs[0][1].epoch} and not since: {fix}"


def _paired(comparison: Comparison, arm: Arm) -> Iterator[str]:
    """Which seeds a gain is over, where one side lacks some, and whether it is between unlike batches."""
    gain = comparison.gains.get(arm.name)
    if gain is None:
        if comparison.can_gain(arm):
            yield f"{arm.name}: no gain, for it shares no finished seed with the baseline"
        return
    if len(gain.seeds) < arm.planned:
        yield f"{arm.name}: gain over {_seeds(gain.seeds)}, which the baseline has too"
    if not gain.like:
        yield f"{arm.name}: the baseline ran in other batches, so there is no dAP 95 % and no p"
    elif gain.p is None and len(gain.seeds) >= SEEDS_FOR_A_TEST:
        yield f"{arm.name}: all seeds gain exactly the same: no noise to judge by, no p"


def provenance(records: Sequence[JobStatus]) -> Iterator[str]:
    """The data, commit, versions and machine of the finished jobs, and where jobs differ in them.

    "commit: abc", or "cells differ in commit: abc (teacher); def (all others)".
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for record in records:
        if record.result is None:
            continue
        label, dataset, environment = record.job.label, record.job.spec.dataset, record.result.environment
        versions = [f"{name} {environment.get(name, 'unknown')}" for name in ("kdlab", "torch", "mmdet")]
        counts = [f"{name} {environment[name]}" for name in ("cores", "threads") if environment.get(name)]
        rounds = [f"TF32 in {environment['tf32']}"] if "tf32" in environment else []
        told = {
            "data": f"{dataset.name}, fingerprint {dataset.fingerprint}",
            "commit": environment.get("commit") or "unknown",
            "versions": ", ".join(versions),
            "machine": ", ".join([str(environment.get("device", "unknown")), *counts, *rounds]),
        }
        for name, value in told.items():
            groups.setdefault(name, {}).setdefault(value, []).append(label)
    for name, by_value in groups.items():
        *fewer, (most, _) = sorted(by_value.items(), key=lambda group: len(group[1]))
        parts = [f"{value} ({', '.join(labels)})" for value, labels in fewer]
        differ = f"cells differ in {name}: {'; '.join(parts)}; {most} (all others)"
        yield differ if fewer else f"{name}: {most}"


def _seeds(seeds: Iterable[int]) -> str:
    """ "seed 0" or "seeds 0 1 2"."""
    numbers = [str(seed) for seed in sorted(seeds)]
    return f"{'seed' if len(numbers) == 1 else 'seeds'} {' '.join(numbers)}"
