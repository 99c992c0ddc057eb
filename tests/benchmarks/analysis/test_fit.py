"""Element-wise fits: they are the least squares, whatever the blocks, and find coefficients that are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks.analysis import elementwise
from benchmarks.analysis.attention_outputs import SampleSettings, load_sample, paired_outputs
from benchmarks.analysis.elementwise import DEGREES, Standard, Triangle
from benchmarks.analysis.fit import FUNCTIONS, Halves, collect, layer_rows
from benchmarks.analysis.runs import read_run

TOKENS, UNITS = 300, 5


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int = 0) -> torch.Tensor:
    """Outputs (tokens, units) of unlike means and spreads, some far from 0."""
    centre = torch.tensor([0.0, 5.0, -300.0, 0.2, 1e-3], dtype=torch.float64)
    spread = torch.tensor([1.0, 0.1, 2.0, 30.0, 1e-4], dtype=torch.float64)
    return centre + spread * noise(TOKENS, UNITS, seed=seed)


def seen(x: torch.Tensor, y: torch.Tensor, block: int = TOKENS, standard: Standard | None = None) -> Triangle:
    """Returns what is kept of these tokens when they come in blocks."""
    triangle = Triangle(standard or Standard.of(x[:block]))
    for x_block, y_block in zip(x.split(block), y.split(block), strict=True):
        triangle.add(x_block, y_block)
    return triangle


def least_squares(x: np.ndarray, y: np.ndarray, function: str) -> np.ndarray:
    """Returns what numpy's least squares makes of one unit's x (tokens,)."""
    if function == "constant":
        return np.full_like(y, y.mean())
    if function == "shift":
        return x + (y - x).mean()
    z = (x - x.mean()) / x.std()
    design = np.vander(z, DEGREES[function] + 1)
    return design @ np.linalg.lstsq(design, y, rcond=None)[0]


def halves(x: torch.Tensor, y: torch.Tensor) -> Halves:
    """Returns both halves of tokens."""
    half = len(x) // 2
    standard = Standard.of(x[:half])
    return Halves(seen(x[:half], y[:half], standard=standard), seen(x[half:], y[half:], standard=standard))


class TestLeastSquares:
    @pytest.mark.parametrize("block", [1, 7, TOKENS])
    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_in_blocks_it_is_that_of_numpy(self, function, block):
        x = outputs()
        y = x + 0.1 * x.std(dim=0) * (noise(TOKENS, UNITS, seed=1) + ((x - x.mean(dim=0)) / x.std(dim=0)) ** 2)
        triangle = seen(x, y, block)
        coefficients = triangle.constant() if function == "constant" else triangle.fit(function)
        fitted = np.stack([least_squares(x[:, i].numpy(), y[:, i].numpy(), function) for i in range(UNITS)], axis=1)
        left = float(((y.numpy() - fitted) ** 2).sum())
        assert triangle.residual(coefficients) == pytest.approx(left, rel=1e-9)
        assert triangle.relative_residual(coefficients) == pytest.approx(left / float((y - x).square().sum()), rel=1e-9)
        about_mean = float((y - y.mean(dim=0)).square().sum())
        assert triangle.r_squared(coefficients) == pytest.approx(1 - left / about_mean, rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(
            triangle.mean_fitted(coefficients).numpy(), fitted.mean(axis=0), rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(triangle.mean_before(), x.mean(dim=0))
        torch.testing.assert_close(triangle.mean_after(), y.mean(dim=0))

    def test_blocks_inside_a_batch_change_nothing(self, monkeypatch):
        x, y = outputs(), outputs(1)
        whole = seen(x, y)
        monkeypatch.setattr(elementwise, "BLOCK", 11)
        parts = seen(x, y)
        assert parts.tokens == whole.tokens == TOKENS
        assert parts.residual(parts.fit("cubic")) == pytest.approx(whole.residual(whole.fit("cubic")), rel=1e-10)

    def test_the_first_batch_need_not_be_like_the_others(self):
        x, y = outputs(), outputs(1)
        x[:4] = x[:4] * 0.01 + 3
        other = seen(x, y, 4)
        assert other.residual(other.fit("cubic")) == pytest.approx(
            seen(x, y).residual(seen(x, y).fit("cubic")), rel=1e-8
        )


class TestKnownCoefficients:
    def test_w_and_b_of_a_linear_function_are_found(self):
        x, w, b = outputs(), 1 + 0.3 * noise(UNITS, seed=2), noise(UNITS, seed=3)
        triangle = seen(x, w * x + b, 50)
        found_w, found_b = triangle.weight_and_bias(triangle.fit("linear"))
        torch.testing.assert_close(found_w, w, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found_b, b, rtol=1e-6, atol=1e-6)
        assert triangle.relative_residual(triangle.fit("linear")) < 1e-16

    @pytest.mark.parametrize(("function", "power"), [("shift", 0), ("linear", 1), ("quadratic", 2), ("cubic", 3)])
    def test_a_polynomial_is_reproduced_by_its_degree_and_not_below(self, function, power):
        x = outputs()
        z = (x - x.mean(dim=0)) / x.std(dim=0)
        triangle = seen(x, x + 0.5 + z**power, 64)
        for other, degree in DEGREES.items():
            left = triangle.relative_residual(triangle.fit(other))
            assert left < 1e-16 if degree >= power else left > 1e-2, (other, function)

    def test_given_w_and_b_leave_what_they_leave(self):
        x, y = outputs(), outputs(1)
        w, b = 1 + 0.1 * noise(UNITS, seed=2), noise(UNITS, seed=3)
        triangle = seen(x, y, 64)
        left = float((y - (w * x + b)).square().sum())
        assert triangle.residual(triangle.affine(w, b)) == pytest.approx(left, rel=1e-10)
        found = triangle.weight_and_bias(triangle.affine(w, b))
        torch.testing.assert_close(found, (w, b), rtol=1e-9, atol=1e-9)
        assert triangle.relative_residual(triangle.affine(torch.ones(UNITS), torch.zeros(UNITS))) == pytest.approx(1)

    def test_both_halves_are_measured_with_the_coefficients_of_the_first(self):
        x = noise(40, 3)
        y = x + noise(40, 3, seed=1)
        found = halves(x, y)
        cubic = found.coefficients("cubic")
        fitted, other = found.fitted.relative_residual(cubic), found.other.relative_residual(cubic)
        assert fitted < found.fitted.relative_residual(found.coefficients("shift"))
        expected = np.stack(
            [np.polyval(np.polyfit(x[:20, i], y[:20, i], 3), x[20:, i].numpy()) for i in range(3)], axis=1
        )
        left = ((y[20:].numpy() - expected) ** 2).sum() / float((y - x)[20:].square().sum())
        assert other == pytest.approx(left, rel=1e-8)
        assert other > fitted


class TestDegenerate:
    @pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
    def test_a_unit_that_does_not_vary_gets_a_shift(self, value):
        x, y = outputs(), outputs(1)
        x[:, 2] = value
        found = halves(x, y)
        w, b = found.linear()
        assert w[2] == 1
        assert float(b[2]) == pytest.approx(float((y - x)[: TOKENS // 2, 2].mean()))
        for row in layer_rows("0", found):
            assert all(math.isfinite(row[key]) for key in ("relative_residual", "r_squared", "mean_fit"))

    def test_a_unit_of_two_values_has_no_need_of_more_than_a_line(self):
        x = torch.where(noise(TOKENS, 1) > 0, 1.0, 2.0).double()
        triangle = seen(x, 3 * x)
        for function in ("linear", "quadratic", "cubic"):
            coefficients = triangle.fit(function)
            assert triangle.relative_residual(coefficients) < 1e-16
            assert coefficients.abs().max() < 10

    def test_fewer_tokens_than_coefficients(self):
        x, y = outputs()[:6], outputs(1)[:6]  # three in each half, and a cubic has four
        for row in layer_rows("0", halves(x, y)):
            assert all(math.isfinite(row[key]) for key in ("relative_residual", "r_squared", "mean_fit"))

    def test_without_any_change_there_is_no_residual_to_relate(self):
        x = outputs()
        rows = layer_rows("0", halves(x, x))
        assert {row["relative_residual"] for row in rows} == {None}
        assert all(row["r_squared"] > 1 - 1e-12 for row in rows if row["function"] != "constant")


class TestCommand:
    @pytest.mark.parametrize("kind", ["bert", "gpt2"])
    def test_it_writes_what_the_outputs_give(self, kind, trained, analyse, read_csv):
        path = trained("full", kind=kind)
        code, out, err = analyse("fit", path, "--output-dir", "out", "--batch-size", 5)
        assert code == 0, err
        rows = read_csv(Path("out/fit.csv"))
        assert len(rows) == 2 * len(FUNCTIONS) * 2
        assert {row["half"] for row in rows} == {"fitted", "other"}
        run = read_run(path)
        sample = load_sample(run, SampleSettings())
        pairs = [found["1"] for _, found in paired_outputs(run, sample, "context", 32)]
        x, y = (torch.cat(each) for each in zip(*pairs, strict=True))
        tokens = {row["half"]: int(row["half_tokens"]) for row in rows}
        assert sum(tokens.values()) == len(x) == sample.tokens
        own = {row["half"]: row for row in rows if row["layer"] == "1" and row["function"] == "shift"}
        for key, outputs_of_it in (("mean_before", x), ("mean_after", y)):
            mean = sum(float(own[half][key]) * tokens[half] for half in tokens) / len(x)
            assert mean == pytest.approx(float(outputs_of_it.mean()), abs=1e-6)
        assert float(own["fitted"]["mean_fit"]) == pytest.approx(float(own["fitted"]["mean_after"]), abs=1e-9)
        with safe_open("out/fit.safetensors", "pt") as file:
            assert sorted(file.keys()) == ["mrpc.0.b", "mrpc.0.w", "mrpc.1.b", "mrpc.1.w"]
            assert file.metadata()["position"] == "context"
            saved = file.get_tensor("mrpc.1.w"), file.get_tensor("mrpc.1.b")
        torch.testing.assert_close(saved, collect(run, sample, "context", 32)["1"].linear(), rtol=1e-3, atol=1e-4)
        assert "validation split, 12 examples" in out
        assert "on the same texts" in out

    def test_no_function_of_higher_degree_fits_worse_on_what_it_was_fitted_to(self, trained, analyse, read_csv):
        assert analyse("fit", trained("full"), "--position", "projection", "--output-dir", "out")[0] == 0
        rows = [row for row in read_csv(Path("out/fit.csv")) if row["half"] == "fitted"]
        for layer in "01":
            left = [float(row["relative_residual"]) for row in rows if row["layer"] == layer]
            assert left == sorted(left, reverse=True)
            assert left[-1] > 0
            assert left[1] < 1

    def test_bad_input(self, refused, trained, tmp_path):
        refused("this needs one of --method full", "fit", trained("hadamard"))
        refused("give the directory of a finished run", "fit", tmp_path)
        refused("--examples is 1: it must be at least 2", "fit", trained("full"), "--examples", 1)
        refused("an analysis compares runs on the same weights", "fit", trained("full"), trained("full", kind="gpt2"))
