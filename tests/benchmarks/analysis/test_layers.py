"""The sets of layers of each order, the ranking by what was learned, and the whole command on a tiny model."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.analysis import layers, series
from benchmarks.analysis.layers import Removal, Settings, Study
from benchmarks.analysis.series import Outcome
from harness.errors import UserError

EVERY = ("single", "below", "above", "importance")
KNOWN = (0, 1, 2)


@pytest.fixture
def arguments(checkpoint, glue_folder):
    """A small analysis of a BERT with two layers."""

    def build(*more: str, harness: tuple[str, ...] = ()) -> list[str]:
        own = ["layers", "--task", "cola", "--model", str(checkpoint("bert")), "--data-dir", str(glue_folder("cola"))]
        small = ["--train.batch-size", "8", "--train.max-steps", "2", "--stage1.epochs", "0.25"]
        return [*own, "--output-dir", "out", *more, "--", *small, *harness]

    return build


def result_of(seed, selection, quality, adapter):
    """What is read of a ``result.json``."""
    held_out = {
        "metrics": {"loss": 9.0, "matthews_correlation": quality},
        "selection": {"value": selection},
        "selected_by": "the held-out part",
        "split": "validation",
        "examples": 1043,
        "step": 20,
    }
    published = {**held_out, "selected_by": "the validation split", "metrics": {"matthews_correlation": quality + 0.1}}
    return {
        "task": {"name": "cola", "version": 1},
        "model": {"name": "bert", "sha256": "f00d"},
        "preset": "quick",
        "seed": seed,
        "parameters": {"adapter": adapter, "norm": adapter, "head": 770},
        "train": {"steps": 20, "batch_size": 32},
        "evaluations": {"held_out": held_out, "published": published},
    }


def study_of(selections, sets, seeds=(1, 2), **changes):
    """A study with these held-out values by set and seed; quality is half of them."""
    settings = Settings("cola", seeds=seeds, output_dir=Path("out"), **changes)
    runs = series.open_series(settings, "hadamard", "", [])
    outcomes = {}
    for kept, values in selections.items():
        variant = layers.variant(kept)
        results = tuple(
            result_of(seed, value, value / 2, 1000 * len(kept)) for seed, value in zip(seeds, values, strict=True)
        )
        directories = tuple(runs.run_directory(variant, seed) for seed in seeds)
        outcomes[kept] = Outcome(variant, results, "matthews_correlation", directories)
    return Study(runs, KNOWN, sets, outcomes, {})


SETS = {
    KNOWN: ["below"],
    (1, 2): ["single", "below"],
    (0, 2): ["single"],
    (0, 1): ["single"],
    (2,): ["below"],
}
SELECTIONS = {
    KNOWN: (0.5, 0.6),
    (1, 2): (0.5, 0.4),  # costs 0 and 0.2: 0.1 with a standard error of 0.1
    (0, 2): (0.4, 0.48),  # costs 0.1 and 0.12: 0.11 with a standard error of 0.01
    (0, 1): (0.6, 0.7),  # is better without
    (2,): (0.2, 0.2),
}


class TestPlan:
    def test_the_sets_of_each_order(self):
        assert layers.ordered("single", KNOWN) == [(1, 2), (0, 2), (0, 1)]
        assert layers.ordered("below", KNOWN) == [(0, 1, 2), (1, 2), (2,)]
        assert layers.ordered("above", KNOWN) == [(0, 1, 2), (0, 1), (0,)]
        assert layers.ordered("importance", KNOWN) == [(0, 1, 2)]

    def test_what_several_orders_ask_for_is_one_set(self):
        assert layers.plan(EVERY, KNOWN, None) == {
            (0, 1, 2): ["below", "above", "importance"],
            (1, 2): ["single", "below"],
            (0, 2): ["single"],
            (0, 1): ["single", "above"],
            (2,): ["below"],
            (0,): ["above"],
        }

    def test_twelve_layers_take_33_sets(self):
        assert len(layers.plan(EVERY, tuple(range(12)), None)) == 1 + 12 + 2 * 11 - 2

    def test_counts_choose_and_all_layers_stay(self):
        assert layers.plan(("single", "below"), KNOWN, (1,)) == {(0, 1, 2): ["below"], (2,): ["below"]}
        assert layers.plan(("single",), KNOWN, (2,)).keys() == {(0, 1, 2), (1, 2), (0, 2), (0, 1)}

    def test_layers_need_not_be_numbered_without_gaps(self):
        assert layers.ordered("below", (1, 3)) == [(1, 3), (3,)]

    def test_one_layer_is_never_dropped(self):
        assert layers.plan(EVERY, (0,), None) == {(0,): ["below", "above", "importance"]}

    @pytest.mark.parametrize("count", [0, 4])
    def test_other_numbers_of_layers_are_refused(self, count):
        with pytest.raises(UserError, match=f"--counts has {count}: the model has 3 layers"):
            layers.plan(EVERY, KNOWN, (count,))

    def test_a_variant_names_its_layers(self):
        found = layers.variant((0, 1, 3))
        assert (found.name, found.words) == ("layers-0-1-3", "layers 0-1 3")
        assert found.flags == ("--method.layers", "0", "1", "3")


class TestRanking:
    @pytest.fixture
    def adapter(self, tmp_path):
        """Layer 0 has learned 3 and 4, layer 11 nothing but 2 in a norm; the head does not count."""
        path = tmp_path / "adapter_model.safetensors"
        start = "base_model.model.bert.encoder.layer."
        output, norm = "attention.output.dense.hadamard_", "attention.output.LayerNorm.hadamard_norm_"
        save_file(
            {
                f"{start}0.{output}weight": torch.tensor([1.0, 4.0]),
                f"{start}0.{output}bias": torch.tensor([0.0, -4.0]),
                f"{start}11.{output}weight": torch.ones(2),
                f"{start}11.{norm}weight": torch.tensor([0.0, 2.0]),
                f"{start}11.{norm}bias": torch.zeros(2),
                "base_model.model.classifier.weight": torch.full((2, 2), 9.0),
            },
            path,
        )
        return path

    def test_importance_is_the_norm_of_what_was_learned(self, adapter):
        assert layers.importance(adapter) == {0: pytest.approx(5.0), 11: pytest.approx(2.0)}

    def test_other_adapters_are_refused(self, tmp_path):
        path = tmp_path / "other.safetensors"
        save_file({"layer.0.lora_A.weight": torch.ones(2)}, path)
        with pytest.raises(UserError, match="holds no Hadamard adapter"):
            layers.importance(path)

    def test_the_most_important_are_kept_in_order(self):
        assert layers.most_important({0: 2.0, 1: 0.5, 2: 3.0}, 2) == (0, 2)
        assert layers.most_important({0: 1.0, 1: 1.0, 2: 1.0}, 2) == (1, 2)

    def test_the_parameters_are_those_of_the_held_out_column(self):
        assert layers.adapter_file(Path("a"), ("held_out", "published")).parent == Path("a/adapter")
        assert layers.adapter_file(Path("a"), ("published", "held_out")).parent == Path("a/adapter-held_out")

    def test_each_ranking_is_that_of_what_was_trained_last(self, monkeypatch):
        """Layer 1 goes first; without it, layer 2 is the least important though layer 0 was before."""
        study = study_of(dict.fromkeys((KNOWN, (0, 2), (0,)), (0.5, 0.5)), {})
        rankings = {KNOWN: {0: 2.0, 1: 1.0, 2: 3.0}, (0, 2): {0: 3.0, 2: 2.0}}
        asked = []

        def outcome(runs, variant):
            asked.append(variant.words)
            return study.outcomes[numbers(variant)]

        def numbers(variant):
            return tuple(map(int, variant.flags[1:]))

        monkeypatch.setattr(layers, "mean_importance", lambda outcome: rankings[numbers(outcome.variant)])
        monkeypatch.setattr(series.Series, "outcome", outcome)
        settings = Settings("cola", orders=("importance",))
        found = layers.train(study.series, settings, KNOWN, layers.plan(("importance",), KNOWN, None))
        assert asked == ["layers 0-2", "layers 0 2", "layers 0"]
        assert found.sets == {KNOWN: ["importance"], (0, 2): ["importance"], (0,): ["importance"]}
        assert found.ranking == rankings


class TestRedundancy:
    def test_a_layer_is_redundant_if_its_removal_costs_no_more_than_noise(self):
        found = {each.layer: each for each in study_of(SELECTIONS, SETS).removals()}
        assert found.keys() == {0, 1, 2}
        assert found[0].costs == (pytest.approx(0.0), pytest.approx(0.2))
        assert (found[0].mean, found[0].error) == (pytest.approx(0.1), pytest.approx(0.1))
        assert (found[1].mean, found[1].error) == (pytest.approx(0.11), pytest.approx(0.01))
        assert {layer: each.redundant for layer, each in found.items() if layer} == {1: False, 2: True}

    @pytest.mark.parametrize(
        ("costs", "redundant"),
        [((0.0,), True), ((0.01,), False), ((-0.1,), True), ((None,), False), ((0.0, 0.2, 0.1), False)],
    )
    def test_noise_is_the_standard_error_and_unknown_for_one_seed(self, costs, redundant):
        assert Removal(0, costs).redundant is redundant

    def test_a_lower_value_may_be_better(self):
        study = study_of(SELECTIONS, SETS)
        rule = replace(study.series.rule, higher_is_better=False)
        task = type("Task", (), {"rules": {"held_out": rule}})
        turned = replace(study, series=replace(study.series, config=replace(study.series.config, task_settings=task)))
        assert [each.mean for each in turned.removals()] == pytest.approx([-each.mean for each in study.removals()])

    def test_what_is_said_of_it(self):
        words = "\n".join(layers.redundancy(study_of(SELECTIONS, {**SETS, (1, 2): ["below"]})))
        assert words.endswith("each alone costs no more than its standard error over seeds: 2")
        one = study_of({kept: values[:1] for kept, values in SELECTIONS.items()}, SETS, seeds=(1,))
        assert layers.redundancy(one)[-1].endswith(
            "each alone costs nothing: 0 2; with one seed the noise is unknown, so this may be chance"
        )
        assert "is not known" in layers.redundancy(replace(one, sets={KNOWN: ["below"]}))[0]


class TestReport:
    def test_the_table_names_layers_parameters_and_both_columns(self):
        lines = layers.report(study_of(SELECTIONS, SETS)).splitlines()
        assert "hadamard on cola (version 1), preset quick, model bert, 2 seeds (1 2)" in lines[0]
        assert "steps: 20 of 32 examples" in lines
        assert any("validation split, 1,043 examples" in line and "standard deviation" in line for line in lines)
        assert any(line.startswith("parameters selected by: the held-out part") for line in lines)
        rows = [line for line in lines if line.startswith("0 2 ")]
        assert rows[0].split("  ")[-1] == "0.3200 ± 0.0283"
        assert rows[0].split()[:5] == ["0", "2", "2", "single", "4,000"]

    def test_the_plot_has_a_line_an_order_and_one_for_all_layers(self):
        figure = layers.draw(study_of(SELECTIONS, SETS))
        single, below, cost = figure.data
        assert (single.x, single.mode) == ((2, 2, 2), "markers")
        assert single.text == ("layers 0-1", "layers 0 2", "layers 1-2")
        assert (below.x, below.mode) == ((3, 2, 1), "lines+markers")
        assert below.y == pytest.approx((0.275, 0.225, 0.1))
        assert below.error_y.array == pytest.approx((0.05 / 2**0.5, 0.05 / 2**0.5, 0.0))
        assert figure.layout.shapes[0].y0 == pytest.approx(0.275)
        assert (cost.x, cost.y) == ((0, 1, 2), pytest.approx((0.1, 0.11, -0.1)))

    def test_without_single_layers_left_out_there_is_one_picture(self):
        figure = layers.draw(study_of(SELECTIONS, {kept: ["below"] for kept in SETS}))
        assert [trace.type for trace in figure.data] == ["scatter"]


class TestCommand:
    def test_it_trains_each_set_once_and_again_only_what_is_missing(self, counted, arguments):
        code, out, err, calls = counted(arguments("--dry-run"))
        assert (code, calls) == (0, 0), err
        assert "3 sets of layers, 3 runs, 3 of them to be made" in out
        assert "at most 0 more sets" in out
        assert not Path("out").exists()

        code, out, err, calls = counted(arguments())
        assert (code, calls) == (0, 3), err
        assert {path.name for path in Path("out/runs").iterdir()} == {
            "layers-0-seed0",
            "layers-1-seed0",
            "layers-0-1-seed0",
        }
        assert out.startswith("hadamard on cola")
        assert "steps: 1 of 8 examples (the head, on the frozen model), then 2 of 8 examples" in out
        assert "importance" in out
        stored = json.loads(Path("out/layers.json").read_text())
        everything = stored["sets"][0]
        assert everything["layers"] == [0, 1]
        parameters = everything["parameters"]
        assert (parameters["adapter"], parameters["norm"]) == (2 * 2 * 16, 2 * 2 * 16)
        least = min(everything["importance"], key=everything["importance"].get)
        kept = next(each["layers"] for each in stored["sets"][1:] if "importance" in each["orders"])
        assert kept == [layer for layer in (0, 1) if str(layer) != least]
        rows = list(csv.DictReader(Path("out/layers.csv").read_text().splitlines()))
        assert [row["layers"] for row in rows] == ["0-1", "0", "1"]
        for row in rows:
            measured = json.loads(Path("out", row["run"], "result.json").read_text())["evaluations"]["held_out"]
            assert float(row["held_out"]) == measured["metrics"]["matthews_correlation"]
            assert float(row["held_out_selection"]) == measured["selection"]["value"]
        assert "<html>" in Path("out/layers.html").read_text()[:100]

        before = out
        Path("out/runs/layers-1-seed0/result.json").unlink()
        code, out, err, calls = counted(arguments())
        assert (code, calls) == (0, 1), err
        assert out == before
        assert "3 sets of layers, 3 runs, 1 of them to be made" in err

    def test_a_failing_run_is_one_sentence_that_names_its_layers(self, counted, arguments):
        code, out, err, _ = counted(arguments(harness=("--train.batch-size", "1000")))
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith("error: layers 0-1, seed 0: --train.batch-size")

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (("--method", "hut"), "--orders importance needs W, b and norms of --method hadamard, not hut"),
            (("--orders",), "--orders without a value"),
            (("--counts", "3"), "--counts has 3: the model has 2 layers"),
        ],
    )
    def test_bad_input_is_refused(self, flags, says, counted, arguments):
        code, out, err, calls = counted(arguments(*flags))
        assert (code, out, calls) == (2, "", 0)
        assert says in err.splitlines()[-1]

    def test_other_methods_with_layers_can_be_analysed(self, counted, arguments):
        argv = arguments("--method", "hut", "--orders", "below", "--counts", "2")
        argv = [word for word in argv if word not in ("--stage1.epochs", "0.25")]
        code, out, err, calls = counted(argv)
        assert (code, calls) == (0, 1), err
        assert out.startswith("hut on cola")
        assert "which layers are redundant is not known" in out
