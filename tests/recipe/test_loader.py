"""Recipes: what they resolve to, and how each fault is told."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kdlab import catalog
from kdlab.errors import UsageError
from kdlab.recipe import loader as recipe
from kdlab.recipe.loader import Recipe

PLUGINS = {
    "methods/rm.py": '''
        """Rank Mimicking: copy the teacher's ranking."""
        class RankMimicking(Method):
            default_weight = 4.0
            defaults_for = {"gfl": {"weight": 3.0, "tau": 2.0}}
            unused_when = {("rank", "loc"): ("quality",)}
            def __init__(
                self, *, rank: Literal["cls", "loc", "both"] = "cls", tau: float = 1, quality: bool = False
            ): ...
    ''',
    "methods/pfi.py": '''
        """Prediction-guided Feature Imitation: imitate features where predictions differ."""
        class PFI(Method):
            default_weight = 1.5
    ''',
    "detectors/retinanet.py": '"""RetinaNet: anchors."""\nFAMILY = RetinaNet\n',
    "detectors/faster_rcnn.py": '''
        """Faster R-CNN: proposals."""
        STRIDES = (4, 8, 16, 32, 64)
        HEAD_CONVS = 0
        FAMILY = FasterRCNN
    ''',
    "detectors/gfl.py": '"""GFL: joint scores."""\nFAMILY = GFL\n',
    "backbones/resnet.py": '''
        """ResNet."""
        class ResNet(Backbone):
            names = ("resnet18", "resnet50", "resnet101")
            width = 64
    ''',
    "backbones/resnext.py": '''
        """ResNeXt."""
        class ResNeXt(Backbone):
            names = ("resnext101_64x4d",)
            width = 64
            one_width = True
    ''',
    "backbones/swin.py": '''
        """Swin."""
        class Swin(Backbone):
            names = ("swin_t",)
            width = 96
            width_step = 32
    ''',
    "datasets/digits.py": '''
        """Digits."""
        def prepare(*, image_px: int = 80, size: tuple[int, int] = (1, 3)): ...
    ''',
    "datasets/coco.py": '"""COCO."""\ndef prepare(*, root: str): ...\n',
    "tracking/mlflow.py": '"""MLflow."""\n',
    "tracking/csv.py": '"""CSV files."""\n',
    "recipes/digits/quickstart.yaml": """
        # A small pair.
        # kdlab run digits/quickstart
        dataset: {name: digits}
        student: {detector: gfl}
        arms: {baseline: {}}
    """,
}

FULL = """
    # R101 to R50 on digits.
    dataset: {name: digits, image_px: 64, flip: 0}
    teacher: {detector: retinanet, backbone: resnet101, seed: 3}
    student: {detector: retinanet}
    schedule: {preset: 2x, batch_size: 8}
    methods:
      rm: {weight: 16, rank: both}
      pfi: {}
    arms:
      baseline: {}
      rm: {rm: {}}
      rm+pfi: {rm: {weight: 2}, pfi: {}}
    seeds: [0, 1, 2]
    resources: {workers: 4}
"""

ARMS = """arms:
  baseline: {}
  rm: {rm: {}}
  rm+pfi: {rm: {weight: 2}, pfi: {}}
"""

Load = Callable[..., Recipe]
Told = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package with a few small plugins in place of the real one."""
    folder = tmp_path_factory.mktemp("package")
    for name, text in PLUGINS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text).lstrip())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "PACKAGE", folder)
        yield folder


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a text as the recipe `my.yaml` of the current folder."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str | bytes, *overrides: str) -> Recipe:
        content = text if isinstance(text, bytes) else dedent(text).lstrip().encode()
        (tmp_path / "my.yaml").write_bytes(content)
        return recipe.load("my.yaml", overrides)

    return load_text


@pytest.fixture
def told(load: Load) -> Told:
    """What a person reads of a faulty recipe."""

    def errors_of(text: str | bytes, *overrides: str) -> str:
        with pytest.raises(UsageError) as caught:
            load(text, *overrides)
        return str(caught.value)

    return errors_of


def with_line(number: int, line: str) -> str:
    """`FULL` with another line in that place, counted as in messages."""
    lines = dedent(FULL).lstrip().splitlines()
    lines[number - 1] = line
    return "\n".join(lines)


# What a recipe resolves to.


def test_everything_that_is_left_out_gets_its_default(load: Load) -> None:
    made = load("dataset: {name: digits}\nstudent: {detector: gfl}\narms: {baseline: {}}\n")

    assert made.dataset.options == {"image_px": 80, "size": (1, 3)}
    assert (made.student.backbone, made.student.strides) == ("resnet50", (8, 16, 32, 64, 128))
    assert (made.teacher, made.title, made.name, made.seeds) == (None, "", "my", (0,))
    assert made.schedule.epochs == 12
    assert made.resources.checkpoint_minutes == 10.0


def test_what_is_written_is_kept(load: Load) -> None:
    made = load(FULL)

    assert made.title == "R101 to R50 on digits."
    assert made.path == "my.yaml"
    assert made.dataset.model_dump() == {
        "name": "digits", "options": {"image_px": 64, "size": (1, 3)}, "scale": None, "flip": 0.0,
        "broken_images": "stop", "augment": (), "augment_stop": 0,
    }  # fmt: skip
    assert made.teacher is not None
    assert (made.teacher.backbone, made.teacher.seed) == ("resnet101", 3)
    assert (made.seeds, made.resources.workers) == ((0, 1, 2), 4)


def test_preset_fills_the_schedule_under_explicit_keys(load: Load) -> None:
    schedule = load(FULL).schedule

    assert (schedule.preset, schedule.epochs, schedule.batch_size, schedule.lr) == ("2x", 24, 8, 0.01)
    assert schedule.milestones == (16 / 24, 22 / 24)
    assert (schedule.optimizer, schedule.momentum, schedule.weight_decay) == ("sgd", 0.9, 1e-4)


def test_adamw_has_its_own_weight_decay(load: Load) -> None:
    assert load(FULL, "schedule.optimizer=adamw").schedule.weight_decay == 0.05
    assert load(FULL, "schedule.optimizer=adamw", "schedule.weight_decay=0").schedule.weight_decay == 0.0


def test_300e_is_rtmdet_s_schedule(load: Load) -> None:
    schedule = load(with_line(5, "schedule: {preset: 300e}")).schedule
    assert (schedule.epochs, schedule.batch_size, schedule.lr, schedule.decay) == (
        300,
        256,
        0.004,
        "flat_cosine",
    )
    assert (schedule.weight_decay, schedule.decay_norms, schedule.ema) == (0.05, False, 2e-4)
    assert schedule.milestones == ()


def test_cosine_drops_the_milestones_of_the_preset(load: Load) -> None:
    assert load(FULL, "schedule.decay=cosine").schedule.milestones == ()


def test_teacher_without_schedule_has_that_of_the_recipe(load: Load) -> None:
    made = load(FULL)

    assert made.teacher is not None
    assert made.teacher.schedule == made.schedule


def test_schedule_of_the_teacher_overrides_single_keys(load: Load) -> None:
    made = load(FULL, "teacher.schedule={epochs: 3, optimizer: adamw}")

    assert made.teacher is not None
    assert (made.teacher.schedule.epochs, made.teacher.schedule.batch_size) == (3, 8)
    assert made.teacher.schedule.weight_decay == 0.05
    assert made.schedule.epochs == 24


def test_iterations_take_the_place_of_a_preset_s_epochs(load: Load) -> None:
    schedule = load(FULL, "schedule.iterations=90000").schedule
    assert (schedule.preset, schedule.epochs, schedule.iterations) == ("2x", None, 90_000)
    assert load(FULL, "schedule.iterations=null").schedule.epochs == 24


@pytest.mark.parametrize(
    ("recipe", "teacher", "lengths"),
    [("iterations: 7", "epochs: 3", (3, None)), ("epochs: 3", "iterations: 7", (None, 7)),
     ("iterations: 7", "lr: 1", (None, 7))],
)  # fmt: skip
def test_a_teacher_s_own_length_takes_the_place_of_the_recipe_s(
    load: Load, recipe: str, teacher: str, lengths: tuple[int | None, int | None]
) -> None:
    text = with_line(5, f"schedule: {{preset: custom, {recipe}, batch_size: 8, lr: 1, optimizer: sgd}}")
    made = load(text, f"teacher.schedule={{{teacher}}}")

    assert made.teacher is not None
    assert (made.teacher.schedule.epochs, made.teacher.schedule.iterations) == lengths


def test_preset_of_the_teacher_starts_afresh(load: Load) -> None:
    made = load(FULL, "teacher.schedule.preset=1x")

    assert made.teacher is not None
    assert (made.teacher.schedule.epochs, made.teacher.schedule.batch_size) == (12, 16)


def test_cosine_teacher_does_not_inherit_milestones(load: Load) -> None:
    made = load(FULL, "schedule.milestones=[0.5]", "teacher.schedule.decay=cosine")

    assert made.teacher is not None
    assert (made.teacher.schedule.milestones, made.schedule.milestones) == ((), (0.5,))


def test_arm_takes_the_settings_of_methods_and_overrides_them(load: Load) -> None:
    arms = load(FULL).arms

    assert list(arms) == ["baseline", "rm", "rm+pfi"]
    assert arms["baseline"] == {}
    assert (arms["rm"]["rm"].weight, arms["rm+pfi"]["rm"].weight) == (16.0, 2.0)
    assert arms["rm+pfi"]["rm"].options == {"rank": "both", "tau": 1.0, "quality": False}


def test_weight_defaults_to_that_of_the_method(load: Load) -> None:
    assert load(FULL).arms["rm+pfi"]["pfi"].weight == 1.5


def test_arm_may_say_in_brackets_what_is_varied(load: Load) -> None:
    name = "rm[rank=both,quality=true]+pfi[weight=2.5]"
    text = f"{dedent(FULL)}arms:\n  {name}: {{rm: {{rank: both, quality: true}}, pfi: {{}}}}\n"
    arm = load(text.replace(ARMS, ""), f"arms.{name}.pfi.weight=2.5").arms[name]
    assert (arm["rm"].options["quality"], arm["pfi"].weight) == (True, 2.5)


def test_two_instances_of_one_method_have_settings_of_their_own(load: Load) -> None:
    arm = load(FULL, "arms.two={rm@a: {tau: 2}, rm@b: {}}").arms["two"]

    assert {key: (entry.method, entry.options["tau"]) for key, entry in arm.items()} == {
        "rm@a": ("rm", 2.0),
        "rm@b": ("rm", 1.0),
    }


@pytest.mark.parametrize(("written", "read"), [("1e-4", 1e-4), ("1E5", 1e5), (".5e-3", 5e-4), ("2", 2.0)])
def test_number_in_any_usual_spelling_is_a_number(load: Load, written: str, read: float) -> None:
    assert load(FULL, f"schedule.lr={written}").schedule.lr == read


def test_recipe_is_frozen(load: Load) -> None:
    made = load(FULL)

    with pytest.raises(ValidationError, match="frozen"):
        made.seeds = (1,)  # type: ignore[misc]


def test_equal_recipes_give_equal_json(load: Load) -> None:
    assert json.dumps(load(FULL).to_dict()) == json.dumps(load(FULL).to_dict())
    assert load(FULL).to_dict()["arms"]["rm"]["rm"]["options"]["rank"] == "both"


def test_name_of_the_catalog_and_path_give_the_same_recipe(package: Path) -> None:
    by_name, by_path = (
        recipe.load(given) for given in ("digits/quickstart", str(package / "recipes/digits/quickstart.yaml"))
    )

    assert by_name == by_path
    assert (by_name.name, by_name.title) == ("digits/quickstart", "A small pair.")


# How faults are told.


def test_unknown_method_is_told_with_line_known_ones_and_a_fix(told: Told) -> None:
    assert told(with_line(11, "  rm: {rank_mimic: {}}")) == dedent("""\
        error: my.yaml:11  arms.rm.rank_mimic is not a method
          got    rank_mimic
          known  pfi, rm
          fix    did you mean rm?   see: kdlab ls methods""")


def test_unknown_key_is_told_with_its_section(told: Told) -> None:
    assert told(with_line(14, "resources: {worker: 4}")) == dedent("""\
        error: my.yaml:14  resources.worker is not a key of resources
          got    worker
          known  cache, checkpoint_minutes, on_oom, share, trackers, workers
          fix    did you mean workers?   see: kdlab plan digits/quickstart --json""")


def test_unknown_tracker_is_told_with_the_known_ones(told: Told) -> None:
    assert told(with_line(14, "resources: {trackers: [csv, mlflo]}")) == dedent("""\
        error: my.yaml:14  resources.trackers.1 is not a tracker
          got    mlflo
          known  csv, mlflow
          fix    did you mean mlflow?   see: kdlab ls trackers""")


def test_duplicate_key_is_told_with_both_lines(told: Told) -> None:
    assert told(with_line(13, "student: {detector: gfl}")) == dedent("""\
        error: my.yaml:13  student is given twice, first at my.yaml:4
          fix    keep one student""")


def test_broken_yaml_is_told_with_its_line(told: Told) -> None:
    assert told("a: 1\nb: {c: 1\nd: 2\n") == (
        "error: my.yaml:3  cannot be read as YAML: "
        "while parsing a flow mapping, expected ',' or '}', but got ':'"
    )


def test_override_is_its_own_place(told: Told) -> None:
    assert told(FULL, "schedule.optimiser=sgd") == dedent("""\
        error: --set schedule.optimiser=sgd  schedule.optimiser is not a key of schedule
          got    optimiser
          known  accumulate, batch_size, channels_last, clip_grad, decay, ..., %s
          fix    did you mean optimizer?   see: kdlab plan digits/quickstart --json""") % (
        "threads, warmup_factor, warmup_iters, weight_decay"
    )


def test_custom_schedule_says_what_no_preset_says(told: Told) -> None:
    assert told(with_line(5, "schedule: {preset: custom, epochs: 1, batch_size: 8, lr: 0.1}")) == dedent("""\
        error: my.yaml:5  schedule.optimizer is missing
          fix    add optimizer: ...""")


def test_methods_without_teacher_are_told_at_the_first_such_arm(told: Told) -> None:
    assert told(FULL, "teacher=null") == dedent("""\
        error: my.yaml:11  arms.rm has methods, but the recipe has no teacher
          fix    add teacher: {detector: ..., backbone: ...}""")


def test_all_faults_come_at_once_in_the_order_of_their_lines(told: Told) -> None:
    faulty = """
        dataset: {name: digit}
        scheduel: {}
        student:
          detector: retinanett
          width: 0
          width: 8
        schedule: {lr: fast, threads: true}
        methods: {rm: {rnk: cls, weight: -1}}
        arms: {rm: {rm: {}, dfeat: {}}, other: 3}
        seeds: [0, -1]
    """
    assert [line for line in told(faulty, "resources=1").splitlines() if line.startswith("error")] == [
        "error: my.yaml:1  dataset.name names no dataset",
        "error: my.yaml:2  scheduel is not a section of a recipe",
        "error: my.yaml:4  student.detector names no detector",
        "error: my.yaml:5  student.width must be greater than 0",
        "error: my.yaml:6  student.width is given twice, first at my.yaml:5",
        "error: my.yaml:7  schedule.lr must be a number",
        "error: my.yaml:7  schedule.threads must be a whole number",
        "error: my.yaml:8  methods.rm.rnk is not an option of rm",
        "error: my.yaml:8  methods.rm.weight must be greater than or equal to 0",
        "error: my.yaml:9  arms.rm.dfeat is not a method",
        "error: my.yaml:9  arms.rm has methods, but the recipe has no teacher",
        "error: my.yaml:9  arms.other must hold keys and values",
        "error: my.yaml:10  seeds.1 must be greater than or equal to 0",
        "error: --set resources=1  resources must hold keys and values",
    ]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("dataset.image_px=3.5", "dataset.image_px must be a whole number"),
        ("dataset.size=[1]", "dataset.size must be a list [a whole number, a whole number]"),
        ("dataset.scale=[8]", "dataset.scale has too few entries"),
        ("dataset.flip=1.5", "dataset.flip must be less than or equal to 1"),
        ("student.backbone=50", "student.backbone must be text"),
        ("student.strides=[8, 32]", "student.strides must start with 4 or 8 and double at each level"),
        ("student.strides=[]", "student.strides must start with 4 or 8 and double at each level"),
        ("teacher.schedule=3", "teacher.schedule must hold keys and values"),
        ("teacher.schedule.epochs=x", "teacher.schedule.epochs must be a whole number"),
        ("schedule.epochs='3'", "schedule.epochs must be a whole number"),
        ("schedule.epochs=true", "schedule.epochs must be a whole number"),
        ("schedule.iterations=0", "schedule.iterations must be greater than 0"),
        (
            "schedule={epochs: 2, iterations: 9}",
            "schedule.iterations cannot be given next to epochs (2): remove one, or set it to null",
        ),
        ("schedule.epochs=null", "schedule.epochs is missing"),
        ("schedule.lr=1e999", "schedule.lr must be a number"),
        ("schedule.keep_best=yes", "schedule.keep_best must be true or false"),
        ("schedule.gpus=3", "schedule.gpus must divide batch_size 8; with 3 GPUs 6 or 9 would do"),
        ("schedule.gpus=16", "schedule.gpus must divide batch_size 8; with 16 GPUs 16 would do"),
        ("schedule.gpus=0", "schedule.gpus must be greater than or equal to 1"),
        ("schedule.milestones=[0.9, 0.1]", "schedule.milestones must ascend"),
        ("seeds.0=0.1", "seeds holds no keys, so 0 cannot be set"),
        (
            "schedule={decay: cosine, milestones: [0.5]}",
            "schedule.milestones has no effect with decay: cosine",
        ),
        ("methods.rm.quality=1", "methods.rm.quality must be true or false"),
        ("methods=3", "methods must hold keys and values"),
        ("arms.rm.rm.match=level", "arms.rm.rm.match must be stride or index"),
        ("arms.rm.rm@=3", "arms.rm.rm@ is not a name for an instance"),
        ("arms={}", "arms must not be empty"),
        ("arms={a b: {}}", "arms.a b is not a name for an arm"),
        ("arms={a/b: {}}", "arms.a/b is not a name for an arm"),
        ("arms.rm.rm@a[b]=3", "arms.rm.rm@a[b] is not a name for an instance"),
        ("arms.again={rm: {weight: 16.0}}", "arms.again is the same as arms.rm"),
        ("arms.rmm.rm.weight=8", "arms.rmm does not exist"),
        ("arms.rm.pfi.weight=8", "arms.rm.pfi does not exist"),
        ("seeds=0", "seeds must be a list"),
        ("seeds=[1, 1]", "seeds must not repeat a seed"),
        ("dataset={name: coco}", "dataset.root is missing"),
        ("student={}", "student.detector is missing"),
        ("studnet.width=8", "studnet is not a section of a recipe"),
        ("schedule.lr", "is not of the form a.b=value"),
        ("schedule..lr=1", "is not of the form a.b=value"),
    ],
)
def test_fault_names_the_path_and_the_override(told: Told, override: str, what: str) -> None:
    assert f"error: --set {override}  {what}" in told(FULL, override).splitlines()


def test_choice_is_told_with_the_nearest(told: Told) -> None:
    assert told(FULL, "methods.rm.rank=bth") == dedent("""\
        error: --set methods.rm.rank=bth  methods.rm.rank must be cls, loc or both
          got    "bth"
          fix    did you mean both?""")


@pytest.mark.parametrize("seeds", ["[1.0]", "[-1]", "[true]"])
def test_a_list_whose_only_entry_is_at_fault_is_not_called_empty(told: Told, seeds: str) -> None:
    message = told(FULL, f"seeds={seeds}")
    assert message.count("error: ") == 1
    assert "seeds.0 must be" in message


def test_fault_in_an_inherited_schedule_is_told_once(told: Told) -> None:
    assert told(with_line(5, "schedule: {lr: -1}")) == dedent("""\
        error: my.yaml:5  schedule.lr must be greater than 0
          got    -1""")


def test_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        recipe.load("recipes/digits/quikstart.yaml")

    assert str(caught.value) == dedent("""\
        error: there is no file recipes/digits/quikstart.yaml
          known  digits/quickstart
          fix    did you mean digits/quickstart?   kdlab init FOLDER writes one, see: kdlab ls recipes""")


def test_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        recipe.load(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 5000, "", "a\0b"])
def test_impossible_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        recipe.load(name)


# Overrides.


def test_last_override_wins(load: Load) -> None:
    assert load(FULL, "seeds=[5]", "seeds=[6, 7]").seeds == (6, 7)


def test_override_reaches_a_section_that_the_file_lacks(load: Load) -> None:
    assert (
        load(
            "dataset: {name: digits}\nstudent: {detector: gfl}\narms: {a: {}}\n", "schedule.lr=1"
        ).schedule.lr
        == 1
    )


def test_keys_of_mmdet_keep_their_dots(load: Load) -> None:
    made = load(FULL, "student.overrides.model.bbox_head.loss_cls.alpha=0.3")

    assert made.student.overrides == {"model.bbox_head.loss_cls.alpha": 0.3}


def test_override_is_never_evaluated(load: Load) -> None:
    code = "__import__('os').getcwd()"
    assert load(FULL, f"student.overrides.model.note={code}").student.overrides == {"model.note": code}


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | st.text(string.printable, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, min_size=1), inner)
    ),
    max_leaves=5,
)
keys = st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4}){0,2}", fullmatch=True)
repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=60)


@repeatable
@given(st.dictionaries(keys, values, max_size=4))
def test_overrides_set_what_they_say_and_nothing_else(wanted: dict[str, object]) -> None:
    overrides = [f"student.overrides.model.{key}={json.dumps(value)}" for key, value in wanted.items()]

    made = recipe.load("digits/quickstart", overrides)

    assert made.student.overrides == {f"model.{key}": value for key, value in wanted.items()}
    untouched = made.student.model_copy(update={"overrides": {}})
    plain = recipe.load("digits/quickstart")
    assert made.model_copy(update={"student": untouched, "command": plain.command}) == plain


@repeatable
@given(st.lists(st.text(max_size=20) | st.builds("{}={}".format, st.text(max_size=10), st.text(max_size=10))))
def test_senseless_overrides_are_usage_errors(overrides: list[str]) -> None:
    try:
        recipe.load("digits/quickstart", overrides)
    except UsageError as error:
        assert all(fault.what and fault.where for fault in error.faults)
    else:
        assert not overrides


# The recipe that everybody starts with.


def test_shipped_recipes_load_and_are_short() -> None:
    root = Path(recipe.__file__).parents[2]
    code = """if True:
        from kdlab import catalog
        from kdlab.recipe import loader as recipe
        for name, info in catalog.recipes().items():
            assert recipe.load(name).title == info.summary
            assert len(info.path.read_text().splitlines()) <= 40, name
            print(name)
        import sys
        assert not {"torch", "mmdet", "mlflow", "optuna"} & sys.modules.keys()
    """
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )

    assert (found.returncode, found.stderr) == (0, "")
    assert "digits/quickstart" in found.stdout.split()


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (
            ("student.overrides.bbox_head.reg_max=8",),
            "student.overrides.bbox_head.reg_max must begin with model.",
        ),
        (
            ("student.init=imagenet", "student.width=8"),
            "student.width must be 64: resnet50 with init: imagenet comes in no other width",
        ),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(overrides: tuple[str, ...], what: str) -> None:
    with pytest.raises(UsageError, match=re.escape(what)):
        recipe.load("digits/quickstart", overrides)


# --- detectors ---


def test_a_familys_sizes_fill_in_what_the_recipe_leaves_out(load: Load) -> None:
    made = load(FULL, "student.detector=faster_rcnn", "teacher.backbone=swin_t")
    assert made.student.strides == (4, 8, 16, 32, 64)
    assert (made.student.backbone, made.student.width, made.student.head_convs) == ("resnet50", 64, 0)
    assert made.teacher is not None
    assert (made.teacher.width, made.teacher.strides) == (96, (8, 16, 32, 64, 128))


def test_no_config_is_fetched(told: Told) -> None:
    text = told(FULL, "student.detector=https://host/retinanet.py")
    assert "student.detector names no detector" in text


def test_an_mmdet_config_by_name_says_all_sizes(load: Load) -> None:
    made = load(FULL, "student={detector: gfl/gfl_r50_fpn_1x_coco}")
    assert made.student.detector == "gfl/gfl_r50_fpn_1x_coco"
    assert made.student.backbone is made.student.width is made.student.strides is None


def test_an_unknown_backbone_is_told_with_the_nearest_one(told: Told) -> None:
    text = told(FULL, "student.backbone=resnet_50")
    assert "student.backbone names no backbone" in text
    assert "known  resnet101, resnet18, resnet50, resnext101_64x4d, swin_t" in text
    assert "did you mean resnet50?   see: kdlab ls backbones" in text


def test_sizes_beside_an_mmdet_config_are_refused(told: Told) -> None:
    text = told(FULL, "student={detector: gfl/gfl_r50_fpn_1x_coco, width: 8}")
    assert "student.width has no effect beside an mmdet config" in text
    assert "overrides" in text


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("student.detector=gfl/gfl_r50_fpn_9x_coco", "student.detector names no detector"),
        ("student={detector: faster_rcnn, head_convs: 2}", "student.head_convs has no effect"),
        (
            "student={detector: gfl, backbone: swin_t, width: 40}",
            "student.width must be a multiple of 32 for swin_t",
        ),
        (
            "student={detector: gfl, backbone: resnext101_64x4d, width: 32}",
            "student.width must be 64: resnext101_64x4d with init: none comes in no other width",
        ),
    ],
)
def test_sizes_that_no_model_has_are_refused(told: Told, override: str, what: str) -> None:
    assert what in told(FULL, override)


# --- a teacher from a checkpoint ---

WITH_CHECKPOINT = """
    dataset: {name: digits}
    teacher: {detector: gfl, checkpoint: a.pth, expect_ap: 38}
    student: {detector: gfl}
    arms: {rm: {rm: {}}}
"""


def test_a_checkpoint_is_kept_as_it_was_written(load: Load) -> None:
    teacher = load(WITH_CHECKPOINT).teacher
    assert teacher is not None
    assert (teacher.checkpoint, teacher.expect_ap, teacher.partial) == ("a.pth", 38.0, False)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("teacher.schedule={epochs: 3}", "schedule"),
        ("teacher.seed=1", "seed"),
        ("teacher.init=imagenet", "init"),
    ],
)
def test_training_a_teacher_that_comes_from_a_checkpoint_is_a_fault(
    load: Load, override: str, key: str
) -> None:
    with pytest.raises(UsageError, match=rf"teacher.{key} has no effect: .* comes from teacher.checkpoint"):
        load(WITH_CHECKPOINT, override)
    assert load(WITH_CHECKPOINT, override, f"teacher.{key}=null").teacher is not None


def test_partial_needs_a_checkpoint(load: Load) -> None:
    with pytest.raises(UsageError, match="partial: true needs a checkpoint"):
        load(WITH_CHECKPOINT, "teacher.checkpoint=null", "teacher.partial=true")


def test_expect_ap_is_in_points(load: Load) -> None:
    with pytest.raises(UsageError, match=r"teacher.expect_ap must be less than or equal to 100"):
        load(WITH_CHECKPOINT, "teacher.expect_ap=380")


# --- arms that inherit ---

INHERITING = """
    dataset: {name: digits}
    teacher: {detector: gfl}
    student: {detector: gfl}
    arms: {baseline: {}, pfi: {pfi: {}}, pfi+: {pfi: {}, inherit: true}, alone: {inherit: true}}
"""


def test_inherit_is_no_method_and_makes_arms_differ(load: Load) -> None:
    loaded = load(INHERITING)
    assert loaded.inherits == ("pfi+", "alone")
    assert list(loaded.arms["pfi+"]) == ["pfi"]
    assert loaded.arms["alone"] == {}


def test_inherit_false_is_as_if_it_were_not_there(load: Load) -> None:
    assert load(INHERITING, "arms.alone=null", "arms={pfi: {pfi: {}, inherit: false}}").inherits == ()
    with pytest.raises(UsageError, match=r"arms\.alone is the same as arms\.baseline"):
        load(INHERITING, "arms.alone.inherit=false")


@pytest.mark.parametrize(
    ("overrides", "clause"),
    [
        (["arms.alone.inherit=yes"], r"arms\.alone\.inherit must be true or false"),
        (["arms.again={inherit: true}"], r"arms\.again is the same as arms\.alone"),
    ],
)
def test_faults_of_inherit(load: Load, overrides: list[str], clause: str) -> None:
    with pytest.raises(UsageError, match=clause):
        load(INHERITING, *overrides)


def test_inheriting_needs_a_teacher(load: Load) -> None:
    text = "dataset: {name: digits}\nstudent: {detector: gfl}\narms: {alone: {inherit: true}}\n"
    with pytest.raises(UsageError, match=r"arms\.alone inherits, but the recipe has no teacher"):
        load(text)


def test_a_method_has_the_defaults_of_the_students_family(load: Load) -> None:
    for detector, weight, tau in (("gfl", 3.0, 2.0), ("retinanet", 4.0, 1.0)):
        method = load(FULL, f"student.detector={detector}", "methods.rm={}").arms["rm"]["rm"]
        assert (method.weight, method.options["tau"]) == (weight, tau)


def test_an_option_without_effect_in_an_arm_is_refused_where_it_stands(told: Told) -> None:
    text = told(FULL, "methods.rm={quality: true}", "arms.rm.rm={rank: loc}")
    assert "methods.rm.quality has no effect with rank: loc" in text


@pytest.mark.parametrize(
    ("override", "clause"),
    [
        ("student.width=100000", "student.width must be less than or equal to 8192"),
        ("student.neck_channels=1000000000", "student.neck_channels must be less than or equal to 8192"),
        ("student.head_convs=100000", "student.head_convs must be less than or equal to 32"),
        ("student.strides=[4,8,16,32,64,128,256,512,1024]", "student.strides must have at most 8 items"),
        ("schedule.threads=100000", "schedule.threads must be less than or equal to 1024"),
        ("schedule.batch_size=1000000", "schedule.batch_size must be less than or equal to 65536"),
        ("dataset.scale=[100000, 5]", "dataset.scale.0 must be less than or equal to 16384"),
        ("resources.workers=100000", "resources.workers must be less than or equal to 256"),
    ],
)
def test_sizes_that_cannot_be_meant_are_told(told: Told, override: str, clause: str) -> None:
    assert clause in told(FULL, override)


# --- places of faults that only another process finds ---


def test_a_recipe_knows_the_lines_of_its_overrides(load: Load) -> None:
    lines = ["dataset: {name: digits}", "student:", "  detector: gfl", "  overrides:"]
    made = load(
        "\n".join([*lines, "    model.neck: {type: FPN,", "      num_outs: 3}", "arms: {baseline: {}}"])
    )
    assert made.place("student.overrides.model.neck.num_outs") == "my.yaml:6"
    assert made.place("student.overrides.model.neck.absent") == "my.yaml:5"
    assert made.place("teacher.overrides") == "my.yaml"
    assert "places" not in made.to_dict()


def test_of_very_many_unknown_keys_the_first_are_told_and_the_rest_counted(told: Told) -> None:
    text = told(f"{dedent(FULL)}" + "\n".join(f"k{number}: 1" for number in range(1000)))
    assert text.count("is not a section of a recipe") == 50
    assert "k50 and 949 more keys are not a section of a recipe either" in text


def test_of_very_many_faults_the_first_are_told_and_the_rest_counted(told: Told) -> None:
    arms = "\n".join(f"  a{number}: {{rm: {{weight: -{number + 1}}}}}" for number in range(300))
    text = told(FULL.replace("baseline: {}", f"baseline: {{}}\n{arms}".replace("\n", "\n    ")))
    assert text.count("error:") == 201
    assert "100 more faults" in text


def test_a_key_that_is_no_word_has_its_own_line(told: Told) -> None:
    assert "my.yaml:9  methods has a key that is no word" in told(with_line(9, "  ? [a, b]\n  : 1"))
