"""Ids of jobs: a hash of everything that can change the result, and of nothing else.

Settings that have their default are left out, those of plugins too, so a new key that by default changes
nothing changes no id. What the code itself does counts by small versions: of the training loop, of the
evaluation and of each plugin that the job uses. `tests/contracts/test_versions.py` fails where a default or a
number moves without its version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kdlab import catalog
from kdlab.jobs.job import Job
from kdlab.jobs.spec import VERSIONS, DetectorSpec, DiagnoseSpec, PrepareSpec, Spec, TrainingSpec, plain

DIGITS = 12
"""Of an id: of a million jobs two have the same with a chance of one in 500."""


def job_id(spec: Spec, parents: tuple[str, ...]) -> str:
    """`<kind>-<12 hex>`."""
    settings = plain(spec)
    known = catalog.methods()
    if isinstance(spec, DetectorSpec):
        for name, method in spec.methods.items():
            settings["methods"][name]["options"] = _unusual(known[method.method], method.options)
    if isinstance(spec, PrepareSpec):
        settings["options"] = _unusual(known[spec.method], spec.options)
    key = json.dumps([settings, sorted(versions(spec).items()), parents], sort_keys=True)
    return f"{spec.kind}-{hashlib.sha256(key.encode()).hexdigest()[:DIGITS]}"


def with_id(job: Job) -> Job:
    """The job with the id that its settings and parents have now."""
    return replace(job, id=job_id(job.spec, job.parents))


def versions(spec: Spec) -> dict[str, int]:
    """Versions of the components that a job uses, by name ("methods/rm"), without those that are still 1."""
    return {name: version for name, version in _components(spec) if version != 1}


def _components(spec: Spec) -> Iterator[tuple[str, int]]:
    yield "evaluation", VERSIONS["evaluation"]
    if isinstance(spec, TrainingSpec):
        yield "loop", VERSIONS["loop"]
    if isinstance(spec, DiagnoseSpec):
        yield "diagnosis", spec.version
    yield f"datasets/{spec.dataset.name}", catalog.datasets()[spec.dataset.name].version
    # a head or a backbone that only an mmdet config knows has no file here
    if detector := catalog.detectors().get(spec.model.detector):
        yield f"detectors/{detector.key}", detector.version
    if backbone := catalog.backbones().get(spec.model.backbone or ""):
        yield f"backbones/{backbone.path.stem}", backbone.version
    for key in _methods(spec):
        yield f"methods/{key}", catalog.methods()[key].version


def _methods(spec: Spec) -> list[str]:
    if isinstance(spec, DetectorSpec):
        return [method.method for method in spec.methods.values()]
    return [spec.method] if isinstance(spec, PrepareSpec) else []


def _unusual(info: catalog.MethodInfo, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have another value than the method's own default."""
    usual = {name: json.loads(json.dumps(option.default)) for name, option in info.options.items()}
    return {name: value for name, value in options.items() if name not in usual or value != usual[name]}
