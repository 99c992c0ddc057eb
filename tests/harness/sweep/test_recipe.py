"""A configuration written as a recipe is the same configuration when it is read, and harness.run takes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness import cli, recipes
from harness.errors import UserError
from harness.recipes import tomllib
from harness.sweep import recipe
from harness.sweep.space import apply

NOT_DEFAULT = {
    "train.learning_rate": 3.3e-05,
    "train.max_grad_norm": None,
    "train.head_learning_rate": 1 / 3,
    "train.mixed_precision": "bf16",
    "train.eval_every": 7,
}
OF_METHOD = {
    "hut": {"method.r": 3, "method.layers": (0, "top:2"), "method.roles": ("query",), "method.shift": False},
    "hadamard": {
        "method.norm": "both",
        "stage1.learning_rate": 0.07,
        "stage1.max_steps": 9,
        "stage1.warmup_ratio": 0.0,
    },
    "lora": {"method.r": 16, "method.alpha": 8.0, "method.target_modules": ("query", "c_attn")},
}


def read(config, folder: Path, comment=("The best of 30 trials.",), **more):
    """Writes a configuration as a recipe and builds what harness.run would."""
    path = folder / "best.toml"
    path.write_text(recipe.text(config, comment, **more))
    return cli.parse(["--method", config.method, "--task", config.task, "--recipe", str(path)]).config


def up_to_names(config):
    return replace(config, preset="", description="", seed=0, output_dir=None, data=replace(config.data, dir=None))


@pytest.mark.parametrize("task", ["cola", "e2e"])
@pytest.mark.parametrize("method", OF_METHOD)
@pytest.mark.parametrize("changed", [False, True], ids=["the preset's", "others"])
def test_it_is_the_same_configuration(method, task, changed, tmp_path):
    config = recipes.build(method, task, "quick")
    if changed:
        limits = replace(config.data, dir=tmp_path, train_limit=9, eval_limit=None)
        config = replace(
            config, seed=5, output_dir=tmp_path, data=limits, model="elsewhere", init_from=Path("old"), new_head=True
        )
        config = apply(config, {**NOT_DEFAULT, **OF_METHOD[method]})
    found = read(config, tmp_path)
    # the representation tells 1 from 1.0
    assert repr(up_to_names(found)) == repr(up_to_names(config))
    assert (found.preset, found.description, found.seed, found.data.dir) == ("best", "", 0, None)


@pytest.mark.parametrize(("epochs", "steps"), [(5.0, 9), (3.0, 9), (5.0, None), (3.0, None)])
def test_epochs_that_do_not_count_are_kept(epochs, steps, tmp_path):
    config = recipes.build("lora", "cola", "quick")
    config = replace(config, train=replace(config.train, epochs=epochs, max_steps=steps))
    assert read(config, tmp_path).train == config.train


def test_method_and_training_are_in_the_method_s_part(tmp_path):
    config = apply(recipes.build("hut", "cola", "quick"), {"train.learning_rate": 0.02, "method.r": 1})
    tables = tomllib.loads(recipe.text(config, ["One line,\nand another.", "", "a \x1b character"], "Tuned."))
    assert tables["description"] == "Tuned."
    assert tables["model"] == "minilm-l6"
    assert tables["methods"]["hut"]["method"] == {"r": 1}
    assert tables["methods"]["hut"]["train"]["learning_rate"] == 0.02
    assert not {"seed", "output_dir", "train", "preset"} & tables.keys()
    lines = recipe.text(config, ["One line,\nand another.", "", "a \x1b character"]).splitlines()
    assert lines[:5] == ["# One line,", "# and another.", "#", "# a   character", ""]


def test_defaults_alone_are_still_for_the_method(tmp_path):
    config = cli.parse(["--method", "full", "--task", "toy"]).config
    config = recipes.bare("full", type(config.method_settings), "toy", type(config.task_settings), "quick")
    path = tmp_path / "best.toml"
    path.write_text(recipe.text(config, []))
    assert path.read_text() == "[methods.full]\n"
    with pytest.raises(UserError, match="has settings for --method full, and none for lora"):
        cli.parse(["--method", "lora", "--task", "toy", "--recipe", str(path)])


def test_switches_that_let_files_run_programs_are_the_user_s(tmp_path):
    config = replace(recipes.build("hut", "cola", "quick"), allow_pickle=True, trust_remote_code=True)
    written = recipe.text(config, [])
    assert written.startswith("# Besides it needs --allow-pickle and --trust-remote-code, which a recipe")
    found = read(config, tmp_path)
    assert (found.allow_pickle, found.trust_remote_code) == (False, False)


def test_harness_run_takes_it_and_goes_on_with_it(run_here, arguments, tmp_path):
    command = arguments("--train.max-steps", "2", "--train.learning-rate", "0.03", "--method.r", "3")
    assert run_here(command)[0] == 0
    before = json.loads(Path("out", "result.json").read_text())
    stored = tomllib.loads(Path("out", "config.toml").read_text())
    stored.pop("format")
    config = recipes.from_tree(stored.pop("method"), stored.pop("task"), stored, "config.toml")
    Path("best.toml").write_text(recipe.text(config, ["Of a test."]))
    again = ["--method", "lora", "--task", "toy", "--recipe", "best.toml"]
    code, _, err = run_here(again)
    assert code == 0, err
    result = Path("runs", "toy-lora-best-seed0", "result.json")
    after = json.loads(result.read_text())
    assert after["preset"] == "best"
    assert after["evaluations"]["last"]["metrics"] == before["evaluations"]["last"]["metrics"]
    result.unlink()  # as if it had been stopped before its end
    code, _, err = run_here([*again, "--resume"])
    assert code == 0, err
    assert json.loads(result.read_text())["evaluations"]["last"]["metrics"] == before["evaluations"]["last"]["metrics"]
    Path("best.toml").write_text(recipe.text(apply(config, {"method.r": 4}), []))
    code, _, err = run_here([*again, "--resume"])
    assert code == 2
    assert "--resume: runs/toy-lora-best-seed0 was started with --method.r 3 and this command has 4" in err
