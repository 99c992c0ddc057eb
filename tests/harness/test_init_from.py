"""``--init-from``: a run starts from what another one trained, but for the head, and its result says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLASSES = ("--task", "toy-classes")
SHORT = ("--train.max-steps", "2", "--train.eval-every", "1")
# the first step of a warmup has learning rate 0, so what such a run saves is what it started from
ONLY_START = ("--train.max-steps", "1", "--train.warmup-steps", "1", "--score", "last")
HEAD = "score.weight"


def weights(folder: str) -> dict[str, torch.Tensor]:
    (file,) = (Path(folder) / "adapter").glob("*.safetensors")
    return load_file(file)


def result(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


@pytest.fixture
def run(run_here, arguments):
    """Runs the classification task to its end."""

    def finish(*flags: str, **more: str) -> tuple[str, str]:
        code, out, err = run_here(arguments(*CLASSES, *flags, **more))
        assert code == 0, err
        return out, err

    return finish


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_trained_is_the_start_and_the_head_is_afresh(method, run):
    run(*SHORT, "--train.learning-rate", "0.1", method=method, out="donor")
    run(*ONLY_START, "--seed", "3", method=method, out="usual")
    run(*ONLY_START, "--seed", "3", "--init-from", "donor", method=method)
    start, donor, usual = weights("out"), weights("donor"), weights("usual")
    heads = {name for name in start if name.endswith(HEAD)}
    assert len(heads) == 1
    for name, tensor in start.items():
        assert torch.equal(tensor, usual[name] if name in heads else donor[name]), name
        if name in heads:
            assert not torch.equal(tensor, donor[name])
    assert any(not torch.equal(donor[name], usual[name]) for name in start.keys() - heads)


def test_the_other_run_may_have_another_number_of_classes(run):
    run(*SHORT, "--task.classes", "3", out="donor")
    run(*ONLY_START, "--init-from", "donor")
    donor, start = weights("donor"), weights("out")
    assert {name for name in start if start[name].shape != donor[name].shape} == {f"base_model.model.{HEAD}"}
    assert all(torch.equal(start[name], donor[name]) for name in start if not name.endswith(HEAD))


def test_a_language_model_has_no_head_to_leave_out(run_here, arguments):
    for flags, out in ((SHORT, "donor"), ([*ONLY_START, "--init-from", "donor"], "out")):
        code, _, err = run_here(arguments(*flags, "--train.learning-rate", "0.1", "--score", "last", out=out))
        assert code == 0, err
    donor, start = weights("donor"), weights("out")
    assert start.keys() == donor.keys()
    assert all(torch.equal(start[name], donor[name]) for name in start)


def test_the_result_says_where_the_start_came_from(run):
    run(*SHORT, "--seed", "5", "--score", "published", "last", out="donor")
    out, err = run(*ONLY_START, "--init-from", "donor")
    donor, facts = result("donor"), result("out")["init_from"]
    assert donor["init_from"] is None
    assert len(facts.pop("sha256")) == 64
    step = donor["evaluations"]["published"]["step"]
    assert facts == {
        "task": "toy-classes",
        "preset": "quick",
        "seed": 5,
        "parameters": "published",
        "step": step,
        "copied": 256,
    }
    origin = f"toy-classes (preset quick, seed 5, published, step {step})"
    words = f"256 parameters trained on {origin}; the head is not taken over"
    assert f"start: {words}" in out
    assert f"start: {words}" in err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of finished runs, which several tests start from copies of."""
    return tmp_path_factory.mktemp("finished")


class TestRefusals:
    """Each one sentence, and nothing is written."""

    @pytest.fixture
    def donor(self, run, finished):
        def make(*flags: str, method: str = "lora") -> None:
            key = " ".join([method, *flags])
            if not (finished / key).exists():
                run(*SHORT, *flags, method=method, out=str(finished / key))
            shutil.copytree(finished / key, "donor")

        return make

    @pytest.fixture
    def refused(self, run_here, arguments, assert_refused):
        def check(says: str, *flags: str, method: str = "lora") -> None:
            given = arguments(*CLASSES, *SHORT, "--init-from", "donor", *flags, method=method)
            assert_refused(*run_here(given), says)
            assert not Path("out").exists()

        return check

    def test_no_directory(self, refused):
        refused("--init-from donor: there is no result.json")

    def test_a_run_that_has_not_finished(self, donor, refused):
        donor()
        Path("donor/result.json").unlink()
        refused("--init-from donor: there is no result.json: give the directory of a finished run")

    def test_a_run_whose_adapter_is_gone(self, donor, refused):
        donor()
        shutil.rmtree("donor/adapter")
        refused("--init-from donor: its adapter folder cannot be read: Can't find 'adapter_config.json'")

    def test_a_run_whose_adapter_is_damaged(self, donor, refused):
        donor()
        file = Path("donor/adapter/adapter_model.safetensors")
        file.write_bytes(file.read_bytes()[:-10])
        refused("--init-from donor: its adapter folder cannot be read: ")

    def test_another_method(self, donor, refused):
        donor()
        refused("--init-from donor is a run of --method lora and this one of full", method="full")

    def test_other_weights(self, donor, refused, tiny_model):
        donor()
        file = Path(shutil.copytree(tiny_model, "other"), "model.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        refused("--init-from donor is a run on other weights", "--model", "other")

    def test_other_shapes(self, donor, refused):
        donor()
        refused("is (2, 16) there and (3, 16) here: give the --method settings of that run", "--method.r", "3")

    def test_modules_that_were_not_adapted_there(self, donor, refused):
        donor()
        refused("is missing there and (2, 16) here", "--method.target-modules", "c_attn", "attn.c_proj")

    def test_modules_that_are_not_adapted_here(self, donor, refused):
        donor("--method.target-modules", "c_attn", "attn.c_proj")
        refused("attn.c_proj.base_layer.bias is there and not here", "--method.target-modules", "c_attn")

    def test_settings_that_change_what_equal_shapes_mean(self, donor, refused):
        donor()
        refused("has --method.alpha 16.0 and this run 8.0", "--method.alpha", "8")

    def test_a_method_that_trains_the_head_alone(self, donor, refused):
        donor(method="head")
        refused("--method head trains the head alone, and the head is not taken over", method="head")


def test_a_stopped_run_goes_on_only_from_the_same_start(run, run_here, arguments, monkeypatch, assert_refused):
    run(*SHORT, out="donor")
    flags = [*CLASSES, "--init-from", "donor"]
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-3")
    assert run_here(arguments(*flags))[0] == 130
    monkeypatch.delenv("TOY_FAULT")
    kept = shutil.copytree("donor", "kept")
    run(*SHORT, "--overwrite", "--seed", "1", out="donor")
    assert_refused(*run_here(arguments(*flags, "--resume")), "sha256 of what --init-from holds")
    shutil.rmtree("donor")
    shutil.move(kept, "donor")
    code, _, err = run_here(arguments(*flags, "--resume"))
    assert code == 0, err


def test_a_method_that_chooses_what_it_trains_is_refused(run, run_here, arguments, assert_refused):
    short = (*SHORT, "--stage1.max-steps", "2", "--train.learning-rate", "1e-2")
    run(*short, method="far", out="donor")
    refused = run_here(arguments(*CLASSES, *short, "--init-from", "donor", method="far"))
    assert_refused(*refused, "--init-from donor: --method far chooses anew what it trains, and ")
