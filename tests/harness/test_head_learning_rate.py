"""``--train.head-learning-rate`` reaches the head's parameters and no other, and follows the same schedule."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config

from hadamard_baselines.methods.low_rank import Lora
from hadamard_core.accounting import trained_by_group
from harness.config import TrainConfig
from harness.methods import Full
from harness.training import make_optimizer, schedule

CONFIG = TrainConfig(learning_rate=1e-3, head_learning_rate=5e-2, weight_decay=0.1)
CLASSES = ("--task", "toy-classes")


@pytest.fixture(params=["bert", "gpt2"])
def bare(request):
    if request.param == "bert":
        config = BertConfig(
            vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    else:
        config = GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2)
    return AutoModelForSequenceClassification.from_config(config)


HEADS = {"bert": ("classifier", "bert.pooler.dense"), "gpt2": ("score",)}


@pytest.mark.parametrize("method", [Lora(r=2), Full()], ids=lambda method: type(method).__name__.lower())
def test_it_reaches_exactly_the_head(method, bare):
    model = method.apply(bare, "SEQ_CLS", HEADS[bare.config.model_type])
    groups = make_optimizer(model, CONFIG, torch.device("cpu")).param_groups
    peaks = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert peaks.keys() == trained
    assert sum(len(group["params"]) for group in groups) == len(trained)
    head = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(f"{module}." in name for module in HEADS[bare.config.model_type])
    }
    assert {parameter for parameter, peak in peaks.items() if peak == 5e-2} == head
    assert {parameter for parameter, peak in peaks.items() if peak == 1e-3} == trained - head


def test_decay_does_not_depend_on_the_learning_rate(bare):
    model = Full().apply(bare, "SEQ_CLS")

    def decays(config):
        groups = make_optimizer(model, config, torch.device("cpu")).param_groups
        return {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}

    assert decays(CONFIG) == decays(TrainConfig(learning_rate=1e-3, weight_decay=0.1))
    assert set(decays(CONFIG).values()) == {0.1, 0.0}


def test_without_one_the_head_has_that_of_all_others(bare):
    model = Full().apply(bare, "SEQ_CLS")
    groups = make_optimizer(model, TrainConfig(learning_rate=1e-3), torch.device("cpu")).param_groups
    assert trained_by_group(model)["head"]
    assert {group["peak"] for group in groups} == {1e-3}


@dataclass
class Rates:
    """The learning rates of each step, by their peaks."""

    steps: list[dict[float, float]]

    def __call__(self, optimizer, *_):
        self.steps.append({group["peak"]: group["lr"] for group in optimizer.param_groups})


def test_the_schedule_scales_both(run_here, arguments):
    rates = Rates([])
    hook = register_optimizer_step_pre_hook(rates)
    flags = ["--train.learning-rate", "1e-3", "--train.head-learning-rate", "5e-2", "--train.warmup-steps", "3"]
    try:
        code, out, err = run_here(arguments(*CLASSES, *flags, "--json"))
    finally:
        hook.remove()
    assert code == 0, err
    config = TrainConfig(warmup_steps=3)
    shares = [schedule(config, step, 8) for step in range(8)]
    assert rates.steps == [{1e-3: 1e-3 * share, 5e-2: 5e-2 * share} for share in shares]
    curve = json.loads(out)["train"]["loss_curve"]
    assert [point["learning_rate"] for point in curve] == pytest.approx([1e-3 * share for share in shares])


def test_a_stopped_run_goes_on_to_the_same_result(run_here, arguments, monkeypatch, what_counts, tmp_path):
    """The optimiser has more groups then, whose states must find their parameters again."""
    flags = [*CLASSES, "--train.head-learning-rate", "5e-2", "--train.weight-decay", "0.1"]
    assert run_here(arguments(*flags, method="full", out="whole"))[0] == 0
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-5")
    assert run_here(arguments(*flags, method="full"))[0] == 130
    monkeypatch.delenv("TOY_FAULT")
    code, _, err = run_here(arguments(*flags, "--resume", method="full"))
    assert code == 0, err
    assert what_counts(tmp_path / "out") == what_counts(tmp_path / "whole")
