from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.benchmarks import stats


def function(text: str) -> stats.Function:
    return stats.functions(ast.parse(text))[0]


@pytest.mark.parametrize(
    ("text", "complexity"),
    [
        ("def f():\n    pass", 1),
        ("def f():\n    if a:\n        pass\n    elif b:\n        pass\n    else:\n        pass", 3),
        ("def f():\n    for a in b:\n        while c:\n            pass", 3),
        ("def f():\n    try:\n        pass\n    except A:\n        pass\n    except B:\n        pass", 3),
        ("def f():\n    return a and b and c or d", 4),
        ("def f():\n    return a if b else c", 2),
        ("def f():\n    return [a for b in c for d in b if d if a]", 5),
        ("def f():\n    match a:\n        case 1:\n            pass\n        case _:\n            pass", 3),
        ("def f():\n    assert a\n    with b:\n        pass", 3),
        ("def f():\n    def g():\n        if a:\n            pass\n    return g", 1),
    ],
)
def test_complexity(text: str, complexity: int) -> None:
    assert stats.complexity(function(text)) == complexity


def test_statements_are_nested_ones_too_but_no_docstring() -> None:
    assert stats.statements(function('def f():\n    "Name."\n    if a:\n        b()\n    return 1')) == 3


def test_a_private_function_is_used_once_when_its_file_mentions_it_once() -> None:
    text = (
        "def _once(): pass\ndef _twice(): pass\ndef _never(): pass\ndef public(): pass\n"
        "class A:\n    def _method(self): pass\n    def __len__(self): return self._method()\n"
        "_once()\n_twice(key=_twice)\npublic()\n"
    )
    assert stats.used_once(ast.parse(text)) == ["_once", "_method"]


def test_the_closure_follows_imports_inside_functions_and_stays_in_kdlab(tmp_path: Path) -> None:
    files = {
        "kdlab/__init__.py": "",
        "kdlab/a.py": "import os\ndef f():\n    from kdlab.part import b\n",
        "kdlab/part/__init__.py": "import kdlab.c",
        "kdlab/part/b.py": "class B: pass",
        "kdlab/c.py": "class C:\n    class D: pass\n",
        "kdlab/other.py": "class E: pass",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    trees = stats.sources(tmp_path)
    found = stats.closure(trees, ["kdlab.a"])
    assert found == {"kdlab", "kdlab.a", "kdlab.part", "kdlab.part.b", "kdlab.c"}
    assert sum(stats.classes(trees[name]) for name in found) == 3
    assert stats.lines(tmp_path) == 8


def test_a_key_is_added_behind_the_last_one() -> None:
    text = "class Schedule(Settings):\n    epochs: int\n    lr: float = 1\n\n    def f(self):\n        pass\n"
    keyed = stats.with_key(text)
    assert keyed is not None
    assert keyed.splitlines()[2:4] == ["    lr: float = 1", f"    {stats.KEY}"]
    assert stats.with_key("class Model:\n    width: int\n") is None


@pytest.mark.parametrize("gone", ["a.py:Box.width", "a.py:Box.volume.x", "a.py:size", "b.py:Box"])
def test_a_stop_that_is_gone_is_an_error(tmp_path: Path, gone: str) -> None:
    (tmp_path / "a.py").write_text("LIMIT = 1\nclass Box:\n    height: int\n    def volume(self): pass\n")
    stats.check_stops(tmp_path, ["a.py:LIMIT", "a.py:Box", "a.py:Box.height", "a.py:Box.volume"])
    with pytest.raises(stats.GoneError, match=gone):
        stats.check_stops(tmp_path, [gone])


@pytest.mark.parametrize("value", stats.STOPS)
def test_all_listed_stops_exist(value: str) -> None:
    stats.check_stops(stats.HERE, stats.STOPS[value])
