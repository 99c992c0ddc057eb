"""``--seeds``: several seeds of one configuration are single runs, and what they have in common is added up."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from harness import summary

# few steps: these runs are about what is around the training
SMALL = ("--train.max-steps", "2", "--train.save-every", "1", "--train.eval-every", "1")


def results_of(*metrics):
    """What :mod:`harness.summary` needs of results with these metrics, seeds from 0."""
    same = {"task": {"version": 1}, "model": {"sha256": "f00d"}, "init_from": None}
    return [
        {**same, "seed": seed, "evaluations": {"last": {"selected_by": "the last step", "metrics": found}}}
        for seed, found in enumerate(metrics)
    ]


class TestSummary:
    def test_the_spread_is_that_of_a_sample(self):
        found = summary.make(results_of(*({"accuracy": value} for value in (0.5, 0.9, 0.1, 0.7))))
        accuracy = found["summary"]["last"]["metrics"]["accuracy"]
        assert accuracy["mean"] == pytest.approx(0.55)
        # deviations -0.05, 0.35, -0.45 and 0.15: their squares add up to 0.35
        assert accuracy["std"] == pytest.approx((0.35 / 3) ** 0.5)
        assert accuracy["median"] == pytest.approx(0.6)
        assert (accuracy["min"], accuracy["max"]) == (0.1, 0.9)
        assert accuracy["values"] == [0.5, 0.9, 0.1, 0.7]
        assert found["seeds"] == [0, 1, 2, 3]

    def test_one_value_has_no_spread(self):
        metrics = summary.make(results_of({"accuracy": 0.5}))["summary"]["last"]["metrics"]
        assert metrics["accuracy"]["std"] is None
        assert metrics["accuracy"]["mean"] == 0.5

    def test_a_seed_without_a_value_is_left_out_and_counted(self):
        """A correlation of constant predictions has no value."""
        found = summary.make(results_of({"pearson": 0.2, "loss": 1.0}, {"loss": 2.0}, {"pearson": 0.4, "loss": 3.0}))
        metrics = found["summary"]["last"]["metrics"]
        assert (metrics["pearson"]["seeds"], metrics["pearson"]["mean"]) == (2, pytest.approx(0.3))
        assert (metrics["loss"]["seeds"], metrics["loss"]["mean"]) == (3, 2.0)


def test_seeds_are_single_runs_in_directories_of_their_own(run_here, arguments, what_counts):
    code, out, err = run_here(arguments(*SMALL, "--seeds", "2", "0", "--json"))
    assert code == 0, err
    assert out.count("\n") == 1
    everything = json.loads(out)
    assert everything["seeds"] == [2, 0]
    assert {path.name for path in Path("out").iterdir()} == {"seed0", "seed2"}
    singles = []
    for seed in (2, 0):
        assert run_here(arguments(*SMALL, "--seed", str(seed), out=f"single{seed}"))[0] == 0
        singles.append(json.loads((Path("out") / f"seed{seed}" / "result.json").read_text()))
        assert what_counts(Path("out") / f"seed{seed}") == what_counts(Path(f"single{seed}"))
    assert what_counts(Path("single0"))["adapters"] != what_counts(Path("single2"))["adapters"]
    assert everything["results"] == singles
    for which, entry in everything["summary"].items():
        assert entry["selected_by"] == singles[0]["evaluations"][which]["selected_by"]
        for name, found in entry["metrics"].items():
            values = [single["evaluations"][which]["metrics"][name] for single in singles]
            assert (found["values"], found["seeds"]) == (values, 2)
            assert found["mean"] == pytest.approx(statistics.fmean(values))
            assert found["std"] == pytest.approx(statistics.stdev(values))


def test_the_table_says_how_many_seeds_and_how_they_spread(run_here, tiny_model):
    names = ["--method", "lora", "--task", "toy", "--model", str(tiny_model)]
    code, out, err = run_here([*names, *SMALL, "--seeds", "0", "1"])
    assert code == 0, err
    for words in ("2 seeds (0 1)", "test split, 6 examples", "std over seeds with n - 1", "selected by the last step"):
        assert words in out
    for seed in (0, 1):
        assert f"files: runs/toy-lora-quick-seed{seed}" in out
        assert Path(f"runs/toy-lora-quick-seed{seed}/result.json").is_file()


def test_resume_keeps_goes_on_and_starts(run_here, arguments, what_counts, monkeypatch):
    """Of three seeds the first is finished, the second was stopped and the third was not begun."""
    assert run_here(arguments(*SMALL, "--seeds", "0", "1", "2", out="whole"))[0] == 0
    assert run_here(arguments(*SMALL, "--seeds", "0"))[0] == 0
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-2")
    code, out, err = run_here(arguments(*SMALL, "--seeds", "0", "1", "2", "--resume"))
    monkeypatch.delenv("TOY_FAULT")
    assert (code, out) == (130, "")
    assert "--seeds 0 1 2 --resume" in err.splitlines()[-1]
    assert not Path("out/seed2/result.json").exists()
    finished = Path("out/seed0/result.json")
    before = finished.stat().st_mtime_ns, finished.read_bytes()
    code, out, err = run_here(arguments(*SMALL, "--seeds", "0", "1", "2", "--resume", "--json"))
    assert code == 0, err
    assert (finished.stat().st_mtime_ns, finished.read_bytes()) == before
    assert "going on after step 1 of 2" in err
    assert json.loads(out)["seeds"] == [0, 1, 2]
    for seed in range(3):
        assert what_counts(Path(f"out/seed{seed}")) == what_counts(Path(f"whole/seed{seed}"))


def test_overwriting_leaves_no_result_of_before(run_here, arguments, monkeypatch):
    """A run that is then interrupted and resumed must not take the old result of a later seed for its own."""
    flags = [*SMALL, "--seeds", "0", "1"]
    assert run_here(arguments(*flags))[0] == 0
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-2")
    assert run_here(arguments(*flags, "--overwrite"))[0] == 130
    monkeypatch.delenv("TOY_FAULT")
    assert {path.name for path in Path("out/seed1").iterdir()} == {"config.toml"}
    _, _, err = run_here(arguments(*flags, "--resume"))
    assert "is finished" not in err


def test_bad_input_deletes_no_seed_s_result(run_here, arguments, assert_refused):
    flags = [*SMALL, "--seeds", "0", "1"]
    assert run_here(arguments(*flags))[0] == 0
    assert_refused(
        *run_here(arguments(*flags, "--overwrite", "--train.batch-size", "1000")), "seed 0: --train.batch-size"
    )
    assert all(Path(f"out/seed{seed}/result.json").is_file() for seed in (0, 1))


@pytest.mark.parametrize("change", ["task", "model", "init_from"])
def test_results_that_do_not_belong_together_are_refused(change, run_here, arguments, assert_refused):
    flags = [*SMALL, "--seeds", "0", "1"]
    assert run_here(arguments(*flags))[0] == 0
    path = Path("out/seed1/result.json")
    stored = json.loads(path.read_text())
    stored[change] = {**(stored[change] or {}), "version": 99, "sha256": "other"}
    path.write_text(json.dumps(stored))
    assert_refused(*run_here(arguments(*flags, "--resume")), "the seeds' results do not belong together")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "0", "--seeds", "1"], "--seed and --seeds both say"),
        (["--seeds", "0", "1", "0"], "--seeds names 0 twice"),
        (["--seeds", "0", "-1"], "--seed is -1"),
        (["--seeds", "0", "x"], "--seeds 0 x: it takes"),
        (["--seeds"], "--seeds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_seeds_that_cannot_be_are_refused(flags, says, run_here, arguments, assert_refused):
    assert_refused(*run_here(arguments(*flags)), says)
    assert not Path("out").exists()


def test_an_existing_directory_is_refused_before_anything_is_begun(run_here, arguments, assert_refused):
    assert run_here(arguments(*SMALL, "--seeds", "1"))[0] == 0
    before = Path("out/seed1/result.json").read_bytes()
    assert_refused(*run_here(arguments(*SMALL, "--seeds", "0", "1")), "the run directory out/seed1 exists")
    assert not Path("out/seed0").exists()
    assert Path("out/seed1/result.json").read_bytes() == before


def test_another_configuration_is_refused_before_anything_is_begun(run_here, arguments, assert_refused):
    assert run_here(arguments(*SMALL, "--seeds", "1"))[0] == 0
    flags = [*SMALL, "--train.learning-rate", "0.5", "--seeds", "0", "1", "--resume"]
    assert_refused(*run_here(arguments(*flags)), "out/seed1 was started with --train.learning-rate 0.01")
    assert not Path("out/seed0").exists()


def test_two_processes_equal_one(run_here, run_two, arguments):
    flags = [*SMALL, "--train.model-dropout", "0", "--train.micro-batch-size", "1", "--seeds", "0", "1", "--json"]
    out, _ = run_two(arguments(*flags, out="two"))
    assert out.count("\n") == 1
    two, one = json.loads(out), json.loads(run_here(arguments(*flags, out="one"))[1])
    assert [result["train"]["processes"] for result in two["results"]] == [2, 2]
    assert [result["train"]["processes"] for result in one["results"]] == [1, 1]
    for which, entry in one["summary"].items():
        for name, found in entry["metrics"].items():
            # sums in another order
            assert two["summary"][which]["metrics"][name]["values"] == pytest.approx(found["values"], rel=1e-4)
