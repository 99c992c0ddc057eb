"""What the loop computes: the same for every way to divide the work, and by the rules the settings state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hadamard_adapter.method import Hadamard
from harness.config import TrainConfig
from harness.order import Order, by_length, step_seed
from harness.training import make_optimizer, schedule

# eight AdamW steps amplify the rounding of sums taken in another order
TOLERANCE = {"rtol": 1e-4, "atol": 3e-5}  # AdamW turns rounding in gradients near zero into steps


@pytest.fixture
def trained(run_here, arguments):
    """Runs a method and returns the adapter's tensors and the result."""

    def run(*flags: str, method: str = "lora"):
        code, _, err = run_here(arguments(*flags, "--overwrite", method=method))
        assert code == 0, err
        return load_outcome(Path("out"))

    return run


def load_outcome(folder: Path):
    result = json.loads((folder / "result.json").read_text())
    return load_file(next((folder / "adapter").glob("*.safetensors"))), result


def assert_same_training(ours, theirs):
    for name, tensor in theirs[0].items():
        torch.testing.assert_close(ours[0][name], tensor, **TOLERANCE)
    for our, their in zip(ours[1]["train"]["loss_curve"], theirs[1]["train"]["loss_curve"], strict=True):
        assert (our["step"], our["learning_rate"]) == (their["step"], their["learning_rate"])
        assert our["loss"] == pytest.approx(their["loss"], rel=1e-5)
    for our, their in zip(ours[1]["train"]["measurements"], theirs[1]["train"]["measurements"], strict=True):
        assert our["step"] == their["step"]
        assert our["validation"] == pytest.approx(their["validation"], rel=1e-5)
    assert ours[1]["train"]["targets"] == theirs[1]["train"]["targets"]


# dropout draws other numbers where the batch is cut in another way, so it is off in these comparisons
# AdaLoRA adds a penalty to each step's loss, and acts on the model after it
@pytest.mark.parametrize(("size", "method"), [("1", "lora"), ("2", "lora"), ("1", "adalora")])
def test_accumulated_micro_batches_equal_one_batch(size, method, trained):
    whole = trained("--train.model-dropout", "0", method=method)
    pieces = trained("--train.model-dropout", "0", "--train.micro-batch-size", size, method=method)
    assert pieces[1]["train"]["micro_batch_size"] == int(size)
    assert_same_training(pieces, whole)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_two_processes_equal_one(method, trained, run_two, arguments):
    flags = ["--train.model-dropout", "0", "--train.micro-batch-size", "1"]
    out, err = run_two(arguments(*flags, "--json", out="two", method=method))
    assert json.loads(out)["train"]["processes"] == 2
    assert err.count("trained: ") == 1
    assert_same_training(load_outcome(Path("two")), trained(*flags, method=method))


def test_penalty_of_a_method_is_a_part_of_every_step(trained):
    without, weak, strong = (
        trained("--method.orthogonality", weight, method="adalora")[0] for weight in ("0", "1e-3", "10")
    )

    def distance(tensors):
        rows = [tensor for name, tensor in tensors.items() if ".lora_A" in name]
        return sum(float((row @ row.T - torch.eye(len(row))).square().sum()) for row in rows)

    assert distance(strong) < distance(weak) < distance(without)


def test_gradient_checkpointing_changes_nothing(trained):
    assert_same_training(trained("--train.gradient-checkpointing"), trained())


def test_bf16_stays_near_fp32(trained):
    bf16, fp32 = trained("--train.mixed-precision", "bf16"), trained()
    assert bf16[1]["train"]["final_loss"] == pytest.approx(fp32[1]["train"]["final_loss"], rel=2**-7)
    assert all(tensor.dtype == torch.float32 for tensor in bf16[0].values())


@pytest.mark.parametrize(
    "flags",
    [
        ["--train.model-dropout", "0.5"],
        ["--train.label-smoothing", "0"],
        ["--train.max-grad-norm", "0.01"],
        ["--train.weight-decay", "0.5"],
        ["--train.schedule", "constant"],
        ["--train.adam-beta2", "0.9"],
        ["--train.group-by-length"],
        ["--data.train-limit", "20"],
        ["--seed", "1"],
    ],
    ids=" ".join,
)
def test_each_setting_has_an_effect(flags, trained):
    changed, usual = trained(*flags), trained()
    assert any(not torch.equal(changed[0][name], tensor) for name, tensor in usual[0].items())


def test_a_run_can_be_repeated(trained):
    first, second = trained(), trained()
    assert all(torch.equal(first[0][name], tensor) for name, tensor in second[0].items())


def test_training_learns(trained):
    flags = ["--train.max-steps", "150", "--train.learning-rate", "1e-2", "--train.label-smoothing", "0"]
    _, result = trained(*flags, "--train.model-dropout", "0", method="full")
    assert result["train"]["final_loss"] < 0.5 * result["train"]["loss_curve"][0]["loss"]


def test_epochs_replace_the_recipe_s_steps(trained):
    _, result = trained("--train.epochs", "1.5")
    assert result["train"]["steps"] == 9  # 24 examples in batches of 4
    _, result = trained("--preset", "epochs")
    assert [point["step"] for point in result["train"]["measurements"]] == [3, 6]


class TestOrder:
    @pytest.mark.parametrize("grouped", [False, True])
    def test_an_epoch_takes_each_example_once(self, grouped):
        order = Order(tuple(range(5, 45)), batch_size=8, seed=3, group_by_length=grouped)
        for epoch in range(3):
            steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
            assert sorted(example for step in steps for example in order.batch(step)) == list(range(40))

    def test_epochs_and_seeds_differ(self):
        batches = {
            Order((5,) * 40, 8, seed, False).batch(step) for seed in range(3) for step in range(0, 15, 5)
        }  # all lengths are equal, so sorting by length keeps the drawn order
        assert len(batches) == 9

    def test_the_shares_of_all_processes_make_the_batch(self):
        order = Order(tuple(range(1, 33)), batch_size=16, seed=0, group_by_length=False)
        shares = [order.share(1, rank, 4, 2) for rank in range(4)]
        assert all(len(micro_batch) == 2 for share in shares for micro_batch in share)
        assert sorted(example for share in shares for part in share for example in part) == sorted(order.batch(1))

    def test_grouped_batches_hold_like_lengths(self):
        lengths = tuple(torch.randint(1, 100, (400,), generator=torch.Generator().manual_seed(0)).tolist())

        def spread(grouped):
            order = Order(lengths, 8, 0, grouped)
            batches = [order.batch(step) for step in range(order.steps_per_epoch)]
            return sum(max(map(lengths.__getitem__, batch)) - min(map(lengths.__getitem__, batch)) for batch in batches)

        assert spread(True) < 0.1 * spread(False)

    def test_by_length_takes_each_example_once_shortest_first(self):
        assert by_length([3, 1, 2, 5, 4], 2) == [[1, 2], [0, 4], [3]]

    def test_step_seeds_differ(self):
        seeds = {step_seed(seed, step, rank) for seed in range(4) for step in range(100) for rank in range(4)}
        assert len(seeds) == 1600


class TestSchedule:
    def test_warmup_rises_to_the_peak(self):
        config = TrainConfig(warmup_steps=4)
        assert [schedule(config, step, 8) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]

    def test_warmup_ratio_is_a_share_of_all_steps(self):
        assert schedule(TrainConfig(warmup_ratio=0.06), 6, 100) == 1
        assert schedule(TrainConfig(warmup_ratio=0.06), 5, 100) == 5 / 6

    @pytest.mark.parametrize(("name", "half_way"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
    def test_what_follows_the_warmup(self, name, half_way):
        config = TrainConfig(warmup_steps=2, schedule=name)
        assert schedule(config, 2, 12) == 1
        assert schedule(config, 7, 12) == pytest.approx(half_way)
        end = 1.0 if name == "constant" else 0.0
        assert schedule(config, 12, 12) == pytest.approx(end)


def test_biases_and_norms_do_not_decay():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1), torch.device("cpu"))
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert decayed == {id(model[0].weight), id(model[2].weight)}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_nor_do_those_of_adapters():
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = Hadamard().apply(BertForSequenceClassification(config), "SEQ_CLS", ["classifier"])
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1), torch.device("cpu"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert len(decayed) == 1
    assert "hadamard_weight" in decayed.pop()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
