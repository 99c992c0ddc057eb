"""Flags, recipes, and what is installed: who has the last word, and how it is shown."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import tomli_w

from harness import cli, recipes, registry
from harness.config import DataConfig, TrainConfig, to_tree
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
    --trust-remote-code --train.max-steps --train.learning-rate --train.batch-size --train.epochs --data.train-limit
    --data.eval-limit --data.dir --method.r --task.longest
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
    listing = registry.listing()
    for words in (
        "lora",
        "arXiv 2106.09685",
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
