from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlab.jobs.events import (
    KINDS,
    Event,
    EventLog,
    JobCancelled,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobStarted,
    from_line,
    last_in,
    read_from,
    settled,
)


def started(attempt: int, iteration: int) -> JobStarted:
    return JobStarted(job="a", attempt=attempt, device="cpu", epochs=1, iterations=99, iteration=iteration)


def saved(attempt: int, iteration: int) -> JobCheckpointed:
    return JobCheckpointed(job="a", attempt=attempt, iteration=iteration)


def lines(count: int) -> bytes:
    events = (JobCheckpointed(job="a", time=float(i), attempt=1, iteration=i) for i in range(count))
    return b"".join(json.dumps(event.to_dict()).encode() + b"\n" for event in events)


def append(path: Path, attempt: int, iteration: int) -> None:
    log = EventLog(path, "a", attempt)
    log.write(JobCheckpointed, iteration=iteration)
    log.close()


@given(cut=st.integers(0, len(lines(4))))
def test_log_cut_at_any_byte_keeps_its_whole_lines_and_takes_new_ones(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.write_bytes(lines(4)[:cut])
        append(path, 2, 50)
        tail = read_from(path)
    iterations = [event.iteration for event in tail.events if isinstance(event, JobCheckpointed)]
    whole = lines(4)[:cut].count(b"\n")
    # A line that lost nothing but its line break is whole too.
    assert iterations in ([*range(whole), 50], [*range(whole + 1), 50])
    assert tail.skipped + len(iterations) <= whole + 2


@given(cut=st.integers(0, len(lines(4))))
def test_reading_in_two_parts_gives_what_reading_at_once_gives(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.write_bytes(lines(4)[:cut])
        first = read_from(path)
        path.write_bytes(lines(4))
        second = read_from(path, first.offset)
        assert first.events + second.events == read_from(path).events
        assert second.offset == len(lines(4))


@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_none(line: bytes) -> None:
    assert from_line(line) is None or isinstance(from_line(line), Event)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"7",
        b"{}",
        b'{"event": "JobSung"}',
        b'{"event": ["JobQueued"]}',
        b'{"event": "JobQueued", "new": 1}',
    ],
)
def test_line_of_another_form_is_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b"\n" + lines(1))
    assert read_from(path).skipped == 1
    assert len(read_from(path).events) == 1


def test_every_kind_survives_the_way_through_a_line() -> None:
    failed = JobFailed(job="a", time=1.0, attempt=2, what="it broke", tail=("x", "y"))
    assert from_line(json.dumps(failed.to_dict()).encode()) == failed
    assert all(kind.__name__ == name for name, kind in KINDS.items())


def test_failure_of_before_there_were_kinds_has_none() -> None:
    line = {"event": "JobFailed", "job": "a", "time": 1.0, "attempt": 1, "what": "it broke"}
    assert from_line(json.dumps(line).encode()) == JobFailed(job="a", time=1.0, attempt=1, what="it broke")


def test_missing_log_is_empty(tmp_path: Path) -> None:
    assert read_from(tmp_path / "events.jsonl", 7).offset == 7


def test_line_after_one_that_a_full_disk_cut_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "a", 1)
    whole = log._file

    class FullDisk:
        def write(self, data: bytes) -> int:
            return whole.write(data[:9])

        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

    monkeypatch.setattr(log, "_file", FullDisk())
    log.write(JobCheckpointed, iteration=1)
    monkeypatch.setattr(log, "_file", whole)
    log.write(JobCheckpointed, iteration=2)
    log.close()
    assert [event.iteration for event in read_from(path).events] == [2]  # type: ignore[attr-defined]


def test_line_after_a_cut_under_its_writer_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "a", 1)
    log.write(JobCheckpointed, iteration=1)
    os.truncate(path, 20)
    log.write(JobCheckpointed, iteration=2)
    log.close()
    assert [event.iteration for event in read_from(path).events] == [2]  # type: ignore[attr-defined]


def test_log_that_lost_its_end_is_read_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(9))
    offset = read_from(path).offset
    path.write_bytes(lines(2))
    cut = read_from(path, offset)
    append(path, 2, 50)
    assert (cut.events, cut.offset) == ([], len(lines(2)))
    assert [event.iteration for event in read_from(path, cut.offset).events] == [50]  # type: ignore[attr-defined]


def test_later_attempt_undoes_what_came_after_its_checkpoint() -> None:
    kept = [started(1, 0), saved(1, 5)]
    undone = [saved(1, 10)]
    later = [started(2, 5), saved(2, 10)]
    assert settled([*kept, *undone, *later]) == [*kept, *later]


def test_evaluation_at_the_checkpoint_itself_stands() -> None:
    evaluated = JobEvaluated(job="a", attempt=1, epoch=1, iteration=5, metrics={"AP": 3.0})
    assert evaluated in settled([started(1, 0), evaluated, saved(1, 5), started(2, 5)])


def test_evaluation_that_the_checkpoint_does_not_know_is_made_again() -> None:
    """It is written between the two checkpoints of one iteration, of which the second was lost."""
    evaluated = JobEvaluated(job="a", attempt=1, epoch=1, iteration=5, metrics={"AP": 3.0})
    again = replace(started(2, 5), evaluated=0)
    assert evaluated not in settled([started(1, 0), saved(1, 5), evaluated, again, saved(2, 5)])
    assert evaluated in settled([started(1, 0), saved(1, 5), evaluated, replace(again, evaluated=5)])


def test_forgotten_attempt_cannot_add_to_what_a_later_one_took_over() -> None:
    orphan = saved(1, 15)
    assert orphan not in settled([started(1, 0), started(2, 5), orphan, saved(2, 10)])


def test_events_without_an_iteration_stand() -> None:
    history = [
        started(1, 0),
        JobCancelled(job="a", attempt=1),
        started(2, 0),
        JobFinished(job="a", metrics={}, wall_s=1),
    ]
    assert settled(history) == history


attempts = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5)


@given(attempts)
def test_settled_history_goes_forward_only(lengths: list[tuple[int, int]]) -> None:
    history: list[Event] = []
    reached = 0
    for attempt, (back, forward) in enumerate(lengths, 1):
        first = max(0, reached - back)
        reached = first + forward
        history += [started(attempt, first), *(saved(attempt, i) for i in range(first + 1, reached + 1))]
    steps = [event.iteration for event in settled(history) if isinstance(event, JobCheckpointed)]
    assert steps == list(range(1, reached + 1))
    assert settled(settled(history)) == settled(history)


def test_last_event_is_the_last_whole_line_that_parses(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert last_in(path) is None
    path.write_bytes(lines(3) + b'{"event": "JobProg\n' + lines(1)[:-1])
    last = last_in(path)
    assert isinstance(last, JobCheckpointed)
    assert last.iteration == 2
    assert last_in(path, within=30) is None


def test_a_log_says_losses_epochs_and_metrics_and_progress_now_and_then(tmp_path: Path) -> None:
    said: list[str] = []
    log = EventLog(tmp_path / "events.jsonl", "student-1", 1, said.append)
    log.write(JobStarted, device="cpu", epochs=2, iterations=20)
    counts = {
        "epoch": 1,
        "epochs": 2,
        "iterations": 20,
        "lr": 0.01,
        "step_s": 0.25,
        "data_s": 0.0,
        "eta_s": 9.0,
    }
    for second, loss in ((100.0, 1.23456), (101.0, 1.2), (111.0, 1.1)):
        log.write(JobProgress, time=second, iteration=int(second), losses={"loss": loss}, **counts)
    log.write(JobEvaluated, epoch=1, iteration=10, metrics={"AP": 12.34, "AP50": 30.0})
    log.write(JobCheckpointed, iteration=10)
    log.close()
    assert said == [
        "training, 20 iterations on cpu",
        "epoch 1/2  iteration 100/20  loss 1.235  lr 0.01  0.25 s a step",
        "epoch 1/2  iteration 111/20  loss 1.1  lr 0.01  0.25 s a step",
        "epoch 1  iteration 10  AP 12.3  AP50 30.0",
    ]
