"""The command as a whole: what it runs, keeps and writes, and that it goes on whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from harness.compare.work import best_settings
from harness.errors import UserError
from harness.sweep.claims import filled_trials, find_study
from harness.sweep.storage import open_storage

OUT = Path("out")
STORAGE = "sqlite:///out/study.db"
CELLS = ("toy-classes-hut", "toy-classes-lora")


def results() -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in sorted((OUT / "results").glob("*-seed*[0-9].json"))}


def attempts(storage: str = STORAGE) -> dict[str, list]:
    """All trials of all studies, those that were lost too."""
    opened = open_storage(storage)
    return {each.study_name: opened.get_all_trials(each._study_id) for each in opened.get_all_studies()}


def test_trials_runs_results_and_a_report(compare, forkserver, flags):
    code, out, err = compare(flags("--workers", "2"))
    assert code == 0, err
    assert "2 rows x 1 tasks x 2 seeds (0 1); 2 trials each" in err
    assert re.search(r"hut +0/2 \+ 0/2", err)
    found = results()
    assert list(found) == [f"{cell}-seed{seed}.json" for cell in CELLS for seed in (0, 1)]
    for name, result in found.items():
        study = find_study(open_storage(STORAGE), name.rpartition("-seed")[0])
        trials = filled_trials(study, 2)
        tuning = result["tuning"]
        assert (tuning["trials"], tuning["failed"], tuning["steps"]) == (2, 0, 16)
        assert tuning["value"] == max(trial.value for trial in trials)
        best = max(trials, key=lambda trial: trial.value)
        assert result["config"]["train"]["learning_rate"] == best.params["train.learning_rate"]
        assert len(result["train"]["loss_curve"]) > 1
        adapter = next(OUT.glob(f"runs/{name.rpartition('-seed')[0]}/final-*/seed{result['seed']}/adapter"))
        assert result["checkpoint_bytes"] == sum(path.stat().st_size for path in adapter.rglob("*.safetensors")) > 0
        assert (OUT / "results" / name).with_suffix(".predictions.jsonl").is_file()
    assert "toy-classes (version 1)" in out
    assert "2 trials" in out
    assert "<html" in (OUT / "report.html").read_text()[:200]


def test_trials_with_several_seeds_are_judged_by_their_mean(here, flags):
    code, _, err = here(flags("--seeds", "3..5", "--trial-seeds", "2", "--pack", "2"))
    assert code == 0, err
    assert "2 trials each with each of 2 seeds" in err
    assert re.search(r"hut +0/4 \+ 0/3", err)
    assert re.search(r"toy-classes hut, trial with train.learning_rate [\d.e-]+, seed 4: ", err)
    found = results()
    assert len(found) == 6
    for name, result in found.items():
        assert "seed" not in result["tuning"]["chosen"]
        assert "seed" not in result["tuning"]["searched"]
        assert result["tuning"]["metric"].endswith(", mean over seeds 3, 4")
        assert result["tuning"]["trials"] == 4
        values: dict[float, dict[int, float]] = {}
        for trial in filled_trials(find_study(open_storage(STORAGE), name.rpartition("-seed")[0]), 4):
            values.setdefault(trial.params["train.learning_rate"], {})[trial.params["seed"]] = trial.value
        assert [set(own) for own in values.values()] == [{3, 4}, {3, 4}]
        means = {rate: sum(own.values()) / 2 for rate, own in values.items()}
        assert result["tuning"]["value"] == pytest.approx(max(means.values()))
        assert means[result["config"]["train"]["learning_rate"]] == pytest.approx(max(means.values()))
    code, _, err = here(flags("--seeds", "3..5"))
    assert code == 2
    assert "seed" in err.splitlines()[-1]


def test_the_mean_over_seeds_decides_and_settings_that_failed_with_one_seed_do_not_count():
    def trial(slot: int, rate: float, seed: int, value: float | None):
        return create_trial(
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            value=value,
            params={"train.learning_rate": rate, "seed": seed},
            distributions={
                "train.learning_rate": CategoricalDistribution([0.1, 0.2, 0.3]),
                "seed": CategoricalDistribution([0, 1]),
            },
            user_attrs={"slot": slot, **({"failure": "it diverged"} if value is None else {})},
        )

    study = optuna.create_study(direction="maximize", study_name="toy")
    lucky = [trial(0, 0.1, 0, 0.9), trial(1, 0.1, 1, 0.1)]
    failed = [trial(2, 0.2, 0, 1.0), trial(3, 0.2, 1, None)]
    steady = [trial(4, 0.3, 0, 0.6), trial(5, 0.3, 1, 0.7)]
    best = best_settings(study, [*lucky, *failed, *steady])
    assert best.params == {"train.learning_rate": 0.3}
    assert best.value == pytest.approx(0.65)
    with pytest.raises(UserError, match="it diverged"):
        best_settings(study, failed)


def test_what_is_there_is_kept_and_only_the_rest_is_run(here, flags):
    assert here(flags("--methods", "hut"))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in OUT.rglob("result.json")}
    assert len(before) == 2
    code, out, err = here(flags("--methods", "hut"))
    assert code == 0, err
    assert re.search(r"hut +2/2 \+ 2/2", err)
    assert "is tried" not in err
    assert "toy-classes" in out
    code, _, err = here(flags("--seeds", "0..2"))  # another method and another seed
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(OUT.rglob("result.json"))) == 6
    assert [len(trials) for trials in attempts().values()] == [2, 3, 2, 3]


def test_without_a_budget_runs_are_those_of_the_recipe(here, run_here, flags, encoder):
    code, _, err = here(flags("--budget", "0"))
    assert code == 0, err
    own = ["--method", "hut", "--task", "toy-classes", "--model", str(encoder), "--seed", "1", "--output-dir", "own"]
    code, _, err = run_here(own)
    assert code == 0, err
    ours, theirs = results()["toy-classes-hut-seed1.json"], json.loads(Path("own/result.json").read_text())
    assert "tuning" not in ours
    assert {name: entry["metrics"] for name, entry in ours["evaluations"].items()} == {
        name: entry["metrics"] for name, entry in theirs["evaluations"].items()
    }


def test_a_dry_run_shows_the_plan_and_leaves_nothing(here, flags):
    code, out, err = here(flags("--dry-run"))
    assert code == 0, err
    assert re.search(r"hut +0/2 \+ 0/2", err)
    assert "an estimate" in err
    assert "nothing was begun" in out
    assert not OUT.exists()


def test_packed_trials_are_those_of_separate_ones(here, flags):
    assert here(flags())[0] == 0
    alone = {name: found["tuning"]["value"] for name, found in results().items()}
    code, _, err = here([*flags("--pack", "2"), "--output-dir", "packed"])
    assert code == 0, err
    packed = [json.loads(path.read_text()) for path in sorted(Path("packed/results").glob("*-seed*[0-9].json"))]
    assert [found["tuning"]["value"] for found in packed] == pytest.approx(list(alone.values()), abs=1e-5)
    sizes = {name: [trial.user_attrs.get("pack") for trial in trials] for name, trials in attempts_of("packed").items()}
    assert sizes["toy-classes-hut"] == [2, 2]
    assert sizes["toy-classes-lora"] == [1, 1]  # stock LoRA shares no passes


def attempts_of(folder: str) -> dict[str, list]:
    return attempts(f"sqlite:///{folder}/study.db")


def test_a_method_that_cannot_act_is_left_out_and_said(here, flags, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text("[tasks]\ntoy-classes=''\n[rows]\nhut='hut'\nbad='hut --method.roles cross_query'")
    code, out, err = here(flags("--plan", str(plan), "--seeds", "0"))
    assert code == 0, err
    assert "toy-classes bad is left out: --method hut" in err
    assert "toy-classes bad is left out" in out
    assert list(results()) == ["toy-classes-hut-seed0.json"]
    code, _, err = here(flags("--plan", str(plan), "--methods", "bad", "--output-dir", "none"))
    assert code == 2
    assert "no cell of the matrix can be run" in err.splitlines()[-1]


def test_other_seeds_and_other_settings_are_refused(here, flags):
    assert here(flags("--methods", "hut", "--budget", "0"))[0] == 0
    code, _, err = here(flags("--methods", "hut", "--budget", "0", "--seeds", "0", "5"))
    assert code == 2
    assert "--seeds 0 5" in err
    assert here(flags("--methods", "lora"))[0] == 0
    code, _, err = here(flags("--methods", "lora", "--train.batch-size", "2"))
    assert code == 2
    assert "batch_size" in err.splitlines()[-1]


@pytest.mark.parametrize("when", ["trial", "run"])
def test_killed_and_started_again_runs_only_what_was_not_finished(here, flags, tmp_path, when):
    """The command is killed by -9 as soon as its first trial or run has ended, workers and all."""
    command = [sys.executable, "-m", "harness.compare", *flags("--workers", "2")]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if f", {'seed' if when == 'run' else 'trial with'}" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    ended = {
        (name, trial.number): trial.datetime_complete
        for name, trials in attempts().items()
        for trial in trials
        if trial.state == TrialState.COMPLETE
    }
    assert ended
    code, _, err = here(flags())
    assert code == 0, err
    assert len(results()) == 4
    after = {
        (name, trial.number): trial.datetime_complete
        for name, trials in attempts().items()
        for trial in trials
        if trial.state == TrialState.COMPLETE
    }
    assert ended.items() <= after.items()
    assert len(after) == 8  # 2 trials and 2 runs of each method, none twice


def test_two_commands_share_a_matrix(flags, here):
    """Each cell's trials and runs are made once, whichever of the two makes them."""
    path = os.pathsep.join(sys.path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "harness.compare", *flags("--storage", "journal:shared.log", "--output-dir", out)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for out in ("one", "two")
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    complete = [trial for trials in attempts("journal:shared.log").values() for trial in trials]
    assert sum(trial.state == TrialState.COMPLETE for trial in complete) == 8
    names = [sorted(path.name for path in Path(out, "results").glob("*-seed*[0-9].json")) for out in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]) == 4
