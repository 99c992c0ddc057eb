"""The two loops of the throughput measurement do the same work, which is what makes their ratio mean something."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.efficiency import harness_throughput
from benchmarks.efficiency.harness_throughput import Settings, bare_loop, compare, cut_recipe, main
from harness.checkpoint import trained_parameters
from harness.console import Console
from harness.errors import run_command
from harness.preparation import prepare
from harness.run import make_accelerator

FIGURES = {"bare_seconds", "harness_seconds", "throughput_ratio"}


@pytest.fixture
def settings(checkpoint, glue_folder, run_here):
    """A measurement of 8 steps on a tiny model; ``run_here`` keeps to one thread and restores what it changed."""
    folder = glue_folder("cola", train=80, validation=6)
    return Settings(data_dir=folder, model=str(checkpoint("bert")), steps=8, turns=1)


@pytest.mark.parametrize("method", ["hut", "lora"])
def test_the_loops_end_with_the_same_parameters(method, settings, monkeypatch):
    compared, original = [], torch.testing.assert_close

    def assert_close(ours, theirs, **tolerance):
        compared.append((ours, theirs))
        original(ours, theirs, **tolerance)

    monkeypatch.setattr(torch.testing, "assert_close", assert_close)
    settings = replace(settings, method=method)
    assert compare(settings).keys() == FIGURES
    config = cut_recipe(settings)
    untrained = prepare(config, make_accelerator(config), Console(speaks=False)).model
    start = list(trained_parameters(untrained).values())
    assert len(compared) == 2 * len(start)  # the turn that warms up and the measured one
    for (ours, _), before in zip(compared, 2 * start, strict=True):
        assert not torch.equal(ours, before)  # and both have trained


def without_clipping(config, plan):
    return replace(config, train=replace(config.train, max_grad_norm=None)), plan


def without_warmup(config, plan):
    return replace(config, train=replace(config.train, warmup_ratio=0.0)), plan


def with_a_step_less(config, plan):
    return config, replace(plan, total=plan.total - 1)


@pytest.mark.parametrize("change", [without_clipping, without_warmup, with_a_step_less])
def test_a_bare_loop_that_does_less_is_no_floor(change, settings, monkeypatch):
    def cheaper(model, config, workload, plan, device):
        config, plan = change(config, plan)
        return bare_loop(model, config, workload, plan, device)

    monkeypatch.setattr(harness_throughput, "bare_loop", cheaper)
    with pytest.raises(AssertionError, match="not close"):
        compare(settings)


def arguments(settings: Settings) -> list[str]:
    return [
        *("--data-dir", str(settings.data_dir), "--model", settings.model),
        *("--steps", str(settings.steps), "--turns", str(settings.turns)),
    ]


def test_json_is_one_line_with_figures_and_settings(settings, capfd):
    capfd.readouterr()
    assert main([*arguments(settings), "--json"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    found = json.loads(line)
    assert found.keys() == FIGURES | {"settings"}
    assert all(found[name] > 0 for name in FIGURES)
    assert found["settings"]["steps"] == "8"
    assert found["settings"]["method"] == "hut"


def test_the_text_says_what_was_measured(settings, capfd):
    capfd.readouterr()
    assert main(arguments(settings)) == 0
    out = capfd.readouterr().out
    assert "hut on cola, preset quick: 8 steps a loop, each step the median of 1 interleaved turns, 1 threads" in out
    assert "throughput of the harness over the bare loop" in out


def test_data_that_is_missing_is_one_sentence(settings, capfd, tmp_path):
    capfd.readouterr()
    assert run_command(main, [*arguments(settings), "--data-dir", str(tmp_path / "nowhere")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: --data.dir")
    assert len(err.splitlines()) == 1
