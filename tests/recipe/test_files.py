from __future__ import annotations

from pathlib import Path

import pytest

from kdlab import catalog
from kdlab.errors import UsageError
from kdlab.recipe.document import Document
from kdlab.recipe.files import command_of, derived, find, of_folder, own, shareable

RECIPE = "dataset: {name: digits}\nstudent: {detector: gfl}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    return tmp_path


def written(name: str) -> Path:
    path = derived(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(RECIPE)
    return path


def test_derived_recipe_is_found_by_its_name_and_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("ablate/digits/a--rm")
    assert path == Path("runs/recipes/ablate/digits/a--rm.yaml")
    assert find("ablate/digits/a--rm") == find(str(path)) == ("ablate/digits/a--rm", path)
    monkeypatch.setenv("KDLAB_RUNS", "elsewhere")
    name, _ = find(str(path))
    assert name == "runs/recipes/ablate/digits/a--rm", "of other runs it is a file like any other"


def test_two_files_of_one_name_are_two_recipes(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Their results and their experiment carry the name."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (here / "digits").mkdir()
    (here / "a").mkdir()
    files = [
        *(Path(name) for name in ("mc.yaml", "mc.yml", "a/mc.yaml", "digits/quickstart.yaml")),
        elsewhere / "mc.yaml",
    ]
    for path in files:
        path.write_text(RECIPE)
    names = [find(str(path))[0] for path in files]
    assert names[:3] == ["mc", "mc.yml", "a/mc"]
    assert len({*names, "digits/quickstart"}) == 6
    assert names[-1].startswith("mc-")


def test_command_is_quoted_for_a_shell() -> None:
    name = "a; rm -rf b $(c).yaml"
    assert command_of("a", Document(name, "dataset:")) == f"kdlab run '{name}'"
    made = Document("runs/recipes/ablate/a.yaml", "# A\n# kdlab ablate --loss rm; rm -rf b\n")
    assert command_of("ablate/a", made) == "kdlab ablate --loss 'rm;' rm -rf b"


def test_recipe_of_the_catalog_goes_before_a_derived_one() -> None:
    written("digits/quickstart")
    assert find("digits/quickstart")[1] == catalog.recipes()["digits/quickstart"].path


@pytest.mark.parametrize("name", ["../recipes/ablate/a", "../../my", "ablate/../ablate/a"])
def test_name_does_not_lead_out_of_the_folder(name: str, here: Path) -> None:
    written("ablate/a")
    (here / "my.yaml").write_text(RECIPE)
    with pytest.raises(UsageError, match="is not a recipe"):
        find(name)


@pytest.mark.parametrize("text", [RECIPE, RECIPE + "arms: [", '\ufeff# x\n"dataset" : {}\nstudent:\n'])
def test_recipe_of_a_folder_is_the_one_file_with_its_sections(text: str, here: Path) -> None:
    assert of_folder(here) is None
    (here / "my.yml").write_text(text)
    (here / "other.yaml").write_text("services: {dataset: {}}\n")
    (here / "notes.txt").write_text(RECIPE)
    (here / "folder.yaml").mkdir()
    assert of_folder(here) == here / "my.yml"


def test_several_recipes_of_a_folder_are_named(here: Path) -> None:
    for name in ("b.yaml", "a.yaml"):
        (here / name).write_text(RECIPE)
    with pytest.raises(UsageError, match=r"known  a\.yaml, b\.yaml(.|\n)*fix    name one of them: a\.yaml"):
        of_folder(here)


def test_command_names_what_was_set_and_no_path_of_this_machine(tmp_path: Path) -> None:
    overrides = ["seeds=[0, 1]", f"dataset.root={tmp_path}", "init=https://a.b/c.pth"]
    assert command_of("coco/a", Document("a.yaml", "# A pair.\ndataset:"), overrides) == (
        "kdlab run a.yaml --set 'seeds=[0, 1]' --set dataset.root=PATH --set init=https://a.b/c.pth"
    )


def test_command_of_a_derived_recipe_is_the_one_that_derived_it() -> None:
    text = "# A pair; ablation of rm\n# kdlab ablate --loss rm a\n# or kdlab run ablate/a--rm\n"
    document = Document("runs/recipes/ablate/a--rm.yaml", text)
    assert command_of("ablate/a--rm", document) == "kdlab ablate --loss rm a"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dataset.root=/data/x=y", "dataset.root=PATH"),
        ("a='/home/me'", "a=PATH"),
        ("dataset={root: /home/me}", "dataset=PATH"),
        ("init=https://a.b/c.pth", "init=https://a.b/c.pth"),
        ("schedule.lr=1e-3", "schedule.lr=1e-3"),
        ("/home/me/a.yaml", "PATH"),
        ("recipes/a.yaml", "recipes/a.yaml"),
    ],
)
def test_paths_of_this_machine_are_not_shown(text: str, shown: str) -> None:
    assert shareable(text) == shown


def test_a_recipe_with_a_slip_in_a_section_is_still_the_one_of_its_folder(here: Path) -> None:
    (here / "mine.yaml").write_text("dataset: {name: digits}\nstudnet: {detector: gfl}\n")
    assert of_folder(here) == here / "mine.yaml"


def test_recipes_of_the_working_folder_are_found_by_name(here: Path) -> None:
    for name in ("mine.yaml", "recipes/mine.yaml", "recipes/cells/wide.yaml"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f"# {name}\n{RECIPE}")
    (here / "config.yaml").write_text("a: 1\n")
    assert own() == {"mine": Path("mine.yaml"), "cells/wide": Path("recipes/cells/wide.yaml")}
    assert find("mine") == ("mine", Path("mine.yaml"))
    assert find("cells/wide") == ("recipes/cells/wide", Path("recipes/cells/wide.yaml"))
    with pytest.raises(UsageError, match="did you mean cells/wide"):
        find("cells/wid")


def test_the_catalog_goes_before_the_working_folder(here: Path) -> None:
    (here / "recipes/digits").mkdir(parents=True)
    (here / "recipes/digits/quickstart.yaml").write_text(RECIPE)
    assert find("digits/quickstart")[1] == catalog.recipes()["digits/quickstart"].path


def test_the_folder_of_the_catalog_is_not_listed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(catalog.recipe_folder().parent)
    assert own() == {}
