"""The search space: what methods declare, how flags change it, what Optuna sees, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import optuna
import pytest

from hadamard_baselines.methods.low_rank import Lora
from hadamard_core.search_space import DEFAULT, Choices, LogUniform, Uniform
from harness import cli, recipes
from harness.errors import UserError
from harness.sweep.domains import decode, encode
from harness.sweep.space import Space, apply, build

RATE, R = "train.learning_rate", "method.r"


def configured(method="hut", task="cola", preset="quick", **values):
    return apply(recipes.build(method, task, preset), {key.replace("__", "."): value for key, value in values.items()})


def built(flags: str = "", fixed=(), **names) -> Space:
    """The space of ``--space.`` flags, each in a line: ``r 1 2``."""
    lines = [line.split() for line in flags.splitlines()]
    return build(configured(**names), {name: values for name, *values in lines}, fixed)


class TestDeclarations:
    @pytest.mark.parametrize("method", ["hut", "hadamard", "lora", "vera", "full", "head"])
    def test_each_has_a_range_around_what_the_recipes_take(self, method):
        for preset in ("quick", "paper", "roberta-base"):
            config = configured(method, preset=preset)
            domain = build(config, {}).parameters[RATE]
            assert isinstance(domain, LogUniform)
            assert domain.low <= config.train.learning_rate <= domain.high

    def test_what_is_searched_beside_it(self):
        assert built(method="hut").parameters[R] == Choices((1, 2, 4, 8))
        assert built(method="lora").parameters[R] == Choices((1, 2, 4, 8, 16))
        assert built(method="vera").parameters.keys() == {RATE, R}
        assert built(method="hadamard").parameters.keys() == {RATE, "stage1.learning_rate"}
        assert built(method="full").parameters.keys() == built(method="head").parameters.keys() == {RATE}

    def test_a_stage_that_the_task_leaves_out_is_not_searched(self):
        assert built(method="hadamard", task="e2e").parameters.keys() == {RATE}
        with pytest.raises(UserError, match="stage1 is left out with --task e2e, whose model has no head"):
            built("stage1.learning-rate 1e-4 1e-3", method="hadamard", task="e2e")

    def test_a_method_of_somebody_else(self):
        @dataclass(frozen=True)
        class Silent:
            paper: ClassVar[str] = "none"

        config = replace(configured(), method="silent", method_settings=Silent())
        assert build(config, {}).parameters == DEFAULT

    @pytest.mark.parametrize(
        "declared",
        [{"train.rate": LogUniform(1, 2)}, {"method.r": Uniform(1, 2)}, {"seed": Choices((1, 2))}, {R: Choices("ab")}],
        ids=str,
    )
    def test_a_declaration_that_cannot_be_searched_names_the_method(self, declared):
        @dataclass(frozen=True)
        class Wrong(Lora):
            search_space: ClassVar[Mapping[str, Any]] = declared

        with pytest.raises(UserError, match=r"--method wrong declares .* which only the method's package can mend"):
            build(replace(configured(), method="wrong", method_settings=Wrong()), {})


class TestFlags:
    @pytest.mark.parametrize("name", ["learning-rate", "learning_rate", "train.learning-rate", "train.learning_rate"])
    def test_names(self, name):
        assert built(f"{name} 1e-3 1e-2").parameters[RATE] == LogUniform(1e-3, 1e-2)

    def test_a_short_name_is_of_the_training_before_a_stage(self):
        searched = built("learning-rate 1e-3 1e-2", method="hadamard")
        assert searched.parameters[RATE] == LogUniform(1e-3, 1e-2)
        assert searched.parameters["stage1.learning_rate"] == LogUniform(1e-4, 1e-1)

    @pytest.mark.parametrize(
        ("flag", "key", "domain"),
        [
            ("learning-rate 1e-6 1", RATE, LogUniform(1e-6, 1.0)),
            ("learning-rate 1e-3", RATE, Choices((1e-3,))),
            ("learning-rate 1e-3 2e-3 3e-3", RATE, Choices((1e-3, 2e-3, 3e-3))),
            ("head-learning-rate 1e-4 1e-2", "train.head_learning_rate", LogUniform(1e-4, 1e-2)),
            ("head-learning-rate None 1e-2", "train.head_learning_rate", Choices((None, 1e-2))),
            ("weight-decay 0 1e-1", "train.weight_decay", Uniform(0.0, 0.1)),
            ("r 16 32", R, Choices((16, 32))),
            ("batch-size 8 16", "train.batch_size", Choices((8, 16))),
            ("max-steps 5 None", "train.max_steps", Choices((5, None))),
            ("schedule linear cosine", "train.schedule", Choices(("linear", "cosine"))),
            ("scale true False", "method.scale", Choices((True, False))),
            ("roles query,value query", "method.roles", Choices((("query", "value"), ("query",)))),
            ("method.layers top:2 0,2-3 None", "method.layers", Choices((("top:2",), (0, "2-3"), None))),
            ("task.max-length 64 128", "task.max_length", Choices((64, 128))),
        ],
    )
    def test_values_become_what_the_setting_takes(self, flag, key, domain):
        found = built(flag).parameters[key]
        assert found == domain
        if isinstance(domain, Choices):
            assert [type(value) for value in found.values] == [type(value) for value in domain.values]

    def test_a_stage(self):
        searched = built("stage1.epochs 1 2 3", method="hadamard")
        assert searched.parameters["stage1.epochs"] == Choices((1.0, 2.0, 3.0))

    def test_what_another_flag_fixes_is_not_searched(self):
        assert built(fixed={RATE, "seed"}).parameters.keys() == {R}
        with pytest.raises(UserError, match=r"--space.learning-rate searches .* and --train.learning-rate fixes it"):
            built("learning-rate 1e-3 1e-2", fixed={RATE})

    @pytest.mark.parametrize(
        ("flags", "names", "says"),
        [
            ("r 1 2", {"method": "hadamard"}, "--space.r: --method hadamard has no r, and the training has none"),
            ("method.r 1 2", {"method": "hadamard"}, "--space.method.r: --method hadamard has no r (known: train.l"),
            ("learning-rat 1 2", {}, "--space.learning-rat: --method hut has no learning-rat"),
            ("learning-rat 1 2", {}, "did you mean learning-rate? (known: train.learning-rate, method.r, method.roles"),
            (
                "train.epoch 1 2",
                {},
                "there is no setting train.epoch with --method hut and --task cola, did you mean e",
            ),
            ("stage1.epochs 1 2", {}, "there is no setting stage1.epochs with --method hut"),
            (" 1 2", {}, "--space.1: --method hut has no 1"),
            ("r", {}, "--space.r without a value: give the values to search (a whole number)"),
            ("learning-rate 1e-2 1e-3", {}, "--space.learning-rate 1e-2 1e-3: the range ends below its start"),
            ("learning-rate 1e-2 0.01", {}, "both ends of the range are equal: give one value to fix it"),
            ("learning-rate 0 0.01", {}, "start it above 0"),
            ("learning-rate -1 0.01", {}, "start it above 0"),
            ("learning-rate 0 1e-3 1e-2", {}, "--space.learning-rate 0.0: --train.learning-rate is 0.0: it must be a"),
            ("learning-rate nan 0.01", {}, "--space.learning-rate nan: it takes finite numbers"),
            ("learning-rate 1e-3 inf", {}, "--space.learning-rate inf: it takes finite numbers"),
            ("learning-rate fast 0.01", {}, "--space.learning-rate fast: it takes a number"),
            ("weight-decay -1 0.1", {}, "--space.weight-decay -1.0: --train.weight-decay is -1.0: it must be 0 or ab"),
            ("r 1 2.5", {}, "--space.r 2.5: it takes a whole number"),
            ("r 1 None", {}, "--space.r None: it takes a whole number"),
            ("r 1 0", {}, "--space.r 0: --method.r is 0: it must be at least 1"),
            ("r 1 2 1", {}, "--space.r names 1 twice: give each value once"),
            ("roles query query", {}, "--space.roles names query twice"),
            ("roles query, value", {}, "--space.roles with an empty value"),
            ("layers top:2 tpo:2", {}, "--space.layers tpo:2: layers has 'tpo:2'"),
            ("scale yes no", {}, "--space.scale yes: it takes true or false"),
            ("schedule linear square", {}, "--space.schedule square: it takes linear or cosine or constant"),
            ("task.max-length 64 1", {}, "--space.task.max-length 1: --task.max-length is 1: it must be at least 8"),
            ("r 1 2\nmethod.r 4 8", {}, "--space.r and --space.method.r both mean method.r: give one of them"),
            ("epochs 1 2\nmax-steps 5 6", {}, "--space.epochs and --space.max-steps both say when training ends"),
            ("warmup-ratio 0 0.1", {"task": "e2e"}, "leave it out, or give --train.warmup-steps None"),
            ("r 4\nlearning-rate 1e-3", {}, "nothing is left to search"),
        ],
    )
    def test_what_is_refused(self, flags, names, says):
        with pytest.raises(UserError) as refused:
            built(flags, **names)
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        "name",
        [
            "seed",
            "model",
            "output-dir",
            "method",
            "task",
            "score",
            "split",
            "preset",
            "data.dir",
            "data.train-limit",
            "task.held-out",
            "train.eval-every",
        ],
    )
    def test_what_all_trials_have_in_common(self, name):
        with pytest.raises(UserError, match=rf"^--space\.{name}: .* same in all trials, .*: set it by --{name}$"):
            built(f"{name} 1 2")

    def test_the_end_of_training_is_said_once(self):
        assert "train.epochs" in built("epochs 1 2", task="e2e").parameters  # its recipe's steps give way
        with pytest.raises(UserError, match=r"--space.epochs and --train.max-steps 60 both say when training ends"):
            built("epochs 1 2", task="e2e", fixed={"train.max_steps"})

    def test_everything_fixed_leaves_nothing(self):
        with pytest.raises(UserError, match="nothing is left to search"):
            built(fixed={RATE, R})


class TestOptuna:
    SPACE = "learning-rate 1e-3 1e-2\nweight-decay 0 0.1\nroles query,value query\nlayers top:2 None\nscale true false"

    def test_a_trial_gets_values_that_its_stored_parameters_mean(self, tmp_path):
        searched = built(self.SPACE)
        study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", sampler=optuna.samplers.RandomSampler(0))
        seen = []
        study.optimize(lambda trial: seen.append(searched.suggest(trial)) or 0.0, n_trials=12)
        loaded = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{tmp_path}/study.db")
        assert [searched.from_params(trial.params) for trial in loaded.trials] == seen
        assert [searched.to_params(values) for values in seen] == [trial.params for trial in loaded.trials]
        for values in seen:
            assert values.keys() == searched.parameters.keys()
            assert 1e-3 <= values[RATE] <= 1e-2
            assert values["method.roles"] in (("query", "value"), ("query",))
            assert apply(configured(), values).method_settings.layers == values["method.layers"]
        assert {values["method.layers"] for values in seen} == {("top:2",), None}
        distribution = loaded.trials[0].distributions
        assert distribution[RATE] == optuna.distributions.FloatDistribution(1e-3, 1e-2, log=True)
        assert distribution["train.weight_decay"] == optuna.distributions.FloatDistribution(0.0, 0.1)

    def test_parameters_of_another_space_are_refused(self):
        searched = built("r 1 2")
        with pytest.raises(UserError, match=r"the parameter method.rank of a trial is not in the search space"):
            searched.from_params({"method.rank": 1})
        with pytest.raises(UserError, match=r"a trial has method.r 4, and the search space has 1 \| 2"):
            searched.from_params({R: 4})

    def test_a_grid_is_the_product_of_the_choices(self):
        grid = built("learning-rate 1e-3 2e-3 3e-3\nr 1 2").grid()
        assert grid == [{RATE: rate, R: r} for rate in (1e-3, 2e-3, 3e-3) for r in (1, 2)]
        with pytest.raises(UserError, match=r"train.learning_rate is a range, .* such as --space.train.learning-rate "):
            built().grid()

    def test_the_identity_is_json_and_tells_spaces_apart(self):
        identity = built(self.SPACE).identity()
        assert json.loads(json.dumps(identity)) == identity == built(self.SPACE).identity()
        assert identity[RATE] == "0.001 to 0.01, log-uniform"
        assert identity["method.roles"] == "query,value | query"
        others = ["learning-rate 1.0000001e-3 1e-2", "learning-rate 1e-3 1e-2 5e-3", "r 1 2", "r 2 1", "r 1"]
        assert len({json.dumps(built(flags).identity()) for flags in ["", *others]}) == len(others) + 1

    def test_a_person_reads_a_line(self):
        described = built("r 1 2").describe()
        assert described == "train.learning_rate: 0.0001 to 0.1, log-uniform; method.r: 1 | 2"


def test_stored_values_are_read_back_by_the_setting_alone():
    config = configured()
    searched = built("r 1 2\nlayers 0,top:2 None\nroles query,value key\nscale true false\nschedule linear cosine")
    hints = cli.keys(config)
    for key, domain in searched.parameters.items():
        for value in domain.values if isinstance(domain, Choices) else (domain.low,):
            assert decode(key, encode(value), cli.plain(hints[key])) == value


class TestApply:
    def test_each_part_of_the_configuration(self):
        values = {RATE: 0.5, "stage1.learning_rate": 0.25, "method.layers": ("top:2",), "task.max_length": 64}
        before = configured("hadamard")
        after = apply(before, values)
        assert after.train == replace(before.train, learning_rate=0.5)
        assert after.stages.stage1 == replace(before.stages.stage1, learning_rate=0.25)
        assert after.method_settings == replace(before.method_settings, layers=("top:2",))
        assert after.task_settings == replace(before.task_settings, max_length=64)
        assert apply(before, {}) == before

    def test_epochs_and_steps_give_way_to_each_other_as_in_recipes(self):
        steps = configured("hut", "e2e")
        assert steps.train.max_steps
        assert apply(steps, {"train.epochs": 2.0}).train.max_steps is None
        stage = apply(configured("hadamard"), {"stage1.max_steps": 7}).stages.stage1
        assert (stage.epochs, stage.max_steps) == (None, 7)
        stage = apply(configured("hadamard", stage1__max_steps=7), {"stage1.epochs": 2.0}).stages.stage1
        assert (stage.epochs, stage.max_steps) == (2.0, None)

    def test_the_seed_may_differ_where_trials_are_averaged_over_it(self):
        config = configured()
        changed = apply(config, {"seed": 7, R: 3})
        assert (changed.seed, changed.method_settings.r) == (7, 3)
        assert changed.train == config.train

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({R: 0}, "--method.r is 0"),
            ({"task.max_length": 1}, "--task.max-length is 1"),
            ({"method.rank": 1}, "method.rank is no setting of --method hut and --task cola"),
            ({"preset": "paper"}, "preset is no setting"),
            ({"stage1.epochs": 1.0}, "stage1.epochs is no setting"),
        ],
        ids=str,
    )
    def test_what_is_refused(self, values, says):
        with pytest.raises(UserError, match=says):
            apply(configured(), values)


def test_the_command_line_fixes_what_it_gives():
    argv = ["--method", "hut", "--task", "cola", "--train.learning_rate=1e-3", "--space.method.roles", "query", "value"]
    rest, given = cli.split_groups(argv, "--space.")
    config = cli.parse(rest).config
    searched = build(config, given, cli.given_keys(rest, config))
    assert searched.parameters == {R: Choices((1, 2, 4, 8)), "method.roles": Choices((("query",), ("value",)))}
    assert config.train.learning_rate == 1e-3
