"""What cannot be swept is refused in one sentence with exit code 2, before there is a trial wherever that can be."""

from __future__ import annotations

from pathlib import Path

import pytest

OUT = Path("out")
JOURNAL = "journal:out/study.journal"


def words(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(
    ("method", "more", "says"),
    [
        ("hut", ("--space.rank", "4", "8"), "--space.rank: --method hut has no rank, and the training has none either"),
        ("hut", ("--space.method.alpha", "1"), "--space.method.alpha: --method hut has no alpha"),
        ("hadamard", ("--space.r", "1", "2"), "--space.r: --method hadamard has no r"),
        ("hut", ("--space.stage1.learning-rate", "1e-3", "1e-2"), "--space.stage1.learning-rate: there is no setting"),
        ("hut", ("--space.r",), "--space.r without a value: give the values to search"),
        ("hut", ("--space.r", "few", "many"), "--space.r few: it takes a whole number"),
        ("hut", ("--space.r", "2", "2"), "--space.r names 2 twice: give each value once"),
        ("hut", ("--space.r", "0", "2"), "--space.r 0: --method.r is 0: it must be at least 1"),
        ("hut", ("--space.learning-rate", "1e-3", "1e-3"), "both ends of the range are equal"),
        ("hut", ("--space.learning-rate", "1e-1", "1e-3"), "the range ends below its start"),
        ("hut", ("--space.learning-rate", "0", "1e-3"), "the range is searched logarithmically: start it above 0"),
        ("hut", ("--space.r", "1", "2", "--method.r", "4"), "--space.r searches method.r and --method.r fixes it"),
        ("hut", ("--method.r", "4", "--train.learning-rate", "1e-3"), "nothing is left to search"),
        ("hut", ("--space.data.train-limit", "8", "16"), "data.train_limit has to be the same in all trials"),
        ("hut", ("--trials", "0"), "--trials is 0: it must be at least 1"),
        ("hut", ("--trials", "many"), "--trials many: it takes a whole number"),
        ("hut", ("--workers", "0"), "--workers is 0: it must be at least 1"),
        ("hut", ("--pack", "0"), "--pack is 0: it must be at least 1"),
        ("hut", ("--trials-per-process", "0"), "--trials-per-process is 0: it must be at least 1"),
        ("hut", ("--seeds", "-1"), "--seeds is -1: it must be 0 or above"),
        ("hut", ("--sampler-seed", "-1"), "--sampler-seed is -1: it must be between 0 and 4294967295"),
        ("hut", ("--heartbeat", "15", "--grace", "20"), "--heartbeat 15 and --grace 20"),
        (
            "hut",
            ("--sampler", "grid"),
            "a grid needs a list of values for each parameter, and train.learning_rate is a",
        ),
        (
            "hut",
            ("--sampler", "grid", "--space.learning-rate", "1e-3", "1e-2", "3e-2", "--trials", "5"),
            "--trials 5: the grid has 12 combinations: leave --trials out",
        ),
        (
            "hut",
            ("--objectives", "quality", "parameters", "--pruner", "asha"),
            "--pruner asha: with several objectives no trial is worse than all: leave it out",
        ),
        ("hut", ("--objectives", "parameters"), "--objectives parameters: quality has to be among them"),
        ("hut", ("--objectives", "quality", "quality"), "--objectives quality quality: quality has to be among them"),
        ("hut", ("--objectives", "quality", "step-time", "--workers", "2"), "--objectives step-time: steps of trials"),
        ("hut", ("--objectives", "quality", "step-time", "--pack", "2"), "--objectives step-time: steps of trials"),
        (
            "hut",
            ("--pack", "2", "--space.train.model-dropout", "0", "0.1"),
            "--pack: trials that train together share --train.model-dropout: leave it out of the space",
        ),
        ("hut", ("--pack", "2", "--init-from", "somewhere"), "leave out --init-from"),
        ("hut", ("--storage", "mongodb://there/toys"), "--storage mongodb://there/toys: "),
        ("hut", ("--storage", "sqlite:///"), "--storage sqlite:///: it names no file"),
        ("hut", ("--score", "best"), "--score best: with these settings task toy-classes selects by"),
        ("no-such", (), "no-such"),
    ],
    ids=words,
)
def test_refused_before_anything_exists(method, more, says, sweep, flags, assert_refused):
    assert_refused(*sweep(flags(*more, method=method)), says)
    assert not OUT.exists()


def test_a_task_that_holds_nothing_out_is_refused(sweep, flags, assert_refused):
    says = "--task toy: it holds no part of its training set out, and a sweep that chose by validation or test examples"
    assert_refused(*sweep(flags(task="toy")), says)
    assert not OUT.exists()


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("sqlite:////proc/toys/study.db", "the folder /proc/toys cannot be made"),
        ("sqlite:///text", "it cannot be opened (file is not a database)"),
        ("journal:text", "name another file"),
        ("journal:folder", "the file cannot be opened (Is a directory)"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused(storage, says, here, flags, assert_refused):
    Path("text").write_text("nobody knows what this is, and it is long enough to have been a database\n" * 9)
    Path("folder").mkdir()
    code, out, err = here(flags("--storage", storage))
    assert_refused(code, out, err, says)
    assert f"error: --storage {storage}: " in err


@pytest.fixture
def finished(here, flags) -> None:
    """A sweep that is there already."""
    code, _, err = here(flags("--storage", JOURNAL, "--trials", "1"))
    assert code == 0, err


def test_another_sweeps_study_is_refused(finished, here, flags, assert_refused, study_in):
    cases = [
        (("--space.r", "1", "2"), {}, 'space.method.r is "1 | 2 | 4 | 8" in the study and "1 | 2" in this sweep'),
        (("--space.r", "4"), {}, 'space.method.r is "1 | 2 | 4 | 8" in the study and "4" in this sweep'),
        (("--method.r", "4"), {}, "method_settings.r is not set in the study and 4 in this sweep"),
        (("--space.weight-decay", "0", "0.1"), {}, "space.train.weight_decay is not set in the study and"),
        (("--train.batch-size", "2"), {}, "train.batch_size is 4 in the study and 2 in this sweep"),
        (("--task.classes", "3"), {}, "task_settings.classes is 2 in the study and 3 in this sweep"),
        (("--seed", "5"), {}, "seed is 0 in the study and 5 in this sweep"),
        (("--sampler", "tpe"), {}, 'sampler is "random" in the study and "tpe" in this sweep'),
        (("--objectives", "quality", "parameters"), {}, "objectives is"),
        (("--study", "toy-classes-hut-quick"), {"method": "lora"}, 'method is "hut" in the study and "lora"'),
        (("--study", "toy-classes-hut-quick"), {"task": "cola"}, 'task is "toy-classes" in the study and "cola"'),
    ]
    for more, names, says in cases:
        code, out, err = here(flags("--storage", JOURNAL, *more, **names))
        assert_refused(code, out, err, says)
        assert "error: --study toy-classes-hut-quick: " in err
        assert "give the sweep another name by --study, or the same settings" in err
    assert len(study_in(JOURNAL).trials) == 1


@pytest.mark.parametrize(
    ("method", "more", "says"),
    [
        ("lora", ("--pack", "2"), "--method lora: Adapters of LoraConfig are not vectors"),
        ("lora", ("--pack", "auto"), "--method lora: Adapters of LoraConfig are not vectors"),
        ("full", ("--pack", "2"), "--method full trains no vectors beside a frozen model"),
        ("hut", ("--pack", "2", "--train.gradient-checkpointing"), "--pack: with --train.gradient-checkpointing"),
        ("hut", ("--train.batch-size", "99"), "--train.batch-size is 99 and there are 24 training examples"),
        ("hut", ("--method.layers", "top:9"), "--method hut: "),
        ("hut", ("--method.roles", "cross.query"), "--method hut: No module in the role 'cross.query'"),
    ],
    ids=words,
)
def test_refused_before_there_is_a_study(method, more, says, here, flags, assert_refused):
    assert_refused(*here(flags("--storage", JOURNAL, "--study", "toys", *more, method=method)), says)
    assert not OUT.exists()  # a study would keep to the settings it began with


def test_data_that_are_missing_are_refused_before_there_is_a_study(here, flags, assert_refused):
    code, out, err = here(flags("--storage", JOURNAL, "--data.dir", "nowhere", "--study", "toys", task="cola"))
    assert_refused(code, out, err, "nowhere")
    assert not OUT.exists()  # a study would keep to the settings it began with


def test_a_model_that_is_missing_is_refused_by_the_process_that_tries(sweep, forkserver, flags, assert_refused):
    command = flags("--storage", JOURNAL)
    command[command.index("--model") + 1] = "nowhere"
    assert_refused(*sweep(command), "--model nowhere")
    assert not OUT.exists()


def test_a_sweep_whose_trials_all_fail_says_why(here, flags, assert_refused, trials_in):
    code, out, err = here(flags("--storage", JOURNAL, "--trials", "2", "--space.learning-rate", "1e37", "1e38"))
    assert_refused(code, out, err, "no trial of toy-classes-hut-quick has a value; the first one: the ")
    assert len(trials_in(JOURNAL)) == 2


class TestShow:
    def test_nothing_there(self, sweep, assert_refused):
        assert_refused(
            *sweep(["--show", "toys"]), "--show toys: there is no runs/sweeps/toys/study.db: give the --storage"
        )
        assert not Path("runs").exists()

    def test_a_study_that_is_not_there(self, finished, sweep, assert_refused):
        says = "the storage holds no study toy-classes-hut, did you mean toy-classes-hut-quick?"
        assert_refused(*sweep(["--show", "toy-classes-hut", "--storage", JOURNAL]), says)


def test_several_processes_train_one_trial_at_a_time(sweep, flags, monkeypatch, assert_refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(*sweep(flags("--workers", "2")), "started by a launcher, all processes train one trial together")
    assert_refused(*sweep(flags("--pack", "2")), "started by a launcher, all processes train one trial together")
    assert not OUT.exists()
