"""Every file that kdlab writes, with every kind of damage, before every verb that reads it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlab import children, session
from kdlab.cli.verbs import stop
from kdlab.jobs.events import JobCheckpointed, JobEvaluated, JobFailed
from kdlab.jobs.files import write_json
from kdlab.jobs.handle import Handle
from kdlab.jobs.lease import LeaseInfo, Process
from kdlab.jobs.result import Curves, Evaluation
from kdlab.reporting import plots
from kdlab.running import scheduler
from kdlab.running.driver import driving
from tests.cli.conftest import BEGAN, Lab, at

EXAMPLES = int(os.environ.get("KDLAB_FUZZ_EXAMPLES", "15"))
LOOKS = ("status -v", "stop")
READERS: dict[str, tuple[str, ...]] = {
    "jobs/teacher-9c1e22ab/job.json": ("logs teacher", "export rm"),
    "jobs/teacher-9c1e22ab/result.json": (*LOOKS, "report", "export teacher"),
    "jobs/teacher-9c1e22ab/curves.json": ("report --plots",),
    "jobs/teacher-9c1e22ab/resampled.npy": ("report",),
    "jobs/teacher-9c1e22ab/events.jsonl": ("status -v", "report --plots"),
    "jobs/student-b0000000/lease.json": (*LOOKS, "report"),
    "jobs/student-b0000000/handle.json": (*LOOKS, "report"),
    "jobs/student-b0000000/events.jsonl": (*LOOKS, "status --json"),
    "jobs/student-b0000001/failure.json": (*LOOKS, "report"),
    "jobs/student-b0000001/log.txt": ("status -v", "logs student-b0000001 -n 0"),
    "plans/7f3a0001.json": (*LOOKS, "status --json", "ls runs", "logs teacher", "report", "export rm"),
    "plans/7f3a0001.lock": LOOKS,
    "recipes/tune/some.yaml": ("ls recipes",),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "object": lambda whole: b"{}",
    "list": lambda whole: b'[1, "two"]',
    "null": lambda whole: b"null",
    "number": lambda whole: b"7",
    "binary": lambda whole: bytes(range(256)) * 8,
    "deep": lambda whole: b"[" * 100_000,
    "other types": lambda whole: whole.replace(b": ", b": [") if b"{" in whole else b"x",
    "texts": lambda whole: _texts(whole),
    "another's": lambda whole: whole.replace(b"student-", b"student-f").replace(b"teacher-", b"teacher-f"),
}


def _texts(whole: bytes) -> bytes:
    """Each value of a JSON object as a text."""
    try:
        return json.dumps(dict.fromkeys(json.loads(whole), "text")).encode()
    except (ValueError, TypeError):
        return b"text"


@pytest.fixture
def worked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A plan that is half done: a teacher and rm, one student at work on another host, one that failed."""
    monkeypatch.setattr(session, "followers", lambda *_: [])
    monkeypatch.setattr(plots, "write_plots", lambda *_: [])
    monkeypatch.setattr(stop, "PATIENCE_S", 0.0)
    files = [{"name": name, "bytes": 1} for name in ("student.py", "student.pth")]
    monkeypatch.setattr(children, "told", lambda *_: {"folder": "exports", "files": files, "checks": []})
    plan = lab.save()
    plan = replace(plan, recipe={**plan.recipe, "arms": {"baseline": {}, "rm": {"rm": {}}}})
    plan.save(lab.runs)
    for key in ("teacher", "rm"):
        paths = lab.said(
            key, BEGAN, at(450), (JobEvaluated, {"epoch": 1, "iteration": 1, "metrics": {"AP": 9.0}})
        )
        lab.done(key)
        Curves([Evaluation({"AP": 9.0})], [{"iteration": 1, "lr": 0.1, "loss": 1.0}]).write(paths)
        paths.log.write_text("one\n")
        paths.resampled.write_bytes(b"no numbers")
    working = lab.at_work("b0")
    Handle("local", Process("node3", 7, 1.0), ("0",)).write(working)
    failed = lab.said("b1", BEGAN, (JobCheckpointed, {"iteration": 5}), (JobFailed, {"what": "nan"}))
    write_json(failed.failure, {"what": "the loss is nan", "where": "step 3", "after_s": 2.0, "kind": "oom"})
    failed.log.write_text("one\n")
    (lab.runs.folder / "recipes" / "tune").mkdir(parents=True)
    (lab.runs.folder / "recipes" / "tune" / "some.yaml").write_text("# tuned\nseeds: [0]\n")
    with driving(plan.id, lab.runs, "kdlab run digits/quickstart"):
        pass
    return lab


@pytest.mark.parametrize("name", READERS)
def test_damage_is_told_with_its_path_or_counts_as_absent(name: str, worked: Lab) -> None:
    path = worked.runs.folder / name
    whole = path.read_bytes()
    for make in DAMAGE.values():
        path.write_bytes(make(whole))
        for verb in READERS[name]:
            check(verb, path, worked)
    path.write_bytes(whole)
    assert worked("status")[0] == 0


def check(verb: str, path: Path, worked: Lab) -> None:
    """Let a verb read a damaged file."""
    began = time.process_time()
    code, out, err = worked(verb)
    told = f"{verb} with {path.name}: {path.read_bytes()!r}\n{code}\n{out[-300:]}\n{err[-1500:]}"
    assert code in (0, 1, 2, 3), told
    assert "Traceback" not in err, told
    assert code != 3 or path.name in err, told
    assert "\x1b" not in out + err, told
    assert time.process_time() - began < 5, told


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_told_with_its_path_or_counts_as_absent(data: st.DataObject, worked: Lab) -> None:
    name = data.draw(st.sampled_from(list(READERS)))
    path = worked.runs.folder / name
    whole = path.read_bytes()
    at, length = int(data.draw(st.floats(0, 1)) * len(whole)), data.draw(st.integers(0, 20))
    put = data.draw(
        st.one_of(st.binary(max_size=20), st.sampled_from([b"null", b"{}", b"-1", b"1e999", b"\n"]))
    )
    values = st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=4)
    path.write_bytes(
        data.draw(
            st.sampled_from([whole[:at], whole[:at] + put + whole[at + length :], whole[at:], whole + put])
            | st.dictionaries(st.text(), values).map(lambda made: json.dumps(made).encode())
            | st.just(_with_one_value_changed(whole, data.draw(values), at))
        )
    )
    try:
        for verb in READERS[name]:
            check(verb, path, worked)
    finally:
        path.write_bytes(whole)


def _with_one_value_changed(whole: bytes, value: object, at: int) -> bytes:
    """A file of JSON with another value at one of its first keys; others as they are."""
    try:
        content = json.loads(whole)
        content[sorted(content)[at % len(content)]] = value
        return json.dumps(content).encode()
    except (ValueError, TypeError):
        return whole


def test_a_process_without_a_start_time_is_not_followed(worked: Lab) -> None:
    paths = worked.paths("b0")
    me = Process.of(1)
    Handle("local", Process(me.host, 1, None), ("0",)).write(paths)
    LeaseInfo(1, Process(me.host, 1, None), time.time()).write(paths)
    status = json.loads(worked("status --json")[1])
    assert {one["label"]: one["state"] for one in status["jobs"]}["baseline seed 0"] == "interrupted"


@pytest.mark.parametrize(
    "name", ["lease.json", "handle.json", "failure.json", "events.jsonl", "job.json", "curves.json"]
)
def test_a_run_brings_a_job_with_a_damaged_file_to_its_end(
    name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.jobs = {"b0": lab.jobs["b0"]}
    plan = lab.save()
    path = Path(lab.said("b0", BEGAN, at(450)).folder / name)
    for damage, make in DAMAGE.items():
        if damage in ("cut", "list", "binary"):
            path.write_bytes(make(path.read_bytes() if path.exists() else b"{}"))
    ends = [type(event).__name__ for event in scheduler.run(plan, lab.local, lab.runs, poll_s=0.02)]
    assert ends[-1] == "JobFinished"
