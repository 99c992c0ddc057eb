"""What a run leaves behind and prints."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import termios
from pathlib import Path

import pytest

from harness.console import Console, LineBar
from harness.workload import Workload

OUT = Path("out")


def test_the_run_directory_holds_what_is_promised(run_here, arguments):
    code, _, err = run_here(arguments())
    assert code == 0, err
    names = {str(path.relative_to(OUT)) for path in OUT.rglob("*") if path.is_file()}
    assert {"config.toml", "result.json", "predictions.jsonl", "adapter/adapter_model.safetensors"} <= names
    assert not any(name.startswith((".", "checkpoint")) or ".new" in name for name in names)
    result = json.loads((OUT / "result.json").read_text())
    assert result["schema_version"] == 2
    assert result["parameters"]["adapter"] == result["parameters"]["trained"] == 256
    assert result["model"]["sha256"]
    assert result["evaluations"]["last"]["selected_by"] == "the last step"
    assert result["evaluations"]["last"]["unavailable"] == {"taste": "nobody here can taste"}
    assert len((OUT / "predictions.jsonl").read_text().splitlines()) == result["evaluations"]["last"]["examples"]


def test_what_is_scored_was_read_from_disk(run_here, arguments, what_counts):
    """The method wrecks the trained object once it is saved; the scores do not change."""
    wrecked = json.loads(run_here(arguments("--json", method="wrecked", out="wrecked"))[1])
    sound = json.loads(run_here(arguments("--json"))[1])
    for which, entry in sound["evaluations"].items():
        assert wrecked["evaluations"][which].get("metrics") == entry.get("metrics")
    assert what_counts(Path("wrecked"))["predictions"] == what_counts(OUT)["predictions"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_best_and_last_are_scored_apart(method, run_here, arguments, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(Workload, "measure", lambda *_: {"loss": next(losses)})
    result = json.loads(run_here(arguments("--json", "--train.learning-rate", "0.1", method=method))[1])
    best, last = result["evaluations"]["best"], result["evaluations"]["last"]
    assert (best["step"], last["step"]) == (6, 8)
    assert best["metrics"] != last["metrics"]
    assert {path.name for path in OUT.glob("*best*")} == {"adapter-best", "predictions-best.jsonl"}


def test_equal_parameters_are_scored_once(run_here, arguments):
    result = json.loads(run_here(arguments("--json", "--train.eval-every", "100"))[1])
    best, last = result["evaluations"]["best"], result["evaluations"]["last"]
    assert (best["same_as"], best["step"]) == ("last", 8)
    assert best["selected_by"] == "lowest validation loss"
    assert best["metrics"] == last["metrics"]
    assert best["selection"]["value"] == result["train"]["measurements"][-1]["validation"]["loss"]
    assert {path.name for path in OUT.glob("predictions*")} == {"predictions.jsonl"}


def test_json_is_one_line_and_nothing_else_is_on_stdout(run_forked, tmp_path, arguments):
    """In a process of its own, where libraries and child processes print to the real stdout."""
    code = run_forked(arguments("--json"), fault="noise")
    out, err = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
    assert code == 0, err
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads((OUT / "result.json").read_text())
    assert "a library speaks" in err
    assert "a child process speaks" in err


def test_the_table_says_where_its_numbers_come_from(run_here, arguments):
    _, out, err = run_here(arguments())
    for words in (
        "1 seed (0)",
        "test split, 6 examples",
        "selected by the last step",
        "not computed: nobody here",
        "%",
    ):
        assert words in out
    for words in ("A toy that copies letters", "trained: 256 of 7,264 parameters", "validation loss", "left"):
        assert words in err


def test_logs_hold_no_control_characters(run_here, arguments):
    _, out, err = run_here(arguments())
    assert all(character.isprintable() or character == "\n" for character in out + err)


def test_a_terminal_gets_a_bar(monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Console(speaks=True).bar("decoding", 2, "text") as bar:
            bar.set_postfix_str("loss 1")
            bar.update(2)
    shown = ""
    with contextlib.suppress(OSError), os.fdopen(master, "rb", buffering=0) as screen:
        while part := screen.read(4096):  # ends with an error once the other side is closed
            shown += part.decode(errors="ignore")
    assert "decoding: 100%" in shown
    assert "loss 1" in shown


def test_a_log_gets_ten_lines(capsys):
    bar = LineBar("decoding", 1000, "text")
    for _ in range(1000):
        bar.update()
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_the_run_directory_has_a_name_by_default(run_here, tiny_model):
    code, _, err = run_here(["--method", "lora", "--task", "toy", "--model", str(tiny_model)])
    assert code == 0, err
    assert Path("runs/toy-lora-quick-seed0/result.json").is_file()
