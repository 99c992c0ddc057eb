"""The choices of W, b and norm, the flags that make them, and the whole command on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.analysis import modules, series
from benchmarks.analysis.modules import EVERYTHING, SUBSETS, Choice, Settings
from benchmarks.analysis.series import Outcome
from harness import cli


@pytest.fixture
def arguments(checkpoint, glue_folder):
    """A small analysis of a BERT with two layers of 16 features."""

    def build(*more: str, harness: tuple[str, ...] = ()) -> list[str]:
        folder = str(glue_folder("cola"))
        own = ["modules", "--task", "cola", "--model", str(checkpoint("bert")), "--data-dir", folder]
        small = ["--train.batch-size", "8", "--train.max-steps", "1", "--stage1.epochs", "0.25"]
        return [*own, "--output-dir", "out", *more, "--", *small, *harness]

    return build


def results_of(qualities):
    """Outcomes with these held-out qualities by choice and seed (1, 2), and the series they are of."""
    runs = series.open_series(Settings("cola", seeds=(1, 2), output_dir=Path("out")), "hadamard", "", [])
    outcomes = {}
    for choice, values in qualities.items():
        entries = []
        for seed, value in zip((1, 2), values, strict=True):
            held_out = {
                "metrics": {"matthews_correlation": value},
                "selection": {"value": value + 0.01},
                "selected_by": "the held-out part",
                "split": "validation",
                "examples": 1043,
                "step": 20,
            }
            entries.append(
                {
                    "task": {"name": "cola", "version": 1},
                    "model": {"name": "bert"},
                    "preset": "quick",
                    "seed": seed,
                    "parameters": {"adapter": 7000, "norm": 900},
                    "train": {"steps": 20, "batch_size": 32},
                    "evaluations": {"held_out": held_out},
                }
            )
        variant = modules.variant(choice, "attention")
        directories = tuple(runs.run_directory(variant, seed) for seed in (1, 2))
        outcomes[choice] = Outcome(variant, tuple(entries), "matthews_correlation", directories)
    return runs, outcomes


QUALITIES = {choice: (0.5 - number / 10, 0.6 - number / 10) for number, choice in enumerate(SUBSETS)}
IN_LAYERS = {
    Choice((module,), layer): (0.1 * layer, 0.2 * layer) for module in ("weight", "bias", "norm") for layer in (0, 1)
}


class TestPlan:
    def test_the_seven_choices(self):
        assert [choice.modules for choice in modules.plan([])] == [
            ("weight", "bias", "norm"),
            ("weight", "bias"),
            ("weight", "norm"),
            ("bias", "norm"),
            ("weight",),
            ("bias",),
            ("norm",),
        ]

    def test_each_module_alone_in_each_layer(self):
        found = modules.plan([0, 1, 2])[7:]
        assert len(found) == len(set(found)) == 9
        assert {(choice.modules, choice.layer) for choice in found} == {
            ((module,), layer) for module in ("weight", "bias", "norm") for layer in (0, 1, 2)
        }

    @pytest.mark.parametrize("norm", ["attention", "output", "both"])
    @pytest.mark.parametrize("choice", modules.plan([3]), ids=lambda choice: f"{choice.label} {choice.layers}")
    def test_its_flags_mean_what_it_says(self, choice, norm):
        """For the harness, whatever a recipe says."""
        before = ["--method", "hadamard", "--task", "cola", "--method.norm", "none", "--method.no-bias"]
        method = cli.parse([*before, *modules.variant(choice, norm).flags]).config.method_settings
        assert method.weight == ("weight" in choice.modules)
        assert method.bias == ("bias" in choice.modules)
        assert method.norm == (norm if "norm" in choice.modules else "none")
        assert method.layers == (None if choice.layer is None else (choice.layer,))

    def test_every_choice_has_a_directory_of_its_own(self):
        choices = modules.plan([1, 11])
        assert len({modules.variant(choice, "both").name for choice in choices}) == len(choices)


class TestReport:
    def test_the_table_shows_each_seed_and_the_difference_from_all_three(self):
        lines = modules.report(*results_of({**QUALITIES, **IN_LAYERS})).splitlines()
        assert "hadamard on cola (version 1), preset quick, model bert, 2 seeds (1 2)" in lines[0]
        assert "norm: that of --norm attention" in lines
        rows = {line.partition("  ")[0]: line.split() for line in lines if "7,000" in line and " all " in line}
        assert rows["W + b + norm"][-5:] == ["±", "0.0707", "0.5000", "0.6000", "-"]
        assert rows["norm"][1:5] == ["all", "7,000", "900", "-0.0400"]
        assert rows["norm"][-6:] == ["-0.1000", "0.0000", "-0.6000", "±", "0.0000", "-"]
        assert sum(line.split()[:2] == ["b", "1"] for line in lines) == 1

    def test_the_plot_has_bars_of_choices_and_a_map_of_modules_and_layers(self):
        bars, cells = modules.draw(*results_of({**QUALITIES, **IN_LAYERS})).data
        assert bars.x[0] == "W + b + norm"
        assert bars.y == pytest.approx([0.55 - number / 10 for number in range(7)])
        assert bars.error_y.array == pytest.approx([0.1 / 2**0.5] * 7)
        assert (cells.x, cells.y) == ((0, 1), ("W", "b", "norm"))
        assert [list(row) for row in cells.z] == [pytest.approx([0.0, 0.15])] * 3

    def test_without_single_layers_there_are_bars_alone(self):
        assert [trace.type for trace in modules.draw(*results_of(QUALITIES)).data] == ["bar"]


class TestCommand:
    def test_it_trains_each_choice_once(self, counted, arguments):
        code, out, err, calls = counted(arguments("--per-layer", "--dry-run"))
        assert (code, calls) == (0, 0), err
        assert "13 choices, 13 runs, 13 of them to be made" in out
        assert "norm in layer 1" in out

        code, out, err, calls = counted(arguments("--norm", "both"))
        assert (code, calls) == (0, 7), err
        stored = json.loads(Path("out/modules.json").read_text())
        found = {
            " ".join(each["modules"]): (each["parameters"]["adapter"], each["parameters"]["norm"])
            for each in stored["choices"]
        }
        vector, norms = 2 * 16, 2 * 2 * 2 * 16  # two layers; two norms of each, with weight and bias
        assert found == {
            "weight bias norm": (2 * vector, norms),
            "weight bias": (2 * vector, 0),
            "weight norm": (vector, norms),
            "bias norm": (vector, norms),
            "weight": (vector, 0),
            "bias": (vector, 0),
            "norm": (0, norms),
        }
        for row in csv.DictReader(Path("out/modules.csv").read_text().splitlines()):
            assert row["layers"] == "all"
            measured = json.loads(Path("out", row["run"], "result.json").read_text())
            assert measured["parameters"]["adapter"] == int(row["adapter_parameters"])
            assert measured["evaluations"]["held_out"]["metrics"]["matthews_correlation"] == float(row["held_out"])
        assert "<html>" in Path("out/modules.html").read_text()[:100]

        code, again, err, calls = counted(arguments("--norm", "both"))
        assert (code, again, calls) == (0, out, 0), err

        code, out, err, calls = counted(arguments("--norm", "attention"))
        assert (code, out, calls) == (2, "", 0)
        last = err.splitlines()[-1]
        assert last.startswith("error: W + b + norm in all layers, seed 0: ")
        assert "--method.norm both" in last

    def test_a_module_in_one_layer_trains_nothing_else(self, counted, arguments, monkeypatch):
        monkeypatch.setattr(modules, "SUBSETS", (EVERYTHING,))
        monkeypatch.setattr(series.Series, "layers", lambda runs: [1])
        code, _, err, calls = counted(arguments("--per-layer"))
        assert (code, calls) == (0, 4), err
        stored = json.loads(Path("out/modules.json").read_text())
        counts = {
            (*each["modules"], each["layer"]): (each["parameters"]["adapter"], each["parameters"]["norm"])
            for each in stored["choices"][1:]
        }
        assert counts == {("weight", 1): (16, 0), ("bias", 1): (16, 0), ("norm", 1): (0, 2 * 16)}
        trained = load_file("out/runs/bias-layer1-seed0/adapter/adapter_model.safetensors")
        assert [name for name in trained if "hadamard" in name] == [
            "base_model.model.bert.encoder.layer.1.attention.output.dense.hadamard_bias"
        ]

    def test_flags_that_the_choices_set_are_refused(self, counted, arguments):
        code, out, err, calls = counted(arguments(harness=("--method.no-bias",)))
        assert (code, out, calls) == (2, "", 0)
        assert err.splitlines()[-1].startswith("error: --method.no-bias stands behind the --")
