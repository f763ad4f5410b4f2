from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.jobs.events import JobCheckpointed, JobProgress, JobStarted
from kdlab.reporting.points import Point, began_ms, key, segments


def report(time, iteration):
    return JobProgress(
        job="student-0", time=time, epoch=1, epochs=1, iteration=iteration, iterations=40,
        losses={"cls": float(iteration)}, lr=0.1, step_s=1.0, data_s=0.0, eta_s=0.0,
    )  # fmt: skip


def started(time, iteration):
    return JobStarted(job="student-0", time=time, device="cpu", epochs=1, iterations=40, iteration=iteration)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of three attempts, killed twice: checkpoints every 6 iterations, one report a second."""
    lines, time = [], 1000.0
    for first, last in ((0, 15), (12, 22), (18, 40)):
        events = [started(time, first)]
        for iteration in range(first + 1, last + 1):
            time += 1.0
            events.append(report(time, iteration))
            if iteration % 6 == 0:
                events.append(JobCheckpointed(job="student-0", time=time, iteration=iteration))
        lines += events
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    path.write_text("".join(json.dumps(event.to_dict()) + "\n" for event in lines))
    return path


def points(found):
    return [point for segment in found for point in segment.points]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 9000))
def test_log_cut_at_any_byte_gives_the_first_segments_and_the_rest_follows(log, cut):
    whole = segments(log, 0, finished=False)
    head = log.with_name("head.jsonl")
    head.write_bytes(log.read_bytes()[:cut])
    first = segments(head, 0, finished=False)
    assert first == whole[: len(first)]
    rest = segments(log, first[-1].end if first else 0, finished=False)
    assert points(first) + points(rest) == points(whole)


def test_log_that_was_cut_and_grew_again_is_read_from_its_beginning(log, tmp_path):
    first, *_, last = segments(log, 0, finished=False)
    cut = tmp_path / "events.jsonl"
    cut.write_bytes(log.read_bytes()[: last.end - 40])
    with cut.open("a") as file:
        for iteration in range(37, 41):
            file.write("\n" + json.dumps(report(2000.0 + iteration, iteration).to_dict()) + "\n")
    assert segments(cut, last.end, finished=True)[0] == first


def test_log_without_its_beginning_began_when_it_did(tmp_path):
    path = tmp_path / "events.jsonl"
    known = 1_000_000
    for event, began in [
        (report(1008.0, 8), known),
        (started(2000.0, 6), known),
        (started(2000.0, 0), 2_000_000),
    ]:
        path.write_text(json.dumps(event.to_dict()) + "\n")
        assert began_ms(path, known) == began
    path.write_text("")
    assert began_ms(path, known) == known


def test_iterations_repeated_by_a_resume_count_once(log):
    steps = [point.step for point in points(segments(log, 0, finished=True)) if point.key == "train/cls"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_what_follows_the_last_checkpoint_counts_only_for_a_finished_job(log):
    last = [points(segments(log, 0, finished=finished))[-1].step for finished in (False, True)]
    assert last == [36, 40]


def test_point_has_milliseconds_and_iteration(log):
    first = points(segments(log, 0, finished=True))[0]
    assert first == Point("train/cls", 4.0, 1_004_000, 4)


def test_began_is_the_time_of_the_first_event(log, tmp_path):
    assert began_ms(log) == 1_000_000
    assert began_ms(tmp_path / "none.jsonl") is None


@given(name=st.text(min_size=1))
def test_any_name_becomes_a_key_that_mlflow_takes(name):
    assert re.fullmatch(r"[/\w.\- :]{1,250}", key(name))


def test_instance_of_a_method_stays_readable():
    assert key("train/cwd@neck") == "train/cwd:neck"


def test_what_no_checkpoint_covers_is_not_even_parsed(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    events = [started(1000.0, 0), report(1001.0, 1)]
    path.write_text("".join(json.dumps(event.to_dict()) + "\n" for event in events))
    monkeypatch.setattr("kdlab.reporting.points.from_line", lambda line: pytest.fail("parsed"))
    assert segments(path, 0, finished=False) == []
