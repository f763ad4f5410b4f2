from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kdlab.devices import Gpu, Machine
from kdlab.jobs.job import Resources
from kdlab.running.backfill import Request, makespan_s, size_of, startable, urgency
from tests.stubs.stub_job import make_job

GPUS = 8


def ids(requests: list[Request]) -> list[str]:
    return [request.id for request in requests]


def random_plan(draw: random.Random) -> list[Request]:
    """A campaign: one to six teachers, 40 to 80 jobs in all, most small, of one to ten time units."""
    teachers = draw.randint(1, 6)
    requests = []
    for number in range(draw.randint(40, 80)):
        size = draw.choices([1, 2, 4, 8], weights=[5, 3, 2, 1])[0]
        free = number < teachers or draw.random() < 0.25
        parents = () if free else (f"job {draw.randrange(teachers)}",)
        requests.append(Request(f"job {number}", size, draw.uniform(1, 10), parents))
    return requests


def bound_s(requests: list[Request]) -> float:
    """No schedule ends sooner: all work over all GPUs, or the longest chain."""
    work = sum(request.size * request.cost_s for request in requests) / GPUS
    return max(work, *urgency(requests).values())


def test_500_random_plans_end_near_the_bound() -> None:
    draw = random.Random(0)
    plans = [random_plan(draw) for _ in range(500)]
    ratios = sorted(makespan_s(plan, GPUS) / bound_s(plan) for plan in plans)
    assert ratios[0] >= 1 - 1e-9
    assert ratios[int(0.95 * len(ratios))] <= 1.10


def test_urgency_is_the_longest_chain_that_hangs_on_a_job() -> None:
    teacher, short, long = Request("t", 1, 3), Request("s", 1, 1, ("t",)), Request("l", 1, 5, ("t",))
    assert urgency([teacher, short, long]) == {"t": 8, "s": 1, "l": 5}


def test_parent_after_its_child_is_refused() -> None:
    with pytest.raises(ValueError, match="t comes after s"):
        urgency([Request("s", 1, 1, ("t",)), Request("t", 1, 1)])


def test_what_fits_starts_in_its_order() -> None:
    ready = [Request("a", 4, 1), Request("b", 4, 1), Request("c", 1, 1)]
    assert ids(startable(ready, [], GPUS)) == ["a", "b"]


def test_wide_job_is_not_starved_by_small_ones_that_last_longer() -> None:
    ready, held = [Request("wide", 8, 5), Request("small", 1, 60)], [Request("held", 1, 10)]
    assert startable(ready, held, GPUS) == []


def test_small_job_that_ends_before_the_wide_one_can_start_goes_first() -> None:
    ready, held = [Request("wide", 8, 5), Request("small", 1, 10)], [Request("held", 1, 10)]
    assert ids(startable(ready, held, GPUS)) == ["small"]


def test_small_jobs_use_what_the_wide_one_leaves_and_no_more() -> None:
    ready = [Request("wide", 6, 5), *(Request(f"small {number}", 1, 60) for number in range(3))]
    assert ids(startable(ready, [Request("held", 4, 10)], GPUS)) == ["small 0", "small 1"]


def test_job_that_is_overdue_holds_its_devices_until_it_ends() -> None:
    ready = [Request("wide", 8, 5), Request("small", 1, 1)]
    assert startable(ready, [Request("held", 1, 0)], GPUS) == []


def test_nothing_starts_where_all_is_held() -> None:
    assert startable([Request("a", 1, 1)], [Request("held", 8, 5)], GPUS) == []


def test_makespan_counts_what_runs_already() -> None:
    requests = [Request("runs", 8, 100), Request("waits", 8, 5)]
    assert makespan_s(requests, GPUS, running={"runs": 2}) == 7


def test_makespan_heeds_a_limit_of_jobs() -> None:
    requests = [Request(str(number), 1, 3) for number in range(4)]
    assert makespan_s(requests, GPUS, at_once=2) == 6


@pytest.mark.parametrize(
    ("wants", "size"),
    [({"gpus": 2}, 2), ({"gpus": 1, "share": 2}, 0.5), ({"threads": 1}, 1), ({"threads": 9}, 4)],
)
def test_size_of_a_job_is_what_it_holds(wants: dict[str, int], size: float) -> None:
    machine = Machine(tuple(range(4)), (Gpu(0, "a", 80), Gpu(1, "b", 80)))
    job = make_job(resources=Resources(**wants))  # type: ignore[arg-type]
    assert size_of(job, machine if job.resources.gpus else replace(machine, gpus=())) == size
