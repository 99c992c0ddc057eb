"""Every recipe of every installed task: it loads, it runs, the result holds its settings, and it says what papers say.

The runs are of two steps on tiny random models of the recipe's architecture.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from benchmarks.e2e import metrics
from hadamard_core.accounting import count_parameters
from harness import recipes, registry
from harness.config import validate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TASKS = {name: registry.load("task", name) for name in registry.entries("task")}
FILES = {(name, preset): path for name, task in TASKS.items() for preset, path in registry.presets(task).items()}
RECIPES = {key: tomllib.loads(path.read_text(encoding="utf-8")) for key, path in FILES.items()}
SHARED = {
    key: tomllib.loads((FILES[key].parent / recipe["methods_from"]).read_text(encoding="utf-8"))["methods"]
    for key, recipe in RECIPES.items()
    if "methods_from" in recipe
}

# the tasks of GLUE that both papers have, in the order of their tables
GLUE = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")

# what stands in for the recipe's model
ARCHITECTURES = {
    "FacebookAI/roberta-base": "roberta",
    "FacebookAI/roberta-large": "roberta",
    "google-bert/bert-base-uncased": "bert",
    "google-bert/bert-large-uncased": "bert",
    "minilm-l6": "bert",
    "openai-community/gpt2-medium": "gpt2",
    "smollm2-135m": "llama",
}


def compared(task: str) -> list[str]:
    """Returns the methods that a task's results stand beside one another for."""
    has_head = TASKS[task].auto_class != "AutoModelForCausalLM"
    return ["hut", "hadamard", "lora", "full", *(["head"] if has_head else [])]


LOADED = [
    (task, preset, method)
    for (task, preset), recipe in RECIPES.items()
    for method in dict.fromkeys([*recipe["methods"], *SHARED.get((task, preset), ()), *compared(task)])
]
# A recipe that tasks share runs on one of them. Those of e2e and cola run with every method that they name, and the
# others, which are much alike, with one of theirs in turn.
OF_ONE_TASK = {path: (task, preset) for (task, preset), path in FILES.items()}
RUN = [
    (task, preset, method)
    for turn, (task, preset) in enumerate(OF_ONE_TASK.values())
    for place, method in enumerate(RECIPES[task, preset]["methods"])
    if task in ("cola", "e2e") or place == turn % len(RECIPES[task, preset]["methods"])
]


def test_the_comparison_is_installed():
    assert {method for task in TASKS for method in compared(task)} <= registry.entries("method").keys()
    assert {(task, "quick") for task in TASKS} | {(task, "paper") for task in (*GLUE, "e2e")} <= FILES.keys()


@pytest.mark.parametrize(("task", "preset"), FILES)
def test_it_names_installed_methods_only(task, preset):
    named = RECIPES[task, preset]["methods"].keys()
    shared = SHARED.get((task, preset), {}).keys()
    assert named | shared <= registry.entries("method").keys()
    assert not named & shared


@pytest.mark.parametrize("task", TASKS)
def test_quick_presets_have_settings_for_every_method(task):
    named = {*RECIPES[task, "quick"]["methods"], *SHARED[task, "quick"]}
    ours = {name for name, entry in registry.entries("method").items() if "toy" not in entry.dist.name}
    # BitFit is for models with biases, the head for models with a head
    assert ours - named <= (set() if task != "e2e" else {"bitfit", "head"})


@pytest.mark.parametrize(("task", "preset", "method"), LOADED)
def test_it_loads(task, preset, method):
    validate(recipes.build(method, task, preset))


def settings_of(recipe: Mapping[str, Any], task: str, method: str) -> dict[str, Any]:
    """Returns ``{"train.batch_size": 8, ...}`` as the file says it: its part for the method over the common part."""

    def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found = {}
        for key, value in table.items():
            found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
        return found

    common = {key: value for key, value in recipe.items() if key not in ("methods", "methods_from", "tasks")}
    parts = (common, recipe.get("tasks", {}).get(task, {}), recipe["methods"].get(method, {}))
    return {key: value for part in parts for key, value in flat(part).items()}


@pytest.fixture
def scored_without_java(monkeypatch):
    """METEOR and the caption scores' tokeniser start Java, which has tests of its own."""
    seen = []

    def score(texts, references, progress):
        seen.append(texts)
        return metrics.Scores(metrics={"BLEU": 0.0})

    monkeypatch.setattr(metrics, "score", score)
    return seen


@pytest.mark.parametrize(("task", "preset", "method"), RUN)
def test_it_runs_and_the_result_holds_its_settings(
    task, preset, method, run_here, checkpoint, glue_folder, scored_without_java
):
    recipe = settings_of(RECIPES[task, preset], task, method)
    small = {"model": str(checkpoint(ARCHITECTURES[recipe["model"]])), "train.max_steps": 2}
    if recipe.get("train.batch_size", 0) > 16:
        small["train.batch_size"] = 16
    if "method.n" in recipe:  # no more coefficients than entries
        small["method.n"] = 50
    if "stage1.epochs" in recipe:
        small["stage1.epochs"] = 0.1
    if task == "e2e":
        small |= {"data.train_limit": 16, "data.eval_limit": 3, "task.max_new_tokens": 4}
    else:
        small |= {"data.dir": str(glue_folder(task, train=40, validation=6))}
    flags = [part for key, value in small.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    code, _, err = run_here(["--method", method, "--task", task, "--preset", preset, "--output-dir", "out", *flags])
    assert code == 0, err

    result = json.loads(Path("out", "result.json").read_text())
    assert result["train"]["steps"] == 2
    assert list(result["evaluations"]) == recipe.get("score", ["last"])
    config = result["config"]
    config |= {"method": config["method_settings"], "task": config["task_settings"], **config.get("stages", {})}
    for key, value in {**recipe, **small}.items():
        section, _, name = key.rpartition(".")
        stored = (config[section] if section else config).get(name)
        assert stored == (None if value == "None" else value), key
    assert len(scored_without_java) == (
        0 if task != "e2e" else len({e["step"] for e in result["evaluations"].values()})
    )


# HUT: arXiv 2409.13501. LoRA and adapters: arXiv 2106.09685, table 9, the settings marked with a dagger. VeRA: arXiv
# 2310.11454. FourierFT: arXiv 2405.03003.
PAPERS = {
    "hut": {
        "train.batch_size": (8, 16, 4, 8, 16, 16),
        "train.epochs": (20, 20, 40, 10, 80, 40),
        "train.learning_rate": (1e-4, 5e-3, 1e-3, 2e-4, 2e-3, 5e-3),
        "method.r": (8,) * 6,
        "task.max_length": (512,) * 6,
        "train.warmup_ratio": (0.06,) * 6,
    },
    "lora": {
        "train.batch_size": (4,) * 6,
        "train.epochs": (10, 20, 20, 10, 20, 10),
        "train.learning_rate": (4e-4, 3e-4, 2e-4, 2e-4, 4e-4, 2e-4),
        "method.r": (8,) * 6,
        "method.alpha": (16,) * 6,
        "task.max_length": (128,) * 6,
        "train.warmup_ratio": (0.06,) * 6,
    },
    "vera": {
        "train.batch_size": (128,) * 6,
        "train.epochs": (10, 40, 40, 20, 40, 20),
        "train.learning_rate": (1e-2, 3e-2, 1e-2, 1e-2, 2e-2, 2e-2),
        "train.head_learning_rate": (6e-3, 3e-3, 6e-3, 2e-4, 2e-3, 2e-3),
        "method.r": (256,) * 6,
        "method.d_initial": (0.1,) * 6,
        "task.max_length": (128,) * 6,
    },
    "fourierft": {
        "train.batch_size": (32, 32, 128, 32, 32, 32),
        "train.epochs": (10, 30, 80, 30, 60, 30),
        "train.learning_rate": (4.3e-2, 6e-2, 4.3e-2, 6e-2, 8e-2, 7e-2),
        "train.head_learning_rate": (1e-3, 1e-3, 1.1e-2, 5e-3, 5e-3, 1e-3),
        "method.n": (1000,) * 6,
        "method.scaling": (99, 120, 120, 69, 90, 121),
        "method.location_seed": (2024,) * 6,
        "task.max_length": (128, 512, 256, 512, 512, 512),
    },
    "pfeiffer": {
        "train.batch_size": (32,) * 6,
        "train.epochs": (20, 20, 20, 10, 20, 20),
        "train.learning_rate": (3e-5, *(3e-4,) * 5),
        "method.bottleneck": (64,) * 6,
        "task.max_length": (128,) * 6,
    },
    "houlsby": {
        "train.batch_size": (32,) * 6,
        "train.epochs": (5, 10, 10, 5, 20, 10),
        "train.learning_rate": (3e-4,) * 6,
        "method.bottleneck": (64,) * 6,
        "task.max_length": (128,) * 6,
    },
}


@pytest.mark.parametrize("task", GLUE)
@pytest.mark.parametrize("method", PAPERS)
def test_the_settings_of_the_papers(method, task):
    config = recipes.build(method, task, "paper")
    sections = {"train": config.train, "method": config.method_settings, "task": config.task_settings}
    for key, values in PAPERS[method].items():
        section, _, name = key.partition(".")
        assert getattr(sections[section], name) == values[GLUE.index(task)], key
    assert config.train.max_steps is None  # it would count in place of the epochs
    assert config.train.warmup_steps is None  # and this in place of the share
    assert config.model == "FacebookAI/roberta-large"


@pytest.mark.parametrize("task", GLUE)
@pytest.mark.parametrize(("method", "adapter"), [("hut", 884_736), ("lora", 786_432)])
def test_the_parameters_of_the_papers(method, adapter, task):
    settings = recipes.build(method, task, "paper").method_settings
    labels = max(1, len(TASKS[task].declaration.labels))
    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        num_labels=labels,
    )
    with torch.device("meta"):
        model = settings.apply(RobertaForSequenceClassification(config), "SEQ_CLS", ["classifier"])
    counts = count_parameters(model)
    head = (1024 + 1) * 1024 + (1024 + 1) * labels
    assert (counts.adapter, counts.norm, counts.head) == (adapter, 0, head)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "e2e"])
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_models_of_the_hadamard_adapters_paper(size, task):
    for kind in ("bert", "roberta"):
        config = recipes.build("hadamard", task, f"{kind}-{size}")
        assert f"{kind}-{size}" in config.model
        assert config.train.epochs == {"sst2": 5, "qnli": 5, "mnli": 3, "qqp": 3}.get(task, 20)
        method = config.method_settings
        assert (method.position, method.norm, method.head, method.layers) == ("context", "attention", "freeze", None)
