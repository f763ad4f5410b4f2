"""A plan: the jobs of a recipe in topological order, as `plans/<id>.json` holds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from kdlab.jobs.files import parsed, read_bytes, write_json
from kdlab.jobs.job import SCHEMA, Job, check_schema
from kdlab.jobs.paths import Runs
from kdlab.redaction import masked


@dataclass(frozen=True)
class PlannedJob:
    """A job of a plan.

    Args:
        job: what would run.
        done: whether its result exists already.
        why: the reason in words: "reused", "new: schedule.lr differs from student-1a2b3c4d".
        cost_s: expected seconds, None where nothing is known.
        cost_source: "measured, n=3", "estimated", "by a few steps" or "unknown".
    """

    job: Job
    done: bool
    why: str
    cost_s: float | None = None
    cost_source: str = "unknown"


@dataclass(frozen=True)
class Plan:
    """The jobs of a recipe in topological order.

    Args:
        id: 8 hex over the recipe's name and the ids of its jobs.
        recipe: the resolved recipe as plain data ("name", "title", "arms", "seeds", ...).
        jobs: parents before children.
        device: "cpu" or "cuda".
        dataset: name and fingerprint of the data.
        notes: what a person should know before running, a sentence each.
    """

    id: str
    recipe: dict[str, Any]
    jobs: tuple[PlannedJob, ...]
    device: str
    dataset: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether its jobs are trials of `kdlab tune`, which are no arms to compare."""
        return "study" in self.recipe

    @property
    def compares(self) -> bool:
        """Whether it is a recipe's own: no search, no diagnosis of students and no measuring of times."""
        return not (self.is_search or self.about)

    @property
    def about(self) -> str:
        """The verb that made it of another plan, whose id its recipe has by that name; "" of others."""
        return next((verb for verb in ("diagnoses", "benches") if verb in self.recipe), "")

    @property
    def plain_arms(self) -> list[str]:
        """The arms that train the student alone, and so are baselines."""
        learning = self.recipe.get("inherits", ())
        return [arm for arm, methods in self.recipe["arms"].items() if not methods and arm not in learning]

    def derived(self, verb: str, jobs: Sequence[PlannedJob]) -> Self:
        """A plan of other jobs about this one, which says so under `verb`; see `about`."""
        key = json.dumps([self.id, *(one.job.id for one in jobs)])
        recipe = {**self.recipe, verb: self.id}
        made = hashlib.sha256(key.encode()).hexdigest()[:8]
        return replace(self, id=made, recipe=recipe, jobs=tuple(jobs), notes=())

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        # not asdict(): it copies the settings of every job, which takes seconds where there are a thousand
        jobs = [{**vars(planned), "job": planned.job.to_dict()} for planned in self.jobs]
        return {**vars(self), "jobs": jobs, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        known = {key: value for key, value in data.items() if key != "schema"}
        known["jobs"] = tuple(PlannedJob(**{**old, "job": Job.from_dict(old["job"])}) for old in data["jobs"])
        known["notes"] = tuple(data["notes"])
        # of an earlier version of kdlab it may hold a password
        known["recipe"] = masked(data["recipe"])
        recipe = known["recipe"]
        if not (isinstance(data["jobs"], list) and isinstance(recipe["name"], str)):
            raise ValueError("it has no list of jobs, or its recipe no name")
        if not isinstance(recipe.get("arms", {}), dict):
            raise ValueError("the arms of its recipe have no names")
        return cls(**known)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The plan in a file.

        Raises:
            UsageError: it is of another version of kdlab.
        """
        data = parsed(read_bytes(path))
        check_schema(data, path)
        return cls.from_dict(data)

    def save(self, runs: Runs) -> Path:
        """Write the plan down as `plans/<id>.json`; the newest file is the newest plan."""
        path = self.path(runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": SCHEMA, **self.to_dict()})
        return path

    def path(self, runs: Runs) -> Path:
        """Its file, whether it exists or not."""
        return runs.plans / f"{self.id}.json"
