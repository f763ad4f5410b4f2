"""The catalog: what plugin files say of themselves, read without running them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from kdlab import catalog
from kdlab.catalog.options import Option, OptionType
from kdlab.errors import KdlabError
from kdlab.recipe.settings import DatasetSettings, MethodSettings

TAKES_X = "    def __init__(self, *, x: float = -1.0): ...\n"
METHOD = '''
"""Rank Mimicking: copy the teacher's ranking.

More about it.
"""
import a_package_that_does_not_exist

class RankMimicking(Method):
    """The method."""
    default_weight = 4
    needs = ("cls_maps", "assignment")
    requires_equal = ("classes", "priors")
    needs_when = {("rank", "loc"): ("boxes", "cls_maps"), ("quality", True): ("quality_maps",)}
    requires_equal_when = {("score", "logit"): ("head",)}

    def __init__(
        self,
        pair: Pair,
        *,
        score: Literal["sigmoid", "logit"] = "sigmoid",
        rank: Literal["cls", "loc"] = "cls",
        quality: bool = False,
        tau: float = 1,
        top: int | None = None,
        size: tuple[int, int] = (7, 7),
        name: str = "x",
    ) -> None:
        raise SystemExit
'''


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(dedent(text).lstrip())
    return folder


@pytest.mark.parametrize("name", ["a" * 5000, "b/" * 3000, "~nobody-of-this-name/x.py", "x\0.py"])
def test_what_can_be_no_file_names_no_config(name: str) -> None:
    assert catalog.config_file(name) is None


def test_method_file_is_read_without_being_imported(tmp_path: Path) -> None:
    (info,) = catalog.methods(write(tmp_path, rm=METHOD)).values()

    assert (info.key, info.path, info.default_weight) == ("rm", tmp_path / "rm.py", 4.0)
    assert info.summary == "Rank Mimicking: copy the teacher's ranking."
    assert info.needs == ("cls_maps", "assignment")
    assert info.requires_equal == ("classes", "priors")


def test_options_are_the_keyword_only_arguments_with_their_defaults(tmp_path: Path) -> None:
    options = catalog.methods(write(tmp_path, rm=METHOD))["rm"].options

    assert {name: option.default for name, option in options.items()} == {
        "score": "sigmoid",
        "rank": "cls",
        "quality": False,
        "tau": 1.0,
        "top": None,
        "size": (7, 7),
        "name": "x",
    }
    assert type(options["tau"].default) is float


def test_needs_grow_with_the_options_that_ask_for_them(tmp_path: Path) -> None:
    info = catalog.methods(write(tmp_path, rm=METHOD))["rm"]

    assert info.needs_for({}) == (("cls_maps", "assignment"), ("classes", "priors"))
    assert info.needs_for({"rank": "loc", "quality": True, "score": "logit"}) == (
        ("cls_maps", "assignment", "boxes", "quality_maps"),
        ("classes", "priors", "head"),
    )


def test_a_family_has_defaults_of_its_own(tmp_path: Path) -> None:
    text = METHOD.replace(
        "default_weight = 4",
        'default_weight = 4\n    defaults_for = {"fcos": {"weight": 2.0, "tau": 0.8}}',
    )
    info = catalog.methods(write(tmp_path, rm=text))["rm"]

    fcos, gfl = info.serving("fcos"), info.serving("gfl")
    assert (fcos.default_weight, fcos.options["tau"].default) == (2.0, 0.8)
    assert (gfl.default_weight, gfl.options["tau"].default) == (4.0, 1.0)


def test_options_without_effect_are_told_with_the_cause(tmp_path: Path) -> None:
    text = METHOD.replace(
        "default_weight = 4", 'default_weight = 4\n    unused_when = {("rank", "loc"): ("score", "tau")}'
    )
    info = catalog.methods(write(tmp_path, rm=text))["rm"]

    assert info.unused({"rank": "loc"}) == {"score": "rank: loc", "tau": "rank: loc"}
    assert info.unused({"rank": "cls"}) == {}


def test_numbers_have_limits_and_are_never_below_0_by_themselves(tmp_path: Path) -> None:
    text = METHOD.replace("default_weight = 4", 'default_weight = 4\n    limits = {"tau": (0.01, 5.0)}')
    options = catalog.methods(write(tmp_path, rm=text))["rm"].options

    assert options["tau"].check(5) == 5.0
    with pytest.raises(ValueError, match=r"must be a number from 0\.01 to 5$"):
        options["tau"].check(0)
    plain = catalog.methods(write(tmp_path, rm=METHOD))["rm"].options["tau"]
    with pytest.raises(ValueError, match=r"must be a number from 0$"):
        plain.check(-1)


def test_attributes_with_an_annotation_count_too(tmp_path: Path) -> None:
    annotated = 'default_weight: ClassVar[float] = 4\n    limits: dict[str, Any] = {"tau": (0.01, 5.0)}'
    text = METHOD.replace("default_weight = 4", annotated)
    plain = METHOD.replace("default_weight = 4", 'default_weight = 4\n    limits = {"tau": (0.01, 5.0)}')
    found = catalog.methods(write(tmp_path, a=text, b=plain))
    assert found["a"].options == found["b"].options
    assert found["a"].default_weight == 4


def test_base_and_private_files_are_no_plugins(tmp_path: Path) -> None:
    write(tmp_path, base="broken(", __init__="", _shared="x = 1", rm=METHOD)

    assert list(catalog.methods(tmp_path)) == ["rm"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("class A(Method):\n    default_weight = 1.0\n", "", "has no docstring"),
        ('"""A."""\n', "", "has 0 classes with the base `Method`"),
        ('"""A."""\nclass A(Method): ...\nclass B(Method): ...\n', "", "has 2 classes"),
        ('"""A."""\nclass A(Method): ...\n', ":2", "has no `default_weight`"),
        (
            '"""A."""\nclass A(Method):\n    default_weight = True\n',
            ":3",
            "`default_weight` must be a number",
        ),
        ('"""A."""\nclass A(Method):\n    default_weight = W\n', ":3", "must be written as a literal"),
        (
            '"""A."""\nclass A(Method):\n    default_weight = 1\n    needs = ("feats")\n',
            ":4",
            "a tuple of names",
        ),
        (
            '"""A."""\nclass A(Method):\n    default_weight = 1\n    needs_when = {("y", 1): ("feats",)}\n',
            ":4",
            "`needs_when` must be a dict {(option, one of its values): tuple of names}",
        ),
        (
            '"""A."""\nclass A(Method):\n    default_weight = 1\n    limits = {"x": (0, 1)}\n',
            ":4",
            "`limits` must be a dict {option: (lowest, highest)}",
        ),
        *(
            (
                f'"""A."""\nclass A(Method):\n    default_weight = 1\n    limits = {limits}\n{TAKES_X}',
                ":4",
                "`limits` must",
            )
            for limits in ('{"x": 0.5}', '("x",)', '{"x": (0, 1, 2)}', '{"x": ("0", "1")}')
        ),
        (
            f'"""A."""\nclass A(Method):\n    default_weight = 1\n{TAKES_X}',
            ":4",
            "the default of option x must be a number from 0",
        ),
        ('"""A."""\ndef f(:\n', ":2", "cannot be read as Python"),
    ],
)
def test_file_that_is_no_method_is_refused_by_name(tmp_path: Path, text: str, line: str, what: str) -> None:
    write(tmp_path, broken=text)

    with pytest.raises(KdlabError) as caught:
        catalog.methods(tmp_path)

    (fault,) = caught.value.faults
    assert fault.where == f"{tmp_path / 'broken.py'}{line}"
    assert what in fault.what


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ("x", "option x must be annotated"),
        ("x: dict[str, int] = {}", "option x must be annotated"),
        ("x: int = 0.5", "the default of option x must be a whole number"),
        ("x: int = f()", "the default of x must be written as a literal"),
        ("x: int", "option x has no default"),
    ],
)
def test_option_that_a_recipe_could_not_give_is_refused(tmp_path: Path, argument: str, what: str) -> None:
    init = f"    def __init__(self, pair, *, {argument}): ...\n"
    write(tmp_path, bad=f'"""A."""\nclass A(Method):\n    default_weight = 1\n{init}')

    with pytest.raises(KdlabError, match=what):
        catalog.methods(tmp_path)


def test_detectors_are_the_files_that_name_a_family(tmp_path: Path) -> None:
    write(tmp_path, gfl='"""GFL: joint scores."""\nFAMILY = GFL\n', sizing='"""Shared code."""\n')

    assert {key: info.summary for key, info in catalog.detectors(tmp_path).items()} == {
        "gfl": "GFL: joint scores."
    }


def test_backbones_are_the_names_that_their_files_say(tmp_path: Path) -> None:
    write(
        tmp_path,
        vgg='"""VGG."""\nclass VGG(Backbone):\n    names = ("vgg11", "vgg16")\n    width = 64\n',
        base='"""Shared code."""\n',
    )
    found = catalog.backbones(tmp_path)
    assert {name: (info.key, info.width, info.one_width) for name, info in found.items()} == {
        "vgg11": ("vgg11", 64, False),
        "vgg16": ("vgg16", 64, False),
    }


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("VGG = 3", "has 0 classes with the base `Backbone`"),
        ("class VGG(Backbone):\n    width = 64", "class VGG must say `names`"),
        (
            "class VGG(Backbone):\n    names = ('vgg',)\n    width = 2 ** BITS",
            "width must be written as a literal",
        ),
    ],
)
def test_a_backbone_that_does_not_say_what_it_is_is_refused(tmp_path: Path, body: str, what: str) -> None:
    write(tmp_path, vgg=f'"""VGG."""\n{body}\n')
    with pytest.raises(KdlabError, match=what):
        catalog.backbones(tmp_path)


def test_dataset_options_are_those_of_prepare_and_may_be_required(tmp_path: Path) -> None:
    write(tmp_path, coco='"""COCO."""\ndef prepare(folder=None, *, root: str, year: int = 2017): ...\n')

    options = catalog.datasets(tmp_path)["coco"].options

    assert options == {
        "root": Option("root", OptionType("str"), required=True),
        "year": Option("year", OptionType("int"), 2017),
    }


def test_dataset_without_prepare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KdlabError, match="has no function `prepare`"):
        catalog.datasets(write(tmp_path, coco='"""COCO."""\n'))


def test_executors_have_a_summary_and_the_options_of_their_class(tmp_path: Path) -> None:
    source = '''
    """Runs jobs in this process."""
    class Inline:
        def __init__(self, gpus=None, *, partition: str | None = None) -> None: ...
    '''
    write(tmp_path, inline=source)

    found = catalog.executors(tmp_path)["inline"]
    assert found.summary == "Runs jobs in this process."
    assert list(found.options) == ["partition"]


def test_executor_without_its_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path, inline='"""Runs jobs in this process."""\n')

    with pytest.raises(KdlabError, match="has no class Inline"):
        catalog.executors(tmp_path)


def test_recipes_are_named_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "quick.yaml").write_text(
        "\n  # Minutes on a CPU.\n# kdlab run digits/quick\na: 1\n"
    )
    (tmp_path / "bare.yaml").write_text("a: 1\n")

    found = {name: info.summary for name, info in catalog.recipes(tmp_path).items()}

    assert found == {"bare": "", "digits/quick": "Minutes on a CPU."}


def test_installed_recipes_go_before_a_folder_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "kdlab"
    monkeypatch.setattr(catalog, "PACKAGE", package)
    assert catalog.recipe_folder() == tmp_path / "recipes"

    (package / "recipes").mkdir(parents=True)
    assert catalog.recipe_folder() == package / "recipes"


def test_installed_numbers_go_before_those_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "kdlab"
    monkeypatch.setattr(catalog, "PACKAGE", package)
    assert catalog.reference_folder() == tmp_path / "results" / "reference"

    (package / "reference").mkdir(parents=True)
    assert catalog.reference_folder() == package / "reference"


INT, FLOAT = OptionType("int"), OptionType("float")


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        (INT, 3, 3),
        (FLOAT, 3, 3.0),
        (FLOAT, 1e-4, 1e-4),
        (OptionType("bool"), True, True),
        (OptionType("str"), "3", "3"),
        (OptionType("choice", choices=("a", 1)), 1, 1),
        (OptionType("optional", (INT,)), None, None),
        (OptionType("optional", (FLOAT,)), 2, 2.0),
        (OptionType("tuple", (INT, FLOAT)), [1, 2], (1, 2.0)),
        (OptionType("list", (FLOAT,)), [1, 2, 3], (1.0, 2.0, 3.0)),
    ],
)
def test_fitting_value_is_kept_in_the_type_that_was_asked_for(
    kind: OptionType, given: object, kept: object
) -> None:
    checked = Option("x", kind).check(given)

    assert checked == kept
    assert type(checked) is type(kept)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (INT, True, "must be a whole number"),
        (INT, 3.0, "must be a whole number"),
        (INT, "3", "must be a whole number"),
        (FLOAT, False, "must be a number"),
        (FLOAT, float("nan"), "must be a number"),
        (FLOAT, 10**400, "must be a number"),
        (OptionType("bool"), 1, "must be true or false"),
        (OptionType("str"), 3, "must be text"),
        (OptionType("choice", choices=("a", "b", True)), 1, "must be a, b or true"),
        (OptionType("choice", choices=("a",)), "b", "must be a"),
        (OptionType("optional", (INT,)), "x", "must be a whole number or null"),
        (OptionType("tuple", (INT, INT)), [1], r"must be a list \[a whole number, a whole number\]"),
        (OptionType("list", (FLOAT,)), [1, "x"], "must be a list, each a number"),
    ],
)
def test_value_of_another_type_is_refused(kind: OptionType, given: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Option("x", kind).check(given)


def test_every_plugin_of_the_package_can_be_read() -> None:
    for plugins in (
        catalog.methods(),
        catalog.detectors(),
        catalog.backbones(),
        catalog.datasets(),
        catalog.executors(),
    ):
        assert all(key == info.key and info.summary for key, info in plugins.items())
    assert {"rm", "pfi"} <= catalog.methods().keys()
    assert "digits/quickstart" in catalog.recipes()


def test_no_option_hides_behind_a_setting_of_the_recipe() -> None:
    for settings, plugins in ((MethodSettings, catalog.methods()), (DatasetSettings, catalog.datasets())):
        for info in plugins.values():
            assert not info.options.keys() & settings.model_fields.keys(), info.path


def test_catalog_brings_no_heavy_package() -> None:
    code = "import sys, kdlab.catalog; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    foreign = set(loaded) - set(sys.stdlib_module_names) - {"kdlab"}
    assert not foreign & {"torch", "mmdet", "numpy", "pydantic", "yaml", "rich", "typer"}


def test_a_familys_own_sizes_are_read_from_its_file() -> None:
    found = catalog.detectors()
    assert (found["faster_rcnn"].strides, found["faster_rcnn"].head_convs) == ((4, 8, 16, 32, 64), 0)
    assert (found["gfl"].strides, found["gfl"].head_convs) == ((8, 16, 32, 64, 128), 4)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet/retinanet_r50_fpn_1x_coco",
        "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
        "retinanet/retinanet_r50_fpn_1x_coco.py",
    ],
)
def test_configs_of_mmdet_are_found_by_name(name: str) -> None:
    found = catalog.config_file(name)
    assert found is not None
    assert found.name == "retinanet_r50_fpn_1x_coco.py"


def test_configs_are_found_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("model = {}")
    assert catalog.config_file("mine.py") == tmp_path / "mine.py"
    assert catalog.config_file("other.py") is None
    assert catalog.config_file("gfl") is None


def test_a_family_s_weight_scales_those_under_options() -> None:
    pfi = catalog.methods()["pfi"]
    own, gfl = (
        {r: one.weight_for({"region": r}) for r in ("prediction", "whole")}
        for one in (pfi, pfi.serving("gfl"))
    )
    assert gfl["prediction"] / gfl["whole"] == pytest.approx(own["prediction"] / own["whole"])
    assert gfl["prediction"] > own["prediction"]
