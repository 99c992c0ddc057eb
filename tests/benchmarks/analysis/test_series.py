"""Series of runs: each run is made once whatever happens between, and a run that cannot be made is named."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.analysis import series
from benchmarks.analysis.series import Outcome, SeriesSettings, Variant
from harness import run
from harness.errors import UserError

SMALL = ("--train.batch-size", "8", "--train.max-steps", "2", "--train.save-every", "1", "--stage1.epochs", "0.25")
ALL = Variant("layers-0-1", "layers 0-1", ("--method.layers", "0", "1"))
ONE = Variant("layers-0", "layers 0", ("--method.layers", "0"))


@pytest.fixture
def settings(checkpoint, glue_folder, tmp_path, monkeypatch):
    """Two seeds of CoLA with invented texts on a tiny BERT."""
    monkeypatch.chdir(tmp_path)
    threads, level = torch.get_num_threads(), logging.getLogger().level
    torch.set_num_threads(1)
    yield SeriesSettings(
        "cola", str(checkpoint("bert")), glue_folder("cola"), (1, 2), output_dir=Path("out"), harness=SMALL
    )
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of the harness."""
    made, main = [], run.main
    monkeypatch.setattr(run, "main", lambda argv: made.append(list(argv)) or main(argv))
    return made


def open_it(settings):
    return series.open_series(settings, "hadamard", "layers-cola-hadamard", ["--method.layers"])


def measured(metrics, column="published", metric="accuracy"):
    """An outcome with these metrics in one run."""
    return Outcome(ALL, ({"evaluations": {column: {"metrics": metrics}}},), metric, (Path("a"),))


class TestRuns:
    def test_finished_runs_are_read_and_missing_ones_made(self, settings, calls, capfd):
        first = open_it(replace(settings, seeds=(1,))).outcome(ALL)
        assert len(calls) == 1
        assert capfd.readouterr().out == ""  # the harness's table is not the analysis's
        runs = open_it(settings)
        assert (runs.unfinished([ALL]), runs.unfinished([ALL, ONE])) == (1, 3)
        both = runs.outcome(ALL)
        assert [argv[argv.index("--seed") + 1] for argv in calls] == ["1", "2"]
        assert both.results[0] == first.results[0]
        assert both.directories == (Path("out/runs/layers-0-1-seed1"), Path("out/runs/layers-0-1-seed2"))
        assert runs.outcome(ALL).results == both.results
        assert len(calls) == 2
        for outcome, directory in zip(both.results, both.directories, strict=True):
            assert outcome == json.loads((directory / "result.json").read_text())
            assert outcome["config"]["method_settings"]["layers"] == [0, 1]

    def test_a_stopped_run_goes_on_and_stopping_ends_the_series(self, settings, capfd, monkeypatch):
        runs = open_it(replace(settings, seeds=(1,)))
        whole = open_it(replace(settings, seeds=(1,), output_dir=Path("whole"))).outcome(ALL)

        def stop(*arguments, **named):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(run.scoring, "write_adapters", stop)
            with pytest.raises(SystemExit) as ended, series.resumable():
                runs.outcome(ALL)
        assert ended.value.code == 130
        assert "the same command of benchmarks.analysis goes on" in capfd.readouterr().err
        outcome = runs.outcome(ALL)
        assert "stage2: finished" in capfd.readouterr().err
        assert outcome.results[0]["evaluations"].keys() == whole.results[0]["evaluations"].keys()
        assert (outcome.quality, outcome.selection) == (whole.quality, whole.selection)

    def test_a_run_of_other_settings_is_refused_by_name(self, settings, calls):
        one = replace(settings, seeds=(1,))
        open_it(one).outcome(ONE)
        other = open_it(replace(one, harness=(*SMALL, "--train.learning-rate", "0.5")))
        with pytest.raises(UserError, match=r"^layers 0, seed 1: .* was started with --train.learning-rate 0.01"):
            other.outcome(ONE)
        assert len(calls) == 1

    def test_a_run_that_cannot_be_made_is_named(self, settings):
        runs = open_it(replace(settings, seeds=(1,), harness=(*SMALL, "--train.batch-size", "1000")))
        with pytest.raises(UserError, match=r"^layers 0, seed 1: --train\.batch-size"):
            runs.outcome(ONE)
        assert not Path("out/runs").exists()

    def test_results_that_do_not_belong_together_are_refused(self):
        same = {"task": {"version": 1}, "model": {"sha256": "f00d"}, "init_from": None}
        paths = (Path("a"), Path("b"))
        series.require_same([Outcome(ALL, (same, same), "accuracy", paths)])
        other = {**same, "model": {"sha256": "beef"}}
        with pytest.raises(UserError, match="a and b do not belong together: the base model's sha256 differs"):
            series.require_same([Outcome(ALL, (same, other), "accuracy", paths)])

    def test_layers_are_those_of_the_model(self, settings):
        assert open_it(settings).layers() == [0, 1]


class TestSettings:
    def test_what_follows_two_hyphens_is_the_harness_s(self):
        argv = ["--task", "cola", "--seeds", "1", "2", "--", "--train.learning-rate", "1e-2", "--score", "held_out"]
        found = series.parse_settings(SeriesSettings, "layers", argv)
        assert found.seeds == (1, 2)
        assert found.harness == ("--train.learning-rate", "1e-2", "--score", "held_out")
        assert series.parse_settings(SeriesSettings, "layers", argv[:5]).harness == ()

    def test_help_says_so(self, capsys):
        with pytest.raises(SystemExit):
            series.parse_settings(SeriesSettings, "layers", ["--help"])
        shown = capsys.readouterr().out
        assert "--preset paper" in shown
        assert "--harness" not in shown

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"harness": ("--seed=3",)}, "--seed=3 stands behind the --, and this command has a flag for it"),
            ({"harness": ("--output_dir", "x")}, "--output_dir stands behind the --"),
            ({"harness": ("--method.layers", "1")}, "this command sees to that itself"),
            ({"harness": ("--resume",)}, "this command sees to that itself"),
            ({"harness": ("--train.lerning-rate", "1")}, "did you mean --train.learning-rate"),
            ({"harness": ("--train.batch-size", "0")}, "--train.batch-size is 0"),
            ({"harness": ("--score", "published")}, "--score published: quality is that of the held_out column"),
            ({"harness": ("--task.held-out", "0", "--score", "published")}, "nothing selects parameters on held-out"),
            ({"task": "e2e"}, "nothing selects parameters on held-out examples"),
            ({"task": "cols"}, "did you mean cola"),
            ({"seeds": ()}, "--seeds without a value"),
            ({"seeds": (1, 2, 1)}, "--seeds names 1 twice"),
            ({"seeds": (-1,)}, "--seed is -1"),
        ],
    )
    def test_what_cannot_be_used_is_refused_before_anything_runs(self, changes, says):
        with pytest.raises(UserError, match=says):
            open_it(replace(SeriesSettings("cola"), **changes))

    def test_a_method_without_layers_is_refused(self):
        with pytest.raises(UserError, match="--method far: it has no setting for layers"):
            series.open_series(SeriesSettings("cola"), "far", "layers", [])

    def test_a_launcher_is_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="without a launcher"):
            open_it(SeriesSettings("cola"))


class TestNumbers:
    def test_quality_is_found_under_the_name_that_the_task_gives_it(self):
        assert measured({"loss": 1.0, "accuracy": 0.5}).published == [0.5]
        mnli = {"loss_matched": 1.0, "accuracy_matched": 0.6, "accuracy_mismatched": 0.7}
        assert measured(mnli).published == [0.6]
        assert measured({"loss": 1.0}).published == [None]
        assert measured({"accuracy": 0.5}).quality == [None]  # that column was not scored

    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ([0.5], "0.5000"),
            ([0.5, 0.7], "0.6000 ± 0.1414"),
            ([0.5, None], "0.5000 (1 of 2 seeds)"),
            ([None], "-"),
        ],
    )
    def test_values_are_shown_with_their_spread(self, values, text):
        assert series.shown(values) == text

    def test_differences_are_of_one_seed(self):
        assert series.differences([1.0, None, 2.0], [0.5, 1.0, None]) == [0.5, None, None]
        assert series.shown([0.25], "+") == "+0.2500"

    @pytest.mark.parametrize(
        ("layers", "words"), [((0, 1, 2, 5), "0-2 5"), ((3,), "3"), ((0, 2), "0 2"), ((), ""), ((4, 5), "4-5")]
    )
    def test_layers_in_words(self, layers, words):
        assert series.in_words(layers) == words
