"""Trials that train together have the numbers that each would have alone, whatever becomes of the others."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from harness import run
from harness.checkpoint import History
from harness.config import RunConfig
from harness.console import Console
from harness.errors import UserError
from harness.preparation import read, with_method
from harness.sweep import pack as pack_module
from harness.sweep.pack import Pack, PackedTrial
from harness.sweep.trial import HELD_OUT, Pruned
from harness.training import Diverged, StageTraining

STEPS = 50
CLOSE = 1e-5
"""How far apart two loss curves in fp32 may be: sums over a batch of many trials round otherwise."""
SILENT = Console(False)

VARIED = (
    {"learning_rate": 1e-2},
    {"learning_rate": 3e-3, "seed": 1, "batch_size": 6, "micro_batch_size": 2, "weight_decay": 0.1},
    {"learning_rate": 3e-2, "seed": 2, "max_grad_norm": 0.1, "settings": {"layers": ("top:1",)}},
    {"learning_rate": 1e-3, "warmup_steps": 10, "schedule": "cosine", "eval_every": 20},
    {"learning_rate": 5e-2, "seed": 1, "batch_size": 8, "max_grad_norm": None},
    # Queries and keys get no gradient from a batch of texts of one token, only rounding, by which AdamW must not step.
    {"learning_rate": 2e-2, "seed": 3, "head_learning_rate": 1e-3, "group_by_length": True, "adam_epsilon": 1e-6},
    {"learning_rate": 7e-3, "batch_size": 2, "warmup_ratio": 0.2, "adam_beta2": 0.99, "settings": {"layers": (0,)}},
    {"learning_rate": 1e-2, "seed": 2, "batch_size": 3, "schedule": "constant", "adam_beta1": 0.8},
    {"learning_rate": 4e-3, "seed": 4, "batch_size": 6, "micro_batch_size": 3, "weight_decay": 0.01},
)
"""Trials that differ in all that trials of a pack may."""


@pytest.fixture
def varied(configured):
    """Makes the configurations of the trials; of those with stages each has a first stage of another length."""

    def make(method: str) -> list[RunConfig]:
        common = {"max_steps": STEPS, "eval_every": 25, "weight_decay": 0.0}
        stage1 = [{"stage1": {"max_steps": 4 + number}} if method == "hadamard" else {} for number in range(9)]
        return [configured(method, **common | own | early) for own, early in zip(VARIED, stage1, strict=True)]

    return make


def rules_of(config: RunConfig):
    rules = config.task_settings.rules
    return {HELD_OUT: rules[HELD_OUT]} if HELD_OUT in rules else dict(rules)


def read_for(config: RunConfig):
    return read(config, rules_of(config), run.make_accelerator(config), SILENT)


@functools.cache
def alone(config: RunConfig) -> tuple[list[History], object]:
    """What happens in each stage of a run of its own, and the numbers of its parameters."""
    accelerator = run.make_accelerator(config)
    setup = with_method(read_for(config), config, rules_of(config), accelerator)
    counts = setup.counts
    _, histories = run.train_stages(setup, config, [None] * len(setup.stages), accelerator, SILENT)
    return [history for history in histories if history is not None], counts


@dataclass
class Packed:
    """A trial of a pack, and the stages that it went through."""

    trial: PackedTrial
    stages: list[StageTraining] = field(default_factory=list)
    most_together: int = 0

    @property
    def histories(self) -> list[History]:
        return [training.history for training in self.stages]


def make_pack(config: RunConfig) -> Pack:
    return Pack(read_for(config), config, rules_of(config), run.make_accelerator(config), SILENT)


def nothing(history: History) -> None:
    pass


def train_together(configs: Sequence[RunConfig], places: int | None = None, watchers=None, disturb=None):
    """Trains trials in one pack; with fewer places than trials the next one comes as soon as one is over.

    Args:
        watchers: number of a trial -> what its measurements are given to.
        disturb: called with the trials by number before each pass.
    """
    pack, waiting = make_pack(configs[0]), deque(enumerate(configs))
    found: dict[int, Packed] = {}
    while waiting or pack.trials:
        while waiting and len(pack.trials) < (places or len(configs)):
            number, config = waiting.popleft()
            found[number] = Packed(pack.add(f"trial_{number}", config, (watchers or {}).get(number, nothing)))
        if disturb:
            disturb(found)
        for packed in found.values():
            if packed.trial in pack.trials:
                packed.most_together = max(packed.most_together, len(pack.trials))
                if packed.trial.training not in packed.stages:
                    packed.stages.append(packed.trial.training)
        for ended in pack.step():
            assert ended.ended
            assert ended not in pack.trials
    return [found[number] for number in range(len(configs))]


def assert_close(here: History, there: History) -> None:
    """Compares two histories, of which one may have been ended earlier."""
    steps = min(here.step, there.step)
    curves = [[entry for entry in each.losses if entry["step"] <= steps] for each in (here, there)]
    assert len(curves[0]) == steps  # a point for each step
    for one, other in zip(*curves, strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], abs=CLOSE)
        assert one["learning_rate"] == other["learning_rate"]
    measured = [[entry for entry in each.measurements if entry["step"] <= steps] for each in (here, there)]
    assert measured[0]
    for one, other in zip(*measured, strict=True):
        assert one.keys() == other.keys()
        for split in one.keys() - {"step"}:
            assert one[split] == pytest.approx(other[split], abs=CLOSE)


def assert_as_alone(packed: Packed) -> None:
    histories, counts = alone(packed.trial.config)
    assert packed.trial.error is None
    assert packed.trial.counts == counts
    assert len(packed.stages) == len(histories)
    for here, there in zip(packed.histories, histories, strict=True):
        assert_close(here, there)
        assert (here.step, here.targets) == (there.step, there.targets)
        assert {name: entry["step"] for name, entry in here.best.items()} == {
            name: entry["step"] for name, entry in there.best.items()
        }
    assert histories[-1].step == packed.trial.config.train.max_steps


def prune(history: History) -> None:
    raise Pruned


@pytest.mark.parametrize("places", [1, 3, 8])
@pytest.mark.parametrize("method", ["hut", "hadamard"])
def test_each_trial_has_the_numbers_of_a_run_of_its_own(varied, method, places):
    """One is pruned in the middle, and another one takes its place while the others go on."""
    configs, victim = varied(method)[: places + 1], places // 2
    found = train_together(configs, places, watchers={victim: prune})
    for number, packed in enumerate(found):
        assert packed.most_together == places
        if number != victim:
            assert_as_alone(packed)
    pruned = found[victim]
    assert isinstance(pruned.trial.error, Pruned)
    assert pruned.trial.history.step == configs[victim].train.eval_every
    for here, there in zip(pruned.histories, alone(configs[victim])[0], strict=True):
        assert_close(here, there)
    # they are not close because all curves are
    ends = {round(packed.histories[-1].losses[-1]["loss"], 3) for packed in found}
    assert len(ends) == places + 1


@pytest.mark.parametrize("method", ["hut", "hadamard"])
def test_trials_that_diverge_do_not_touch_the_others(varied, method):
    """By their parameters in the middle, and by a learning rate."""
    poisons = {1: (9, float("nan")), 2: (15, float("inf"))}

    def poison(trials: dict[int, Packed]) -> None:
        for number, (step, value) in poisons.items():
            training = trials[number].trial.training
            if training.history.step == step and training.stage.name != "stage1":
                with torch.no_grad():
                    for parameter in training.parameters:
                        parameter.fill_(value)

    configs = varied(method)[:5]
    configs[3] = replace(configs[3], train=replace(configs[3].train, learning_rate=1e38))
    found = train_together(configs, disturb=poison)
    assert_as_alone(found[0])
    assert_as_alone(found[4])
    for number, (step, _) in poisons.items():
        error = found[number].trial.error
        assert isinstance(error, Diverged)
        assert str(error).startswith(f"the loss is not finite at step {step + 1} of {STEPS}, so training stops; ")
        losses = [entry["loss"] for entry in found[number].histories[-1].losses]
        expected = [entry["loss"] for entry in alone(configs[number])[0][-1].losses[:step]]
        assert losses == pytest.approx(expected, abs=CLOSE)
    with pytest.raises(Diverged) as expected:
        alone(configs[3])
    assert isinstance(found[3].trial.error, Diverged)
    assert str(found[3].trial.error) == str(expected.value)


def test_a_watcher_that_fails_ends_its_trial_alone(configured):
    error = RuntimeError("the study is gone")

    def fail(history: History) -> None:
        raise error

    configs = [configured("hut", max_steps=6, eval_every=3, seed=seed) for seed in range(2)]
    found = train_together(configs, watchers={0: fail})
    assert found[0].trial.error is error
    assert_as_alone(found[1])


@pytest.mark.parametrize("method", ["hut", "hadamard"])
def test_language_models_without_a_head(configured, tiny_model, method):
    common = {"task": "toy", "model": tiny_model, "max_steps": 20, "eval_every": 10, "model_dropout": 0.0}
    configs = [configured(method, **common, seed=seed, learning_rate=10.0 ** -(2 + seed)) for seed in range(2)]
    found = train_together(configs)
    for packed in found:
        assert_as_alone(packed)
    assert [packed.trial.counts.head for packed in found] == [0, 0]


def test_trials_share_the_time_of_their_passes(configured):
    found = train_together([configured("hut", max_steps=2)] * 2)
    assert all(packed.trial.seconds == packed.trial.history.seconds > 0 for packed in found)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("lora", "--method lora: Adapters of LoraConfig are not vectors .*; train them one after another"),
        ("full", "--method full trains no vectors beside a frozen model, .*: leave out --pack"),
        ("head", "--method head trains no vectors beside a frozen model, .*: leave out --pack"),
    ],
)
def test_methods_whose_adapters_are_no_vectors_are_refused(configured, method, says):
    config = configured(method)
    with pytest.raises(UserError, match=says):
        make_pack(config).add("trial_0", config, nothing)


def test_gradient_checkpointing_is_refused(configured):
    config = configured("hut", gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"--pack: with --train\.gradient-checkpointing .*leave out one of the two"):
        make_pack(config)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"model_dropout": 0.1}, "--train.model-dropout"),
        ({"label_smoothing": 0.1}, "--train.label-smoothing"),
        ({"mixed_precision": "bf16"}, "--train.mixed-precision"),
    ],
)
def test_settings_that_a_pass_shares_must_not_differ(configured, changes, flag):
    first = configured("hut")
    pack = make_pack(first)
    pack.add("trial_0", first, nothing)
    with pytest.raises(UserError, match=rf"--pack: trials that train together share {flag}, which is .* in one and"):
        pack.add("trial_1", configured("hut", **changes), nothing)
    assert [trial.name for trial in pack.trials] == ["trial_0"]


def test_what_fits_into_the_memory_goes_by_what_one_trial_keeps(configured, monkeypatch):
    def fitting(gib: float, **train) -> int:
        monkeypatch.setattr(pack_module, "free_memory", lambda device: int(gib * 2**30))
        pack = make_pack(config := configured("hut", **train))
        pack.add("trial_0", config, nothing)
        return pack.fitting()

    few, many, large = fitting(0.5), fitting(1.0), fitting(1.0, batch_size=16)
    assert many == pytest.approx(2 * few, abs=1)
    assert 0 < 2 * large < many
    assert fitting(1.0, batch_size=16, micro_batch_size=4) == many
