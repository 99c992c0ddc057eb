"""Every method on a task of GLUE and on E2E: two steps, saved, read back, scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.e2e import metrics
from harness import registry

METHODS = [name for name, entry in registry.entries("method").items() if entry.dist and "toy" not in entry.dist.name]

# what the models of these tests are too small for
SMALL = {"fourierft": ("--method.n", "50")}


@pytest.fixture(scope="session")
def language_model(tmp_path_factory, make_tokenizer) -> Path:
    """A tiny GPT-2, whose projections are fused, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("language_model")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_positions=512, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = make_tokenizer().eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(run_here):
    def start(*arguments: str) -> tuple[int, dict | None, str]:
        code, _, err = run_here([*arguments, "--output-dir", "out"])
        result = Path("out", "result.json")
        return code, json.loads(result.read_text()) if result.is_file() else None, err

    return start


def check(result: dict, name: str) -> None:
    assert result["train"]["steps"] == 2
    trained = result["parameters"]
    assert trained["adapter"] + trained["norm"] + trained["head"] > 0
    stored = [tensor for file in Path("out", "adapter").glob("*.safetensors") for tensor in load_file(file).values()]
    assert stored
    assert all(tensor.isfinite().all() for tensor in stored)


@pytest.mark.parametrize("name", METHODS)
def test_cola(name, run, checkpoint, glue_folder):
    flags = ["--model", str(checkpoint("bert")), "--data.dir", str(glue_folder("cola", train=24))]
    steps = ["--train.max-steps", "2", "--train.batch-size", "4", "--train.eval-every", "1"]
    steps += [f"--{stage.name}.max-steps=2" for stage in getattr(registry.load("method", name), "stages", ())[:-1]]
    code, result, err = run("--method", name, "--task", "cola", *flags, *steps, *SMALL.get(name, ()))
    assert code == 0, err
    check(result, name)
    assert set(result["evaluations"]) == {"held_out", "published"}


@pytest.mark.parametrize("name", METHODS)
def test_e2e(name, run, language_model, monkeypatch):
    scored = []

    def score(texts, references, progress):
        scored.extend(texts)
        return metrics.Scores({"bleu": 0.5}, {}, {})

    monkeypatch.setattr(metrics, "score", score)  # the scorers have tests of their own
    flags = ["--model", str(language_model), "--data.train-limit", "8", "--data.eval-limit", "2"]
    flags += ["--train.max-steps", "2", "--train.batch-size", "4", "--train.eval-every", "never"]
    flags += ["--task.num-beams", "2", "--task.max-new-tokens", "4"]
    if getattr(registry.load("method", name), "stages", ()):
        stage, *_ = registry.load("method", name).stages
        flags += [] if stage.needs_head else [f"--{stage.name}.max-steps=2"]
    code, result, err = run("--method", name, "--task", "e2e", *flags, *SMALL.get(name, ()))
    if name == "head":
        assert code == 2
        assert err.splitlines()[-1] == (
            "error: --method head: the model of this task has no head of its own, so there is nothing to train"
        )
        return
    assert code == 0, err
    check(result, name)
    assert len(scored) == 2
