"""Trials that several processes train together, as torchrun starts them: one claims and samples for all."""

from __future__ import annotations

import json
import multiprocessing
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from optuna.trial import TrialState

JOURNAL = "journal:out/study.journal"


@pytest.fixture
def by_two(forkserver, tmp_path) -> Callable[[Sequence[str]], tuple[list[int], list[str], list[str]]]:
    """Runs the command in two processes; returns their exit codes, stdouts and stderrs."""
    import sweep_process

    def run(argv: Sequence[str]) -> tuple[list[int], list[str], list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        context, processes = multiprocessing.get_context("forkserver"), []
        for rank in ("0", "1"):
            environment = {**common, "RANK": rank, "LOCAL_RANK": rank}
            arguments = (list(argv), str(tmp_path), environment, rank)
            processes.append(context.Process(target=sweep_process.together, args=arguments))
            processes[-1].start()
        for process in processes:
            process.join()
        out, err = ([(tmp_path / f"{name}{rank}").read_text() for rank in "01"] for name in ("stdout", "stderr"))
        return [process.exitcode for process in processes], out, err

    return run


def test_each_trial_is_one_of_both_processes(by_two, here, flags, study_in, trials_in, tmp_path):
    code, _, err = here(flags("--storage", "journal:alone/study.journal", out="alone"))
    assert code == 0, err
    expected = trials_in("journal:alone/study.journal")

    command = flags("--storage", JOURNAL, "--seeds", "1", "--json")
    codes, out, err = by_two(command)
    assert codes == [0, 0], err
    trials = trials_in(JOURNAL)
    assert [trial.state for trial in study_in(JOURNAL).trials] == [TrialState.COMPLETE] * 4
    assert [trial.user_attrs["slot"] for trial in trials] == [0, 1, 2, 3]
    for one, other in zip(trials, expected, strict=True):
        assert one.params == other.params
        assert one.values == pytest.approx(other.values, abs=1e-5)
        curves = [[loss for _, loss in trial.user_attrs["curve"]] for trial in (one, other)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-5)

    configurations = [(tmp_path / f"trials{rank}").read_text().splitlines() for rank in "01"]
    assert configurations[0] == configurations[1]
    assert [json.loads(line)["train"]["learning_rate"] for line in configurations[0]] == [
        trial.params["train.learning_rate"] for trial in trials
    ]
    assert (out[1], err[1]) == ("", "")
    found = json.loads(out[0])
    assert found["trials"]["complete"] == 4
    assert found["finals"]["results"][0]["train"]["processes"] == 2
    assert len(list(Path("out").glob("final-*/seed0/result.json"))) == 1

    command[command.index("--seeds") + 1] = "0"
    codes, again, err = by_two(command)
    assert codes == [0, 0], err
    assert json.loads(again[0])["rows"] == found["rows"]
    assert again[1] == ""
    assert len((tmp_path / "trials1").read_text().splitlines()) == 4  # none was added


def test_a_sweep_whose_trials_all_diverge_ends_in_both_processes(by_two, flags, trials_in):
    codes, out, err = by_two(flags("--storage", JOURNAL, "--trials", "2", "--space.learning-rate", "1e37", "1e38"))
    assert codes == [2, 2]
    assert out == ["", ""]
    assert err[0].splitlines()[-1].startswith("error: no trial of toy-classes-hut-quick has a value; the first one:")
    assert err[1] == ""
    assert [trial.state for trial in trials_in(JOURNAL)] == [TrialState.PRUNED] * 2


def test_what_cannot_be_used_is_refused_in_both_processes(by_two, flags):
    for more, says in (
        (("--train.batch-size", "5"), "error: --train.batch-size 5 cannot be shared evenly by 2 processes"),
        (("--storage", "journal:/proc/toys/study.journal"), "error: --storage journal:/proc/toys/study.journal: "),
    ):
        codes, out, err = by_two(flags(*more))
        assert codes == [2, 2], err
        assert out == ["", ""]
        assert err[0].splitlines()[-1].startswith(says)
        assert err[1] == ""
        assert not Path("out").exists()
