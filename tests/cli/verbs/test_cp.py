"""`kdlab cp`: a recipe to change."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from kdlab import catalog
from kdlab.cli import app

QUICKSTART = "digits/quickstart"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def kdlab(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = app.main(shlex.split(line))
    return code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("file", "written"),
    [("mine.yaml", "mine.yaml"), ("recipes/a/", "recipes/a/quickstart.yaml"), (".", "quickstart.yaml")],
)
def test_a_copy_is_the_file_with_its_comments(
    file: str, written: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = kdlab(f"cp {QUICKSTART} {file}", capfd)
    assert code == 0
    assert err == f"written: {written}\nnext: kdlab plan {written}\n"
    assert Path(written).read_bytes() == catalog.recipes()[QUICKSTART].path.read_bytes()


def test_a_copy_is_made_of_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    latin = catalog.recipes()[QUICKSTART].path.read_bytes() + "# für Köche\n".encode("latin-1")
    Path("own.yaml").write_bytes(latin)
    code, _, err = kdlab("cp own.yaml 'my copy.yaml'", capfd)
    assert code == 0
    assert err.endswith("next: kdlab plan 'my copy.yaml'\n")
    assert Path("my copy.yaml").read_bytes() == latin


def test_a_copy_below_recipes_is_no_match_for_kdlab_s_own_name(capfd: pytest.CaptureFixture[str]) -> None:
    _, _, err = kdlab(f"cp {QUICKSTART} recipes/{QUICKSTART}.yaml", capfd)
    assert f"note: {QUICKSTART} without .yaml still means the one that comes with kdlab" in err
    assert err.endswith(f"next: kdlab plan recipes/{QUICKSTART}.yaml\n")


def test_a_copy_is_a_recipe_of_its_own_name(capfd: pytest.CaptureFixture[str]) -> None:
    kdlab(f"cp {QUICKSTART} mine.yaml", capfd)
    assert "mine " in kdlab("ls recipes", capfd)[1]
    assert kdlab("show mine --diff digits/quickstart", capfd)[2].startswith("the two are equal")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"cp {QUICKSTART} there.yaml", "there is such a file"),
        (f"cp {QUICKSTART} mine.txt", "a recipe's file ends in .yaml"),
        ("cp digits/quickstrat mine.yaml", "did you mean digits/quickstart?"),
    ],
)
def test_mistakes_are_told(line: str, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("there.yaml").write_text("mine")
    code, _, err = kdlab(line, capfd)
    assert code == 2
    assert told in err
    assert Path("there.yaml").read_text() == "mine"
