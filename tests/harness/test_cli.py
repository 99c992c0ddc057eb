"""Flags, recipes, and what is installed: who has the last word, and how it is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

import pytest
import tomli_w
import tyro

from harness import catalogue, cli, recipes, registry
from harness.config import DataConfig, RunConfig, TrainConfig, to_tree
from harness.errors import UserError

NAMES = ["--method", "lora", "--task", "toy"]


def test_flags_take_any_order_and_form():
    usual = cli.parse(["--method", "lora", "--task", "toy", "--method.r", "4", "--train.batch-size", "2"])
    other = cli.parse(["--train.batch_size=2", "--method.r=4", "--task=toy", "--method=lora"])
    assert usual == other
    assert usual.config.method_settings.r == 4


def test_the_later_word_wins(monkeypatch, tmp_path):
    recipe = {"seed": 3, "train": {"learning_rate": 0.1, "batch_size": 2, "max_steps": 5}}
    recipe["methods"] = {"lora": {"seed": 4, "train": {"learning_rate": 0.2}, "method": {"r": 5}}}
    use_recipe(monkeypatch, tmp_path, recipe)
    config = cli.parse([*NAMES, "--method.r", "6"]).config
    assert config.train.batch_size == 2  # recipe
    assert (config.seed, config.train.learning_rate) == (4, 0.2)  # the recipe's part for the method
    assert config.method_settings.r == 6  # command line
    assert config.train.adam_beta2 == TrainConfig.adam_beta2  # default
    full = cli.parse(["--method", "full", "--task", "toy"]).config
    assert (full.seed, full.train.learning_rate) == (3, 0.1)  # not named in the recipe: the common part


@pytest.mark.parametrize(
    ("part", "epochs", "max_steps"),
    [({"epochs": 2.0}, 2.0, None), ({"max_steps": 7}, 3.0, 7)],
)
def test_a_method_s_epochs_and_steps_replace_each_other(part, epochs, max_steps, monkeypatch, tmp_path):
    use_recipe(monkeypatch, tmp_path, {"train": {"max_steps": 5}, "methods": {"lora": {"train": part}}})
    train = cli.parse(NAMES).config.train
    assert (train.epochs, train.max_steps) == (epochs, max_steps)


@pytest.mark.parametrize("none", [["--train.max-steps", "None"], ["--train.max_steps=None"]], ids=str)
def test_steps_that_are_none_leave_the_epochs(none):
    train = cli.parse([*NAMES, *none, "--train.epochs", "1"]).config.train
    assert (train.epochs, train.max_steps) == (1.0, None)


@pytest.mark.parametrize(
    ("name", "value"), [("r", "0"), ("alpha", "nan"), ("alpha", "0"), ("dropout", "-1"), ("dropout", "1")]
)
def test_lora_refuses_what_means_nothing_and_names_the_flag_once(name, value):
    with pytest.raises(UserError, match=f"^--method.{name} is {float(value):g}") as error:
        cli.parse([*NAMES, f"--method.{name}", value])
    assert str(error.value).count("--method") == 1


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"modle": "x"}, "unknown key modle, did you mean model"),
        ({"train": {"learning_rat": 1.0}}, "unknown key train.learning_rat, did you mean learning_rate"),
        ({"task": {"beams": 1}}, "unknown key task.beams"),
        ({"method": {"r": 1}}, "unknown key method"),
        ({"methods": {"lora": {"method": {"rank": 1}}}}, "unknown key methods.lora.method.rank"),
        ({"methods": {"lora": {"epochs": 1}}}, "unknown key methods.lora.epochs"),
        ({"train": {"batch_size": "8"}}, "train.batch_size is '8': it must be a whole number"),
        ({"train": {"batch_size": 8.5}}, "train.batch_size is 8.5: it must be a whole number"),
        ({"train": {"schedule": "square"}}, "it must be linear or cosine or constant"),
        ({"train": {"gradient_checkpointing": 1}}, "it must be true or false"),
        ({"train": {"epochs": 1, "max_steps": 1}}, "train has both epochs and max_steps"),
        ({"score": "last"}, "score is 'last': it must be a list of: a text"),
        ({"train": 3}, "train must be a table"),
        ({"methods": {"full": 3}}, "methods.full must be a table"),
        ({"task": {"longest": 0}}, "a text has at least 1 letter"),
    ],
    ids=str,
)
def test_a_wrong_recipe_is_refused_with_file_and_key(recipe, says, monkeypatch, tmp_path):
    use_recipe(monkeypatch, tmp_path, recipe)
    with pytest.raises(UserError, match=r"quick\.toml") as error:
        cli.parse(NAMES)
    assert says in str(error.value)


def test_a_recipe_that_is_not_toml_is_refused(monkeypatch, tmp_path):
    use_recipe(monkeypatch, tmp_path, {})
    (tmp_path / "quick.toml").write_text("[train\n")
    with pytest.raises(UserError, match="not valid TOML"):
        cli.parse(NAMES)


def test_a_stored_configuration_is_read_back_exactly():
    flags = ["--train.max-grad-norm", "None", "--data.dir", "somewhere", "--train.eval-every", "7", "--method.r", "3"]
    config = cli.parse([*NAMES, *flags]).config
    tree = recipes.tomllib.loads(tomli_w.dumps(to_tree(config)))
    assert recipes.from_tree(tree.pop("method"), tree.pop("task"), tree, "config.toml") == config


PROMISED_FLAGS = """
    --method --task --model --preset --seed --output-dir --resume --json --list --overwrite --debug --allow-pickle
    --recipe --trust-remote-code --train.max-steps --train.learning-rate --train.batch-size --train.epochs
    --data.train-limit --data.eval-limit --data.dir --method.r --task.longest
"""


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.parse([*NAMES, "--help"])
    shown = capsys.readouterr().out
    of_settings = [
        f"--{section}.{entry.name}".replace("_", "-")
        for section, settings in (("train", TrainConfig), ("data", DataConfig))
        for entry in fields(settings)
    ]
    for flag in [*PROMISED_FLAGS.split(), *of_settings]:
        explanation = re.split(rf"{flag}[ ,]", shown, maxsplit=1)[1].partition("(default")[0]
        assert len(re.findall(r"[a-z]{2,}", explanation)) >= 4, flag


def test_help_without_names_says_how_to_see_more(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.parse(["--help"])
    assert "--method NAME --task NAME" in " ".join(capsys.readouterr().out.split())


def test_list_shows_methods_tasks_and_presets_whatever_else_is_broken():
    listing = catalogue.listing()
    for words in (
        "lora",
        "Hu et al. 2021, arXiv:2106.09685",
        "786,432",
        "full",
        "toy",
        "presets: epochs, quick",
        "hadamard-bench",
        "Copies letters",
    ):
        assert words in listing
    assert re.search(r"  broken +broken, cannot be used\n +\w+Error: .*; from toy-bench 0\.0\.0\n", listing)


def test_two_packages_with_one_name_are_refused(monkeypatch, tmp_path):
    folder = tmp_path / "rival-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[hadamard.tasks]\ntoy = rival:Toy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="claimed by"):
        registry.entries("task")


def use_recipe(monkeypatch, folder, recipe):
    (folder / "quick.toml").write_text(tomli_w.dumps(recipe))
    monkeypatch.setattr(registry.load("task", "toy"), "recipes", folder)


class TestRecipeFiles:
    def write(self, folder, **recipe):
        path = folder / "tuned.v2.toml"
        path.write_text(tomli_w.dumps({"model": "some-model", **recipe}))
        return path

    def test_one_stands_in_place_of_a_preset(self, tmp_path):
        path = self.write(tmp_path, train={"max_steps": 5}, methods={"lora": {"method": {"r": 5}}})
        command = cli.parse([*NAMES, "--recipe", str(path), "--train.max-steps", "6"])
        assert command.recipe == path
        config = command.config
        assert (config.preset, config.model, config.description) == ("tuned.v2", "some-model", "")
        assert (config.method_settings.r, config.train.max_steps) == (5, 6)
        assert config.train.learning_rate == TrainConfig.learning_rate  # nothing is left of the preset quick

    def test_it_may_be_for_every_method(self, tmp_path):
        path = self.write(tmp_path, train={"learning_rate": 0.5})
        for method in ("lora", "full"):
            flags = ["--method", method, "--task", "toy", f"--recipe={path}"]
            assert cli.parse(flags).config.train.learning_rate == 0.5

    def test_it_has_the_parts_of_a_preset(self, tmp_path):
        part = {"toy": {"train": {"learning_rate": 0.5}}, "e2e": {"train": {"learning_rate": 0.6}}}
        path = self.write(tmp_path, tasks=part)
        assert cli.parse([*NAMES, "--recipe", str(path)]).config.train.learning_rate == 0.5

    @pytest.mark.parametrize(
        ("recipe", "flags", "says"),
        [
            ({"methods": {"hut": {}, "full": {}}}, [], "has settings for --method hut and full, and none for lora"),
            ({"trian": {}}, [], "unknown key trian, did you mean train"),
            ({"methods": {"lora": 3}}, [], "methods.lora must be a table"),
            ({"methods": 3}, [], "methods must be a table"),
            ({"tasks": 3}, [], "tasks must be a table"),
            ({}, ["--preset", "quick"], "--preset and --recipe both say where settings come from: give one of them"),
            ({}, ["--recipe"], "--recipe without a value"),
            ({}, ["--recipe", "nowhere.toml"], "--recipe nowhere.toml cannot be read: No such file or directory"),
            ({}, ["--recipe", "."], "--recipe . cannot be read: Is a directory"),
            ({}, ["--recipe", "a\nb.toml"], "has characters that cannot be printed"),
        ],
        ids=str,
    )
    def test_what_is_refused(self, recipe, flags, says, tmp_path):
        path = self.write(tmp_path, **recipe)
        with pytest.raises(UserError) as refused:
            cli.parse([*NAMES, *([] if "--recipe" in flags else ["--recipe", str(path)]), *flags])
        assert says in str(refused.value)

    def test_a_run_directory_s_own_settings_take_no_recipe(self, tmp_path):
        path = self.write(tmp_path)
        with pytest.raises(UserError, match="leave out --recipe, or give --method and --task with it"):
            cli.parse(["--resume", "--output-dir", "out", "--recipe", str(path)])


@dataclass(frozen=True)
class OtherCommand:
    """Another command that configures runs."""

    nameless: ClassVar[tuple[str, ...]] = ("--show",)

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    trials: int | None = 30
    """Trials in all, to try."""
    sampler: Literal["tpe", "random"] = "tpe"
    """What draws values here."""
    show: str | None = None
    """The study to show here."""
    json: cli.Switch = False
    """Print one line of JSON."""


class TestOtherCommands:
    def parse(self, *flags):
        return cli.parse(flags, OtherCommand, "python -m other")

    def test_flags_of_both_kinds(self):
        command = self.parse(*NAMES, "--trials", "5", "--method.r", "4", "--json", "--train.epochs", "2")
        assert (command.trials, command.json, command.sampler) == (5, True, "tpe")
        assert command.config == cli.parse([*NAMES, "--method.r", "4", "--train.epochs", "2"]).config

    def test_some_need_no_names(self):
        assert self.parse("--show", "study", "--json").show == "study"
        assert self.parse("--show", "study", *NAMES).config.method == "lora"
        with pytest.raises(UserError, match="--method is missing"):
            self.parse("--trials", "3")

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--sampler", "tpo"], "--sampler tpo: it takes tpe or random"),
            (["--trials", "few"], "--trials few: it takes a whole number or None"),
            (["--trails", "3"], "unknown flag --trails, did you mean --trials?"),
            (["--resume"], "unknown flag --resume"),
            (["--recipe", "x.toml"], "unknown flag --recipe"),
            (["--method.rank", "3"], "unknown flag --method.rank"),
            (["--json", "yes"], "--json yes: it takes no value"),
            (["--task.longest", "0"], "at least 1 letter"),
            (["--stage1.epochs", "1"], "--stage1.epochs: --method lora is not trained in stages"),
        ],
    )
    def test_what_is_refused(self, flags, says):
        with pytest.raises(UserError) as refused:
            self.parse(*NAMES, *flags)
        assert says in str(refused.value)

    @pytest.mark.parametrize("names", [[], NAMES], ids=["no names", "names"])
    def test_help(self, names, capsys):
        with pytest.raises(SystemExit, match="0"):
            self.parse(*names, "--help")
        shown = capsys.readouterr().out
        assert "usage: python -m other" in shown
        assert "--trials" in shown
        assert ("--method.r" in shown) == bool(names)


def test_groups_of_a_prefix_are_taken_out():
    argv = ["now", "--space.method.r", "1", "-2", "--seed", "3", "--space.learning_rate=1e-3", "2e-3", "--space.x"]
    rest, taken = cli.split_groups(argv, "--space.")
    assert rest == ["now", "--seed", "3"]
    assert taken == {"method.r": ["1", "-2"], "learning-rate": ["1e-3", "2e-3"], "x": []}
    with pytest.raises(UserError, match=r"--space.learning-rate is given twice"):
        cli.split_groups([*argv, "--space.learning-rate", "1"], "--space.")


def test_the_keys_that_a_command_line_gives():
    argv = ["--method", "hadamard", "--task", "toy-classes", "--train.learning_rate=1e-3", "--stage1.epochs", "1"]
    argv += ["--train.no-group-by-length", "--data.dir", "x", "--json"]
    config = cli.parse(argv).config
    assert cli.given_keys(argv, config) == {
        "method",
        "task",
        "train.learning_rate",
        "train.group_by_length",
        "data.dir",
        "stage1.epochs",
    }


def test_every_key_is_a_flag_of_its_own():
    config = cli.parse(["--method", "hadamard", "--task", "toy-classes"]).config
    for key in cli.keys(config):
        assert cli.given_keys([f"--{key}".replace("_", "-"), "value"], config) == {key}
