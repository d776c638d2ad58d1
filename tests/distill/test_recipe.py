"""A recipe is read whole, or every mistake in it is named with what is allowed."""

from pathlib import Path

import pytest
import yaml
from tiny_training import write_recipe

from distill.recipe import Recipe, RecipeError, read_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipes", tmp_path / "teacher")


def test_paths_are_relative_to_the_recipe_and_defaults_are_filled_in(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.run == path.parent / "run"
    assert recipe.positives.prompts == path.parent / "prompts.txt"
    assert recipe.positives.folder is None
    assert recipe.export.repository == path.parent / "models"
    assert recipe.teacher.model == path.parent.parent / "teacher"  # absolute paths stay
    assert (recipe.student.timestep, recipe.positives.source) == (None, "teacher")
    assert recipe.drift.sigma == (0.02, 0.1)
    assert recipe.evaluate is None


def test_the_resolved_recipe_reads_back_as_the_same_from_anywhere(
    path: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(path)
    copy = tmp_path / "elsewhere.yaml"
    copy.write_text(recipe.resolved(), "utf-8")
    assert read_recipe(copy) == recipe
    assert yaml.safe_load(recipe.resolved())["train"]["weight_decay"] == 0.01


def test_overrides_are_yaml_values_of_dotted_keys(path: Path) -> None:
    recipe = read_recipe(
        path,
        [
            "train.steps=7",
            "drift.layers=[sample, mid_block]",
            "run=../elsewhere",
            "train.learning_rate=1e-4",
            "evaluate.judge=judge.py",
        ],
    )
    assert recipe.train.steps == 7
    assert recipe.drift.layers == ("sample", "mid_block")
    assert recipe.run.resolve() == path.parent.parent / "elsewhere"
    assert recipe.train.learning_rate == 1e-4
    assert recipe.evaluate is not None
    assert recipe.evaluate.judge == path.parent / "judge.py"


BAD_VALUES = [
    ("drift.radii=[0.1, 0]", r"drift\.radii\.1 is 0: input should be greater than 0"),
    ("drift.radii=[]", r"drift\.radii is \[\]: tuple should have at least 1 item"),
    ("drift.layers=[]", r"drift\.layers is \[\]: tuple should have at least 1 item"),
    ("drift.groups=0", r"drift\.groups is 0: input should be greater than or equal to 1"),
    ("drift.samples=1", r"drift\.samples is 1: input should be greater than or equal to 2"),
    ("drift.anchors=1", r"drift\.anchors is 1: input should be greater than or equal to 2"),
    ("drift.sigma=[0.2, 0.1]", r"drift\.sigma is \[0.2, 0.1\]: the lower end must not be above"),
    ("drift.sigma_mean=.nan", r"drift\.sigma_mean is nan: input should be a finite number"),
    ("positives.batch=0", r"positives\.batch is 0: input should be greater than or equal to 1"),
    ("positives.source=web", r"positives\.source is 'web': input should be 'images', 'classes' or"),
    ("positives.source=images", r"positives: source is images, so folder must name the folder"),
    ("positives.prompts=null", r"positives: source is teacher, so prompts must name a text file"),
    ("train.steps=many", r"train\.steps is 'many': input should be a valid integer"),
    ("train.learning_rate=.inf", r"train\.learning_rate is inf: input should be a finite number"),
    ("train.precision=fp16", r"train\.precision is 'fp16': input should be 'bf16' or 'fp32'"),
    ("train.ema_decay=1", r"train\.ema_decay is 1: input should be less than 1"),
    ("student.timestep=-1", r"student\.timestep is -1: input should be greater than or equal"),
    ("evaluate.judge=3", r"evaluate\.judge is 3: input is not a valid path"),
    ("evaluate={judge: j.py, captions: 1}", r"captions is 1: input should be greater than or eq"),
    ("evaluate={judge: j.py, batch: 0}", r"evaluate\.batch is 0: input should be greater"),
]


@pytest.mark.parametrize(("override", "sentence"), BAD_VALUES)
def test_an_impossible_value_is_named_with_what_is_allowed(
    path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence) as error:
        read_recipe(path, [override])
    assert str(error.value).startswith(f"recipe {path} is not valid:\n  ")
    assert str(error.value).count("\n") == 1  # one mistake, one line


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("colour=red", "  colour: unknown key; allowed here: run, teacher, student, positives,"),
        ("train.stpes=9", "  train.stpes: unknown key; allowed here: steps, learning_rate, fin"),
        ("evaluate={judge: j.py, x: 1}", "evaluate.x: unknown key; allowed here: judge, captions"),
    ],
)
def test_an_unknown_key_is_named_with_those_that_exist(
    path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(path, [override])
    assert sentence in str(error.value)


def test_every_mistake_is_named_at_once(path: Path) -> None:
    path.write_text("run: here\ndrift: {groups: 0}\n", "utf-8")
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    lines = str(error.value).splitlines()[1:]
    assert "  teacher: missing" in lines
    assert "  drift.samples: missing" in lines
    assert any(line.startswith("  drift.groups is 0") for line in lines)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"run: \xff\xfe", r"is not valid YAML: .*position 5"),
        (b"- 1\n", "holds no keys; it needs run, teacher, student, positives, drift, train, eval"),
        (b"", "holds no keys"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(path: Path, content: bytes, sentence: str) -> None:
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=sentence) as error:
        read_recipe(path)
    assert f"recipe {path}" in str(error.value)


def test_a_recipe_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe .*nowhere\.yaml: No such file or directory"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps", "--set train.steps: must be section.key=value"),
        ("=3", "--set =3: must be section.key=value"),
        ("run.folder=x", "--set run.folder=x: run is a value, not a section"),
        ("drift.radii=[1", "--set drift.radii=[1: the value is not valid YAML"),
    ],
)
def test_a_malformed_override_is_named(path: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(path, [override])
    assert str(error.value) == sentence


def test_a_recipe_cannot_be_changed_after_reading(path: Path) -> None:
    recipe: Recipe = read_recipe(path)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.steps = 3  # type: ignore[misc]
