"""Size of the code, as few numbers: `python -m tests.benchmarks.stats [CHECKOUT] [--suite] [--report]`.

How each is read:

- Lines: all lines of all files `kdlab/**/*.py`.
- Import closure of `kdlab run`: the verb's module and that of the process of a job, and what they import
  within kdlab, inside functions too, with the packages above each module. Found by `ast`, so plugins that
  are looked up by name are not in it, and imports for type checkers are. At 8dd8aad: 117 files, 160 classes.
- Branches per 100 statements: the sum of the functions' cyclomatic complexities over the number of
  statements in their bodies. A complexity is 1 and one for each if, elif, loop, except, with, assert, match
  case, conditional expression, `and` or `or`, and each for and if of a comprehension. A docstring is no
  statement; a function inside another one is a function of its own. At 8dd8aad: 73.
- Private functions used once: functions and methods named `_name`, no dunders, whose name their own file
  mentions once besides the definition; as a share of all functions. At 8dd8aad: 29 %.
- Ids changed by a no-op key: a key with a default that does nothing is added to the class `Schedule` of a
  copy, and both plan `digits/quickstart`. At 8dd8aad: 5 of 5.
- Stops: the symbols that a value passes, listed by hand below; one that is gone is an error.
- Times: as given, or measured here (`--suite`, `--report`); say how busy the machine was.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
ENTRIES = ("kdlab.cli.verbs.run", "kdlab.cli.run", "kdlab.training.job")
KEY = "does_nothing: float | None = None"
RECIPE = "digits/quickstart"

# "file:symbol" of this tree, in the order in which the value passes them
STOPS: dict[str, list[str]] = {
    "stops of `pfi.weight` from YAML to the loss": [
        "kdlab/recipe/yaml_reader.py:read",
        "kdlab/recipe/loader.py:method",
        "kdlab/planning/jobs.py:_student",
        "kdlab/jobs/job.py:Job.to_dict",
        "kdlab/jobs/spec.py:read_spec",
        "kdlab/training/trainer.py:Trainer",
        "kdlab/training/weighting.py:Weight.at",
    ],
    "stops of an AP to its cell": [
        "kdlab/training/evaluation.py:CocoMetric.of_all",
        "kdlab/training/loop.py:TrainingLoop._keep",
        "kdlab/training/trainer.py:Trainer.run",
        "kdlab/jobs/result.py:JobResult.write",
        "kdlab/jobs/result.py:JobResult.read",
        "kdlab/jobs/status.py:of_plan",
        "kdlab/reporting/arms.py:arms_of",
        "kdlab/reporting/columns.py:_ap",
    ],
}
# of the tree that 8dd8aad was, counted by hand in a review
STOPS_BEFORE = {
    "stops of `pfi.weight` from YAML to the loss": 13,
    "stops of an AP to its cell": 15,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
ONE_BRANCH = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case,
              ast.Assert, ast.With, ast.AsyncWith)  # fmt: skip


class GoneError(Exception):
    """A stop is listed whose symbol is not there."""


def sources(root: Path) -> dict[str, ast.Module]:
    """Syntax trees of all modules of kdlab, by dotted name."""
    trees = {}
    for path in sorted((root / "kdlab").rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text())
    return trees


def lines(root: Path) -> int:
    """Lines of all files of kdlab."""
    return sum(len(path.read_text().splitlines()) for path in (root / "kdlab").rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[str]:
    """All dotted names that may be modules which a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(trees: dict[str, ast.Module], entries: Iterable[str]) -> set[str]:
    """Modules that these import, they themselves included."""
    found: set[str] = set()
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name not in trees or name in found:
            continue
        found.add(name)
        todo += [name.rpartition(".")[0], *imported(trees[name])]
    return found


def classes(tree: ast.Module) -> int:
    """Class definitions of a file."""
    return sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree))


def functions(tree: ast.Module) -> list[Function]:
    """All functions and methods of a file, those inside others too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def body(function: Function) -> Iterator[ast.AST]:
    """Nodes of a function's body, without its docstring and the insides of functions in it."""
    todo: list[ast.AST] = list(function.body[ast.get_docstring(function) is not None :])
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, Function):
            todo += ast.iter_child_nodes(node)


def complexity(function: Function) -> int:
    """Cyclomatic complexity."""
    count = 1
    for node in body(function):
        if isinstance(node, ONE_BRANCH):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count


def statements(function: Function) -> int:
    """Statements of a function's body, nested ones too."""
    return sum(isinstance(node, ast.stmt) for node in body(function))


def used_once(tree: ast.Module) -> list[str]:
    """Private functions of a file that it mentions once."""
    mentions: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            mentions[node.id] += 1
        elif isinstance(node, ast.Attribute):
            mentions[node.attr] += 1
    names = [function.name for function in functions(tree)]
    return [name for name in names if re.match("_(?!_)", name) and mentions[name] == 1]


def with_key(text: str, name: str = "Schedule") -> str | None:
    """A file's text with one more key in the class of that name; None where there is no such class."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            last = max(part.end_lineno or 0 for part in node.body if isinstance(part, ast.AnnAssign))
            rows = text.splitlines(keepends=True)
            return "".join([*rows[:last], f"    {KEY}\n", *rows[last:]])
    return None


def ids(root: Path, cache: Path) -> set[str]:
    """Ids of all jobs that a checkout plans for the recipe."""
    command = [sys.executable, "-m", "kdlab", "plan", RECIPE, "--json"]
    places = {"PYTHONPATH": str(root), "KDLAB_CACHE": str(cache), "KDLAB_RUNS": str(cache / "runs")}
    done = subprocess.run(command, cwd=root, env=os.environ | places, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"kdlab plan {RECIPE} failed in {root}:\n{done.stderr}")
    return {planned["job"]["id"] for planned in json.loads(done.stdout)["jobs"]}


def changed_ids(root: Path) -> tuple[int, int]:
    """Ids that change when `Schedule` gets a key that does nothing, and ids there are."""
    with tempfile.TemporaryDirectory() as name:
        copy, cache = Path(name) / "copy", Path(name) / "cache"
        for part in ("kdlab", "recipes", "results"):
            shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        changed = {path: with_key(path.read_text()) for path in (copy / "kdlab").rglob("*.py")}
        if not any(changed.values()):
            raise SystemExit(f"no class Schedule in {root / 'kdlab'}")
        before = ids(copy, cache)
        for path, text in changed.items():
            if text is not None:
                path.write_text(text)
        return len(before - ids(copy, cache)), len(before)


def check_stops(root: Path, stops: Sequence[str]) -> None:
    """Raise where a stop's file or symbol is gone."""
    for stop in stops:
        file, _, symbol = stop.partition(":")
        if not (root / file).is_file():
            raise GoneError(f"{stop}: there is no file {file}")
        inside: Sequence[ast.AST] = ast.parse((root / file).read_text()).body
        for name in symbol.split("."):
            nodes = [node for node in inside if name in _defined(node)]
            if not nodes:
                raise GoneError(f"{stop}: there is no {name}")
            inside = getattr(nodes[0], "body", [])


def _defined(node: ast.AST) -> set[str]:
    """Names that a statement of a module or class gives."""
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def suite_min(root: Path) -> float:
    """Minutes of the README's test command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "3"], cwd=root, check=True)
    return (time.perf_counter() - began) / 60


def report_s(root: Path) -> float:
    """Seconds of `kdlab report` over 10,000 jobs: the last line of the benchmark."""
    command = [sys.executable, "-m", "tests.benchmarks.reporting"]
    places = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=places, check=True, stdout=subprocess.PIPE, text=True)
    return float(re.findall(r"([\d.]+) s\b(?!\))", done.stdout.splitlines()[-1])[0])


def rows(root: Path) -> Iterator[tuple[str, str, str]]:
    """Measure, value and target of everything but times."""
    for name, stops in STOPS.items():
        if root == HERE:
            check_stops(root, stops)
        count = len(stops) if root == HERE else STOPS_BEFORE[name]
        target = "<= 7" if "pfi" in name else "<= 8"
        yield name, str(count or "not listed"), target
        yield from (("  " + stop, "", "") for stop in stops if root == HERE)
    trees = sources(root)
    run = closure(trees, ENTRIES)
    every = [function for tree in trees.values() for function in functions(tree)]
    once = [name for tree in trees.values() for name in used_once(tree)]
    density = 100 * sum(map(complexity, every)) / sum(map(statements, every))
    changed, there = changed_ids(root)
    yield "lines of kdlab/", f"{lines(root):,}", "<= 25,500"
    yield "classes that `kdlab run` imports", str(sum(classes(trees[name]) for name in run)), "<= 110"
    yield "files that `kdlab run` imports", str(len(run)), ""
    yield "branches per 100 statements", f"{density:.0f}", "<= 55"
    yield "private functions used once", f"{100 * len(once) / len(every):.0f} %", "<= 15 %"
    yield "ids changed by a no-op key", f"{changed} of {there}", "none"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=HERE)
    parser.add_argument("--suite", nargs="?", type=float, const=-1, metavar="MINUTES")
    parser.add_argument("--report", nargs="?", type=float, const=-1, metavar="SECONDS")
    told = parser.parse_args(argv)
    root = told.checkout.resolve()
    print(f"| {root.name} | value | target |\n|---|---|---|")
    for name, value, target in rows(root):
        print(f"| {name} | {value} | {target} |", flush=True)
    if told.suite is not None:
        minutes = suite_min(root) if told.suite < 0 else told.suite
        print(f"| suite, two cores | {minutes:.1f} min | <= 5 min |", flush=True)
    if told.report is not None:
        seconds = report_s(root) if told.report < 0 else told.report
        print(f"| `kdlab report` over 10,000 jobs | {seconds:.1f} s | <= 2 s |", flush=True)


if __name__ == "__main__":
    main()
