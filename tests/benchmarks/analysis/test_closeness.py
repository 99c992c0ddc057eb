"""Learned W, b beside the linear fit: an adapter that is the fit is found to be it, at its own position."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.analysis.attention_outputs import SampleSettings, load_sample, paired_outputs
from benchmarks.analysis.fit import collect
from benchmarks.analysis.runs import read_run

NAME = "base_model.model.bert.encoder.layer.{}.attention.output.dense.hadamard_{}"


@pytest.fixture
def compared(analyse, read_csv):
    """Runs the command; returns what it printed and the rows, numbers as numbers and None where there is none."""

    def run(*arguments: object) -> tuple[str, list[dict[str, float | None]]]:
        code, out, err = analyse("closeness", *arguments, "--output-dir", "out")
        assert code == 0, err
        rows = [
            {
                key: float(row[key]) if row[key] else None
                for key in row
                if key.startswith(("cos", "corr", "norm", "res"))
            }
            for row in read_csv(Path("out/closeness.csv"))
        ]
        return out, rows

    return run


@pytest.mark.parametrize("position", ["context", "projection"])
def test_an_adapter_that_is_the_fit_is_found_to_be_it(position, trained, compared, tmp_path):
    full = trained("full")
    run = read_run(full)
    fits = collect(run, load_sample(run, SampleSettings()), position, 32)
    path = tmp_path / "same"
    shutil.copytree(trained("hadamard", "mrpc", "--method.position", position), path)
    file = path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for layer, halves in fits.items():
        for kind, vector in zip(("weight", "bias"), halves.linear(), strict=True):
            tensors[NAME.format(layer, kind)] = vector.float()
    save_file(tensors, file)
    _, rows = compared(path, full)
    assert len(rows) == 2
    for row in rows:
        for key in ("cosine_w", "cosine_b", "correlation_w", "correlation_b"):
            assert row[key] == pytest.approx(1, abs=1e-4)
        for half in ("fitted", "other"):
            assert row[f"residual_adapter_{half}"] == pytest.approx(row[f"residual_fit_{half}"], rel=1e-3)
        assert row["norm_w_adapter"] == pytest.approx(row["norm_w_fit"], rel=1e-4)


def test_what_is_left_is_that_of_the_learned_values_on_all_tokens(trained, compared):
    adapter, full = trained("hadamard"), trained("full")
    out, rows = compared(adapter, full, "--batch-size", 4)
    saved = load_file(adapter / "adapter" / "adapter_model.safetensors")
    run = read_run(full)
    sample = load_sample(run, SampleSettings())
    halves = collect(run, sample, "context", 4)
    for layer, row in zip("01", rows, strict=True):
        w, b = (saved[NAME.format(layer, kind)].double() for kind in ("weight", "bias"))
        pairs = [found[layer] for _, found in paired_outputs(run, sample, "context", 32)]
        x, y = (torch.cat(each) for each in zip(*pairs, strict=True))
        left = float((y - (w * x + b)).square().sum())
        changes = {half: getattr(halves[layer], half).change() for half in ("fitted", "other")}
        found = sum(row[f"residual_adapter_{half}"] * changes[half] for half in changes)
        assert found == pytest.approx(left, rel=1e-4)
        fit_w, fit_b = halves[layer].linear()
        assert row["cosine_w"] == pytest.approx(float(torch.cosine_similarity(w - 1, fit_w - 1, dim=0)), abs=1e-3)
        assert row["cosine_b"] == pytest.approx(float(torch.cosine_similarity(b, fit_b, dim=0)), abs=1e-3)
        assert row["residual_fit_fitted"] <= row["residual_adapter_fitted"]
    assert "validation split, 12 examples" in out
    assert "(context)" in out


def test_layers_without_adapter_and_vectors_that_are_not_trained(trained, compared):
    adapter = trained("hadamard", "mrpc", "--method.layers", "1", "--method.no-weight")
    out, rows = compared(adapter, trained("full"))
    (row,) = rows
    assert row["cosine_w"] is None
    assert row["correlation_w"] is None
    assert row["cosine_b"] is not None
    assert row["norm_w_adapter"] == 0
    assert "layers without W and b, which are left out: 0" in out


def test_a_decoder(trained, compared):
    _, rows = compared(trained("hadamard", kind="llama"), trained("full", kind="llama"))
    assert len(rows) == 2
    assert all(value is not None for row in rows for value in row.values())


class TestBadInput:
    def test_no_run(self, refused, trained, tmp_path):
        refused("give the directory of a finished run", "closeness", tmp_path, trained("full"))

    def test_methods_the_wrong_way_round(self, refused, trained):
        refused("this needs one of --method hadamard", "closeness", trained("full"), trained("hadamard"))
        refused("this needs one of --method full", "closeness", trained("hadamard"), trained("hadamard", "rte"))

    def test_another_task(self, refused, trained):
        refused("give two runs on the same task", "closeness", trained("hadamard", "rte"), trained("full"))

    def test_another_base_model(self, refused, trained):
        refused("on the same weights", "closeness", trained("hadamard"), trained("full", kind="llama"))

    def test_an_adapter_with_norms_alone(self, refused, trained):
        alone = trained("hadamard", "mrpc", "--method.no-weight", "--method.no-bias")
        refused("has neither W nor b", "closeness", alone, trained("full"))
