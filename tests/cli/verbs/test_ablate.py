"""`kdlab ablate` with stub jobs: what it writes, asks, runs and shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kdlab.cli.screen.options import method_names
from kdlab.devices import Machine
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.planning import build as planning
from kdlab.prepared import Prepared
from kdlab.recipe.settings import Recipe
from tests.cli import test_verbs
from tests.cli.test_verbs import Bench
from tests.stubs.jobs import steering

NAME = "ablate/digits/quickstart--rm+pfi"
WRITTEN = Path(f"runs/recipes/{NAME}.yaml")
MANY = "rm,pfi,cwd,fgd,mgd"

kdlab = test_verbs.kdlab


class Pairs(Bench):
    """As `Bench`, with students of several widths; the baseline of each is a job of its own."""

    width: int | None = None

    def job(self, arm: str, seed: int = 0, methods: Sequence[str] = ()) -> Job:
        job = super().job(arm, seed, methods)
        if arm == "teacher":
            return job
        steering(job)["end"] = self.ends.get(f"{arm} {self.width}", "finish")
        return replace(job, id=f"{job.id}w{self.width}")

    def prepare(
        self,
        recipe: Recipe,
        runs: Runs,
        machine: Machine,
        progress: Callable[[str], None] = print,
    ) -> Plan:
        self.width = recipe.student.width
        return replace(super().prepare(recipe, runs, machine, progress), id=f"7f3a000{self.width}")


@pytest.fixture
def pairs(kdlab: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pairs:
    made = Pairs(tmp_path, kdlab.capfd)
    monkeypatch.setattr(planning, "prepare", made.prepare)
    return made


def test_ends_in_the_table_and_its_files(kdlab: Bench) -> None:
    code, out, err = kdlab("ablate --loss rm,pfi")
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines()[2:7]]
    assert rows == ["teacher", "baseline", "rm", "pfi", "rm+pfi"]
    assert f"recipe written: {WRITTEN}\n" in err
    assert f"written: results/{NAME}.md, results/{NAME}.csv\n" in err
    assert "ablation of rm, pfi" in Path(f"results/{NAME}.md").read_text()


def test_written_recipe_runs_by_its_name_and_by_its_path(kdlab: Bench) -> None:
    _, table, _ = kdlab("ablate --loss rm,pfi")
    for word in (NAME, WRITTEN):
        code, out, err = kdlab(f"run {word}")
        assert (code, out) == (0, table)
        assert f"{NAME}  5 jobs, all reused" in err
    assert [path.name for path in Path("results/ablate/digits").glob("*.md")] == ["quickstart--rm+pfi.md"]
    assert kdlab(f"report {NAME}")[1] == table


def test_same_request_writes_the_same_bytes(kdlab: Bench) -> None:
    kdlab("ablate --loss rm,pfi")
    before = WRITTEN.read_bytes()
    _, _, err = kdlab("ablate digits/quickstart -j 1 --loss rm,pfi -y")
    assert WRITTEN.read_bytes() == before
    assert "all reused" in err


def test_dry_run_writes_nothing(kdlab: Bench) -> None:
    code, out, err = kdlab("ablate --loss rm,pfi --dry-run")
    assert code == 0
    assert f"{NAME}  5 jobs" in out
    assert not kdlab.runs.folder.exists()
    assert err.splitlines()[-1] == "next: kdlab ablate --loss rm,pfi"


def test_varied_values_are_arms_of_the_table(kdlab: Bench) -> None:
    _, out, _ = kdlab("ablate --loss rm --vary rm.rank=cls,loc --vary rm.weight=1.5")
    assert [line.split()[0] for line in out.splitlines()[3:6]] == [
        "baseline",
        "rm[rank=cls,weight=1.5]",
        "rm[rank=loc,weight=1.5]",
    ]


def test_seeds_replace_those_of_the_recipe(kdlab: Bench) -> None:
    assert "rm        gfl r18  seeds 4 5" in kdlab("ablate --loss rm --seeds 4,5 --dry-run")[1]


def test_next_command_has_three_seeds_also_where_seeds_are_given(kdlab: Bench) -> None:
    _, _, err = kdlab("ablate --loss rm --seeds 1")
    command = err.splitlines()[-1].removeprefix("next: kdlab ")
    assert command == "ablate --loss rm --set 'seeds=[1,0,2]'"
    assert "ablate/digits/quickstart--rm--seeds=1,0,2  7 jobs" in kdlab(f"{command} --dry-run")[1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ablate", "kdlab ablate  missing option '--loss'"),
        ("ablate --loss ''", "names no method"),
        ("ablate --loss rm,pfj", "did you mean pfi?"),
        ("ablate --loss rm --seeds 0,x", "--seeds takes whole numbers, each once\n  got    0,x"),
        ("ablate --loss rm --seeds ''", "--seeds takes whole numbers, each once"),
        ("ablate --loss rm --seeds 0,0", "--seeds takes whole numbers, each once"),
        ("ablate --loss rm --pairs schedule.epochs=1,2", "is not a key of student or teacher"),
        ("ablate --loss rm --pairs student.widht=8,16", "--set student.widht=8  student.widht is not a key"),
        ("ablate --loss rm digits/quikstart", "did you mean digits/quickstart?"),
        ("ablate --loss rm --executor locl", "did you mean local?"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_written(line: str, told: str, kdlab: Bench) -> None:
    code, out, err = kdlab(line)
    assert (code, out) == (2, "")
    assert told in err
    assert not kdlab.runs.folder.exists()


class TestRecipeOfTheFolder:
    @pytest.fixture
    def text(self) -> str:
        return (test_verbs.catalog.recipes()["digits/quickstart"].path).read_text()

    def test_is_taken_and_named(self, text: str, kdlab: Bench) -> None:
        Path("my.yaml").write_text(text)
        _, out, err = kdlab("ablate --loss rm --dry-run")
        assert err.startswith("recipe: my.yaml, the one in this folder\n")
        assert "ablate/my--rm  " in out

    def test_is_the_quickstart_where_there_is_none(self, kdlab: Bench) -> None:
        assert kdlab("ablate --loss rm --dry-run")[2].startswith("recipe: digits/quickstart, for none ")

    def test_must_be_named_where_there_are_several(self, text: str, kdlab: Bench) -> None:
        for name in ("my.yaml", "other.yml"):
            Path(name).write_text(text)
        code, _, err = kdlab("ablate --loss rm --dry-run")
        assert code == 2
        assert "known  my.yaml, other.yml" in err
        assert kdlab("ablate --loss rm --dry-run my.yaml")[0] == 0


class TestManyArms:
    def test_are_refused_where_nobody_can_be_asked(self, kdlab: Bench) -> None:
        code, _, err = kdlab(f"ablate --loss {MANY}")
        assert code == 2
        assert "error: this makes 32 arms, and nobody can be asked here\n" in err
        assert err.splitlines()[-1] == f"  fix    kdlab ablate --loss {MANY} -y"
        assert not kdlab.runs.folder.exists()

    def test_are_asked_about_with_the_number_of_pairs(
        self, kdlab: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        monkeypatch.setattr("kdlab.cli.screen.console.Screen.ask", lambda _, why: bool(asked.append(why)))
        code, _, err = kdlab(f"ablate --loss {MANY} --pairs student.width=8,16")
        assert (code, asked) == (130, ["this makes 32 arms for each of 2 pairs"])
        assert err.endswith("nothing was run\n")

    def test_are_shown_without_a_question(self, kdlab: Bench) -> None:
        assert "33 jobs" in kdlab(f"ablate --loss {MANY} --dry-run")[1]

    def test_sixteen_are_few(self, kdlab: Bench) -> None:
        assert kdlab(f"ablate --loss {MANY.rpartition(',')[0]}")[0] == 0


class TestPairs:
    def test_are_previewed_together_and_run_one_after_the_other(self, pairs: Pairs) -> None:
        code, out, err = pairs("ablate --loss rm --pairs student.width=8,16")
        assert code == 0
        names = [f"ablate/digits/quickstart--rm--student.width={width}" for width in (8, 16)]
        assert [line for line in err.splitlines() if line.startswith("plan ")] == [
            f"plan 7f3a  {name}  3 jobs, cost unknown on 2 cores" for name in names
        ]
        assert "2 pairs together: 5 jobs, cost unknown on 2 cores\n" in err
        assert [f"pair {number} of 2: {name}\n" in err for number, name in enumerate(names, 1)] == [True] * 2
        assert err.index("2 pairs together") < err.index("started") < err.index("pair 2 of 2")
        assert re.findall(r"student\.width=\d+, n=1", out) == [
            "student.width=8, n=1",
            "student.width=16, n=1",
        ]
        assert all(Path(f"runs/recipes/{name}.yaml").exists() for name in names)
        assert all(Path(f"results/{name}.md").exists() for name in names)

    def test_share_what_the_first_has_trained(self, pairs: Pairs) -> None:
        _, _, err = pairs("ablate --loss rm --pairs student.width=8,16")
        assert err.count("  teacher  started") == 1

    def test_go_on_after_a_failure_and_the_worst_code_counts(self, pairs: Pairs) -> None:
        pairs.ends = {"rm 8": "fail"}
        code, out, _ = pairs("ablate --loss rm --pairs student.width=8,16")
        assert code == 1
        assert "student.width=16, n=1" in out

    def test_end_at_the_first_failure_on_request(self, pairs: Pairs) -> None:
        pairs.ends = {"rm 8": "fail"}
        code, out, _ = pairs("ablate --loss rm --pairs student.width=8,16 --fail-fast")
        assert code == 1
        assert "student.width=16" not in out

    def test_nothing_follows_one_that_was_stopped(
        self, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: list[str] = []

        def stopped(screen: object, made: Prepared, *_: object, **__: object) -> int:
            begun.append(made.plan.recipe["name"])
            return 130

        monkeypatch.setattr("kdlab.cli.verbs.ablate.carry_out", stopped)
        assert pairs("ablate --loss rm --pairs student.width=8,16")[0] == 130
        assert len(begun) == 1

    def test_dry_run_as_json_holds_all_plans(self, pairs: Pairs) -> None:
        _, out, _ = pairs("ablate --loss rm --pairs student.width=8,16 --dry-run --json")
        found = json.loads(out)
        assert found.keys() == {"schema", "plans"}
        assert [Plan.from_dict(one).recipe["student"]["width"] for one in found["plans"]] == [8, 16]

    def test_of_one_are_the_same_as_an_override(self, pairs: Pairs) -> None:
        pairs("ablate --loss rm --pairs student.width=16")
        (written,) = Path("runs/recipes").rglob("*.yaml")
        before = written.read_bytes()
        pairs("ablate --loss rm --set student.width=16")
        assert (list(Path("runs/recipes").rglob("*.yaml")), written.read_bytes()) == ([written], before)


def test_an_expensive_ablation_is_refused_where_nobody_can_be_asked(kdlab: Bench) -> None:
    kdlab.cost_s, kdlab.gpus = 3 * 3600.0, 1
    code, _, err = kdlab("ablate --loss rm,pfi")
    assert code == 2
    assert "15 GPU-hours" in err
    assert err.splitlines()[-1] == "  fix    kdlab ablate --loss rm,pfi -y"


def test_a_failed_job_gives_1_and_the_command_again(kdlab: Bench) -> None:
    kdlab.ends = {"rm": "fail"}
    code, _, err = kdlab("ablate --loss rm")
    assert code == 1
    assert err.splitlines()[-1] == "retry: kdlab ablate --loss rm"


def test_json_is_an_event_a_line_and_then_the_table(kdlab: Bench) -> None:
    _, out, err = kdlab("ablate --loss rm --json")
    *events, table = map(json.loads, out.splitlines())
    assert {event["event"] for event in events} >= {"JobQueued", "JobFinished"}
    assert [row["arm"]["text"] for row in table["rows"]] == ["teacher", "baseline", "rm"]
    assert err == ""


@pytest.mark.parametrize(
    ("typed", "completed"), [("pf", ["pfi"]), ("rm,pf", ["rm,pfi"]), ("pfi,pf", []), ("rm,", None)]
)
def test_a_shell_completes_the_last_method(typed: str, completed: list[str] | None) -> None:
    found = [name for name, _ in method_names(typed)]
    if completed is None:
        assert {name.partition(",")[0] for name in found} == {"rm"} != set(found)
    else:
        assert found == completed
