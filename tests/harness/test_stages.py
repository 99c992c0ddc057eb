"""A method that is trained in stages: what each trains, what the result says of it, and how a stopped run goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import cli, recipes
from harness.config import StageConfig
from harness.order import Order
from harness.stages import train_config

OUT = Path("out")


@pytest.fixture
def staged(arguments):
    """The flags of a small classifier's run with the Hadamard adapter: 4 steps of the head, then 8."""

    def build(*more: str, method: str = "hadamard", task: str = "toy-classes", out: str = "out") -> list[str]:
        flags = arguments(method=method, out=out)
        flags[flags.index("--task") + 1] = task
        steps = ["--stage1.max-steps", "4"] if method == "hadamard" and task == "toy-classes" else []
        return [*flags, *steps, *more]

    return build


@pytest.fixture
def run_staged(run_here, staged):
    """Runs it and returns its result and the tensors of its adapter."""

    def run(*more: str, out: str = "out", **names: str) -> tuple[dict, dict[str, torch.Tensor]]:
        code, _, err = run_here(staged(*more, out=out, **names))
        assert code == 0, err
        result = json.loads(Path(out, "result.json").read_text())
        return result, load_file(Path(out, "adapter", "adapter_model.safetensors"))

    return run


def head_of(adapter: dict[str, torch.Tensor]) -> torch.Tensor:
    (head,) = (tensor for name, tensor in adapter.items() if "score" in name)
    return head


def test_the_result_knows_the_stages(run_staged):
    result, _ = run_staged()
    first, second = result["stages"]
    assert (first["stage"], first["steps"], first["parameters"]["head"]) == ("stage1", 4, 32)
    assert first["parameters"]["adapter"] == first["parameters"]["norm"] == 0
    assert (second["stage"], second["steps"], second["parameters"]["head"]) == ("stage2", 8, 0)
    assert second["parameters"]["adapter"] == second["parameters"]["norm"] == 2 * 2 * 16
    assert result["train"] == second
    assert result["parameters"]["head"] == 32  # over both stages
    assert result["parameters"]["total"] == second["parameters"]["total"]
    assert [entry["step"] for entry in first["measurements"]] == [2, 4]
    assert {entry["step"] for entry in result["evaluations"].values()} <= {2, 4, 6, 8}


def test_a_method_without_stages_has_none_in_its_result(run_staged):
    result, _ = run_staged(method="lora")
    assert "stages" not in result
    assert "stages" not in result["config"]


def test_the_head_is_trained_first_and_then_frozen(run_staged):
    _, short = run_staged("--train.max-steps", "2", "--score", "last")
    _, long = run_staged("--train.max-steps", "8", "--score", "last", out="long")
    _, more = run_staged("--stage1.max-steps", "6", "--score", "last", out="more")
    _, trained = run_staged("--method.head", "train", "--score", "last", out="trained")
    assert torch.equal(head_of(short), head_of(long))
    assert not torch.equal(head_of(more), head_of(long))
    assert not torch.equal(head_of(trained), head_of(long))
    assert any(not torch.equal(short[name], long[name]) for name in short)


def test_bf16_stays_near_fp32_in_all_stages(run_staged, encoder):
    """A model that was trained once is trained again, as the base of the adapter, with its own forward."""
    fp32, _ = run_staged("--model", str(encoder))
    bf16, adapter = run_staged("--model", str(encoder), "--train.mixed-precision", "bf16", out="bf16")
    for ours, theirs in zip(bf16["stages"], fp32["stages"], strict=True):
        assert ours["steps"] == theirs["steps"]
        assert ours["final_loss"] != theirs["final_loss"]
        assert ours["final_loss"] == pytest.approx(theirs["final_loss"], rel=2**-7)
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())


def test_stage_settings_take_the_place_of_train_settings():
    config = recipes.build("hadamard", "cola", "quick")
    first = train_config(config, "stage1")
    assert (first.epochs, first.max_steps, first.learning_rate) == (1, None, 1e-2)
    assert first.batch_size == config.train.batch_size
    assert config.train.epochs == 2


def test_a_flag_says_in_its_own_way_when_a_stage_ends():
    flags = ["--method", "hadamard", "--task", "cola"]  # its recipe gives epochs
    assert cli.parse([*flags, "--stage1.max-steps", "7"]).config.stages.stage1 == StageConfig(1e-2, max_steps=7)
    assert cli.parse([*flags, "--stage1.epochs", "2"]).config.stages.stage1 == StageConfig(1e-2, epochs=2.0)


def test_the_last_stage_has_the_order_of_other_methods(run_here, staged, monkeypatch):
    seen = []
    batch = Order.batch

    def watched(self, step):
        seen.append((self.seed, batch(self, step)))
        return batch(self, step)

    monkeypatch.setattr(Order, "batch", watched)
    assert run_here(staged(method="lora"))[0] == 0
    plain = seen.copy()
    seen.clear()
    assert run_here(staged(out="staged"))[0] == 0
    assert seen[4:] == plain
    assert {seed for seed, _ in seen[:4]}.isdisjoint(seed for seed, _ in plain)


def test_a_model_without_a_head_skips_the_stage_that_needs_one(run_here, staged):
    code, out, err = run_here(staged("--train.max-steps", "2", task="toy"))
    assert code == 0, err
    sentence = "stage1 (the head, on the frozen model): skipped, since the model of this task has no head to train"
    assert sentence in err
    assert sentence in out
    result = json.loads((OUT / "result.json").read_text())
    assert result["stages"][0].keys() == {"stage", "trains", "skipped"}
    assert result["stages"][1]["steps"] == 2


WHOLE: list[object] = []


@pytest.fixture
def uninterrupted(run_here, staged, what_counts):
    if not WHOLE:
        code, _, err = run_here(staged(out="whole"))
        assert code == 0, err
        WHOLE.append(what_counts(Path("whole")))
    return WHOLE[0]


@pytest.mark.parametrize("loss", [3, 4, 5, 6, 12])
def test_stopped_at_any_step(loss, run_here, staged, what_counts, uninterrupted, monkeypatch):
    """Steps 1 to 4 are of the first stage, 5 to 12 of the second; the first one's end is not computed twice."""
    monkeypatch.setenv("TOY_FAULT", f"interrupt-loss-{loss}")
    assert run_here(staged())[0] == 130
    monkeypatch.delenv("TOY_FAULT")
    code, _, err = run_here(["--resume", "--output-dir", "out"])
    assert code == 0, err
    assert ("stage1: finished" in err) == (loss > 4)
    assert what_counts(OUT) == uninterrupted
    assert not list(OUT.glob("checkpoint*"))


def test_killed_in_the_second_stage(run_forked, run_here, staged, what_counts, uninterrupted):
    assert run_forked(staged(), "kill-loss-7") == -signal.SIGKILL
    assert {path.name for path in OUT.glob("checkpoint*")} == {"checkpoint", "checkpoint-stage1"}
    code, _, err = run_here(staged("--resume"))
    assert code == 0, err
    assert "stage2: going on after step 2 of 8" in err
    assert what_counts(OUT) == uninterrupted


def test_other_stage_settings_are_not_resumed(run_here, staged, monkeypatch, assert_refused):
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-3")
    assert run_here(staged())[0] == 130
    monkeypatch.delenv("TOY_FAULT")
    refused = run_here(staged("--stage1.max-steps", "6", "--resume"))
    assert_refused(*refused, "was started with --stage1.max-steps 4 and this command has 6")


def test_two_processes_train_what_one_does(run_two, run_staged, staged):
    flags = ("--score", "last", "--train.model-dropout", "0")
    alone, _ = run_staged(*flags)
    run_two(staged(*flags, out="two"))
    together = json.loads(Path("two", "result.json").read_text())
    for mine, theirs in zip(alone["stages"], together["stages"], strict=True):
        for here, there in zip(mine["loss_curve"], theirs["loss_curve"], strict=True):
            assert here["loss"] == pytest.approx(there["loss"], rel=1e-4)


def test_a_diverging_stage_names_its_learning_rate(run_here, staged, monkeypatch, assert_refused):
    monkeypatch.setenv("TOY_FAULT", "nan-loss-2")
    assert_refused(*run_here(staged()), "a lower --stage1.learning-rate may help")


def test_a_start_from_another_run(run_staged):
    """What the other one trained comes in with the last stage; the head is trained anew."""
    _, donor = run_staged("--score", "last")
    result, adapter = run_staged(
        "--init-from", "out", "--train.max-steps", "1", "--train.learning-rate", "1e-12", "--score", "last", out="next"
    )
    assert result["init_from"]["copied"] == 2 * 2 * 2 * 16
    assert not torch.equal(head_of(adapter), head_of(donor))
    for name, tensor in adapter.items():
        assert "score" in name or torch.allclose(tensor, donor[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("method", "flags", "says"),
    [
        ("lora", ("--stage1.epochs", "1"), "--method lora is not trained in stages"),
        ("hadamard", ("--stage2.epochs", "1"), "the settings of the last stage are the --train.* flags"),
        ("hadamard", ("--stage3.epochs", "1"), "has no such stage (known: stage1"),
        ("hadamard", ("--stage1.epoch", "1"), "a stage has no such setting (known: learning-rate"),
        ("hadamard", ("--stage1.max-steps", "0"), "--stage1.max-steps is 0: it must be at least 1"),
        ("hadamard", ("--stage1.learning-rate", "-1"), "--stage1.learning-rate is -1.0"),
        ("hadamard", ("--stage1.epochs", "1"), "both say when it ends: give one of them"),
        ("hadamard", ("--stage1.batch-size", "99"), "99"),
        ("hadamard", ("--method.layers", "7"), "layers has 7, but the layers are 0 to 1"),
        ("hadamard", ("--method.layers", "top:3"), "there are 2 layers"),
        ("hadamard", ("--method.layers", "upper"), "give numbers, ranges such as 2-5, top:N, bottom:N or every:N"),
        ("hadamard", ("--method.norm", "layer"), "--method.norm layer"),
        ("hadamard", ("--method.roles", "cross.attention_output"), "No module in the role 'cross.attention_output'"),
        ("hadamard", ("--method.no-weight", "--method.no-bias", "--method.norm", "none"), "nothing would train"),
    ],
)
def test_bad_input(method, flags, says, run_here, staged, assert_refused):
    assert_refused(*run_here(staged(*flags, method=method)), says)
    assert not OUT.exists()
