"""A run that was stopped, however and whenever, goes on to the very result of one that was not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from harness.checkpoint import FORMAT

OUT = Path("out")
CHECKPOINT = OUT / "checkpoint"
LAST = CHECKPOINT / "last.safetensors"


WHOLE: dict[str, object] = {}


@pytest.fixture
def uninterrupted(run_here, arguments, what_counts):
    """What the whole run gives, by method; computed once, since it is the same each time."""

    def run(method: str = "lora") -> object:
        if method not in WHOLE:
            code, _, err = run_here(arguments(method=method, out="whole"))
            assert code == 0, err
            WHOLE[method] = what_counts(Path("whole"))
        return WHOLE[method]

    return run


@pytest.fixture
def stopped(run_here, arguments, monkeypatch):
    """A run that was interrupted in its sixth loss, after the checkpoint of step 4."""
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-6")
    assert run_here(arguments())[0] == 130
    monkeypatch.delenv("TOY_FAULT")


# AdaLoRA's rank allocator has a state of its own
@pytest.mark.parametrize("method", ["lora", "full", "adalora"])
def test_killed_in_training(method, run_forked, run_here, arguments, what_counts, uninterrupted):
    assert run_forked(arguments(method=method), "kill-loss-6") == -signal.SIGKILL
    assert not (OUT / "result.json").exists()
    code, _, err = run_here(arguments("--resume", method=method))
    assert code == 0, err
    assert "going on after step 4 of 8" in err
    assert what_counts(OUT) == uninterrupted(method)


def test_killed_in_scoring_is_not_trained_again(
    run_forked, run_here, arguments, what_counts, uninterrupted, monkeypatch
):
    assert run_forked(arguments(), "kill-evaluate") == -signal.SIGKILL
    monkeypatch.setenv("TOY_FAULT", "kill-loss-1")  # a step of training would end this process
    code, _, err = run_here(arguments("--resume"))
    monkeypatch.delenv("TOY_FAULT")
    assert code == 0, err
    assert what_counts(OUT) == uninterrupted()


@pytest.mark.parametrize("loss", [1, 2, 3, 8])
def test_stopped_at_any_step(loss, run_here, arguments, what_counts, uninterrupted, monkeypatch):
    monkeypatch.setenv("TOY_FAULT", f"interrupt-loss-{loss}")
    code, out, err = run_here(arguments())
    assert (code, out) == (130, "")
    assert "to go on: python -m harness.run --method lora" in err
    assert err.endswith("--resume\n")
    monkeypatch.delenv("TOY_FAULT")
    code, _, err = run_here(arguments("--resume"))
    assert code == 0, err
    assert ("starts from the beginning" in err) == (loss <= 2)
    assert what_counts(OUT) == uninterrupted()


@pytest.mark.parametrize("call", [*range(1, 8), 12])
def test_stopped_in_the_middle_of_writing(call, run_here, arguments, what_counts, uninterrupted, monkeypatch):
    """Each write flushes to the disk before and after the file gets its name; stop at each of these moments."""
    flush, calls = os.fsync, []

    def stop(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise KeyboardInterrupt
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        code, _, err = run_here(arguments())
    assert code == 130
    if (OUT / "config.toml").exists():  # the very first write makes the run
        code, _, err = run_here(arguments("--resume"))
    else:
        code, _, err = run_here(arguments())
    assert code == 0, err
    assert what_counts(OUT) == uninterrupted()


def test_a_stopped_run_goes_on_without_repeating_its_flags(run_here, stopped, what_counts, uninterrupted):
    code, _, err = run_here(["--resume", "--output-dir", "out"])
    assert code == 0, err
    assert what_counts(OUT) == uninterrupted()


def test_a_finished_run_is_shown_and_not_computed_again(run_here, arguments, monkeypatch):
    _, first, _ = run_here(arguments())
    monkeypatch.setenv("TOY_FAULT", "kill-loss-1")
    code, again, err = run_here(arguments("--resume"))
    assert code == 0
    assert again == first
    assert "finished" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--train.learning-rate", "0.5"], "--train.learning-rate 0.01 and this command has 0.5"),
        (["--method.r", "3"], "--method.r 2 and this command has 3"),
        (["--seed", "1"], "--seed 0"),
        (["--task.longest", "3"], "--task.longest 4"),
        (["--train.micro-batch-size", "2"], "--train.micro-batch-size None"),
        (["--preset", "epochs"], "--data"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_configuration_is_refused(flags, says, run_here, arguments, stopped, assert_refused):
    says = says if "--preset" not in flags else "this command has"
    assert_refused(*run_here(arguments("--resume", *flags)), says)


def test_another_base_model_is_refused(run_here, arguments, stopped, assert_refused, tiny_model, tmp_path):
    weights = tiny_model / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        assert_refused(*run_here(arguments("--resume")), "base model's sha256")
    finally:
        weights.write_bytes(original)


def test_an_empty_checkpoint_is_refused(run_here, arguments, stopped, assert_refused):
    for path in CHECKPOINT.iterdir():
        path.unlink()
    assert_refused(*run_here(arguments("--resume")), "is empty")


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_a_truncated_checkpoint_is_refused(size, run_here, arguments, stopped, assert_refused):
    LAST.write_bytes(LAST.read_bytes()[:size])
    assert_refused(*run_here(arguments("--resume")), "is damaged")


def test_a_foreign_checkpoint_is_refused(run_here, arguments, stopped, assert_refused, tiny_model):
    LAST.write_bytes((tiny_model / "model.safetensors").read_bytes())
    assert_refused(*run_here(arguments("--resume")), "was not written by")
    LAST.rename(CHECKPOINT / "other.bin")
    assert_refused(*run_here(arguments("--resume")), "has no last.safetensors")


def test_a_checkpoint_of_another_version_is_refused(run_here, arguments, stopped, assert_refused):
    state = json.dumps({"history": {"step": 4, "seen": 32}, "identity": {}})
    save_file(load_file(LAST), LAST, metadata={"format": FORMAT, "state": state})
    assert_refused(*run_here(arguments("--resume")), "was not written by this version of harness.run")


def test_a_checkpoint_of_another_model_is_refused(run_here, arguments, stopped, assert_refused, monkeypatch):
    run_here(arguments(method="full", out="other"))
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-6")
    run_here(arguments("--overwrite", method="full", out="other"))
    LAST.write_bytes(Path("other/checkpoint/last.safetensors").read_bytes())
    assert_refused(*run_here(arguments("--resume")), "of another model")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    run_here, arguments, assert_refused, monkeypatch, what_counts, uninterrupted
):
    monkeypatch.setenv("TOY_FAULT", "nan-loss-6")
    code, out, err = run_here(arguments())
    assert_refused(code, out, err, "loss is not finite at step 6 of 8")
    assert f"the last good checkpoint is kept in {CHECKPOINT}" in err
    assert not (OUT / "result.json").exists()
    monkeypatch.delenv("TOY_FAULT")
    code, _, err = run_here(arguments("--resume"))
    assert code == 0, err
    assert what_counts(OUT) == uninterrupted()


def test_a_learning_rate_that_diverges_is_reported(run_here, arguments, assert_refused):
    flags = ["--train.learning-rate", "1e38", "--train.warmup-steps", "0"]
    assert_refused(*run_here(arguments(*flags)), "is not finite")


def test_parameters_that_are_not_finite_are_never_a_checkpoint(run_here, arguments, assert_refused):
    flags = ["--train.learning-rate", "1e39", "--train.warmup-steps", "0", "--train.save-every", "1"]
    code, out, err = run_here(arguments(*flags, "--train.eval-every", "never", "--score", "last"))
    assert_refused(code, out, err, "trained parameter is not finite at step 1")
    assert not CHECKPOINT.exists()
