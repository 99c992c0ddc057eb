"""Adapters of several tasks in one loop: what is shared, what is not, and what lies on the disk."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import hadamard_adapter
from benchmarks.analysis import joint, joint_report, joint_training, shared
from benchmarks.analysis.__main__ import main
from hadamard_core.accounting import count_parameters
from harness.config import DataConfig
from harness.errors import run_command

TASKS = ("cola", "stsb")
STEPS, STAGE1_STEPS = 8, 4


@pytest.fixture
def without_dropout(checkpoint, tmp_path):
    """Copies a tiny checkpoint and switches its dropout off; returns the folder."""

    def copy(kind: str):
        folder = tmp_path / f"{kind}-without-dropout"
        shutil.copytree(checkpoint(kind), folder, dirs_exist_ok=True)
        path = folder / "config.json"
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        path.write_text(json.dumps(json.loads(path.read_text()) | off))
        return folder

    return copy


@pytest.fixture
def data(glue_folder):
    """A folder with small copies of three tasks, which have 2, 1 and 3 outputs."""
    glue_folder("cola", train=24)
    glue_folder("mnli", train=24)
    return glue_folder("stsb", train=24)


@pytest.fixture
def read(data, without_dropout):
    """Reads tasks for a tiny model."""

    def tasks(names=TASKS, kind="bert"):
        return joint.read_tasks(names, str(without_dropout(kind)), DataConfig(dir=data), 0, 128, 0.25)

    return tasks


@pytest.fixture
def run(run_here, capfd, tmp_path):  # run_here for what it restores
    """Runs the command and returns exit code, stdout and stderr."""

    def call(*more: str, out: str = "out"):
        capfd.readouterr()
        code = run_command(main, ["shared", "--output-dir", str(tmp_path / out), *more])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def small(data, without_dropout):
    """The flags of a run that takes seconds."""

    def flags(kind="bert"):
        steps = ["--steps", str(STEPS), "--stage1-steps", str(STAGE1_STEPS), "--batch-size", "4"]
        place = ["--model", str(without_dropout(kind)), "--data-dir", str(data), "--held-out", "0.25"]
        return ["--tasks", *TASKS, *steps, *place, "--eval-every", str(STEPS)]

    return flags


def adapter_file(tmp_path, arm, task, out="out", seed=0):
    return load_file(tmp_path / out / arm / f"seed{seed}" / task / "adapter_model.safetensors")


def scatter(model, spread=0.3):
    """Moves all adapters and heads away from their start."""
    generator = torch.Generator().manual_seed(1)
    joint.train_only(model, adapters=True, heads=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += spread * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", ["bert", "roberta"])  # a head of one layer, and one of several
def test_separate_adapters_in_one_loop_are_those_that_the_harness_trains_alone(
    kind, small, run, run_here, data, tmp_path
):
    flags = small(kind)
    code, _, err = run(*flags, "--share", "none", "--seeds", "1")
    assert code == 0, err
    for task in TASKS:
        alone = ["--method", "hadamard", "--task", task, "--seed", "1", "--model", flags[flags.index("--model") + 1]]
        alone += ["--new-head", "--data.dir", str(data), "--score", "last", "--output-dir", task]
        alone += ["--train.max-steps", str(STEPS), "--train.batch-size", "4", "--train.max-grad-norm", "None"]
        alone += ["--train.learning-rate", "1e-2", "--train.warmup-ratio", "0.06", "--train.eval-every", "never"]
        alone += ["--train.no-group-by-length", "--task.held-out", "0.25"]
        alone += ["--stage1.max-steps", str(STAGE1_STEPS), "--stage1.learning-rate", "1e-2"]
        alone += ["--stage1.epochs", "None"]  # in place of what the recipe says
        code, _, err = run_here(alone)
        assert code == 0, err
        expected = load_file(tmp_path / task / "adapter" / "adapter_model.safetensors")
        found = adapter_file(tmp_path, "none", task, seed=1)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5, msg=name)
        weights = torch.cat([value for name, value in found.items() if "hadamard_weight" in name])
        assert (weights - 1).abs().max() > 1e-2  # it was trained


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_mixed_batch_gives_each_task_its_own_adapter_and_head(kind, read):
    tasks = read(("cola", "stsb", "mnli"), kind)
    model = joint.build(tasks).eval()
    scatter(model)
    features = [task.workload.train[0] for task in tasks]
    inputs = tasks[0].workload.tokenizer.pad(
        [{key: value for key, value in each.items() if key != "labels"} for each in features], return_tensors="pt"
    )
    order = [2, 0, 1]
    mixed = {name: tensor[order] for name, tensor in inputs.items()}
    logits = model(**mixed, adapter_names=[tasks[number].name for number in order]).logits

    assert logits.shape == (3, 3)
    for row, number in enumerate(order):
        own = joint.OfTask(model, tasks[number])(**{name: tensor[[number]] for name, tensor in inputs.items()}).logits
        assert own.shape == (1, tasks[number].outputs)
        torch.testing.assert_close(logits[row, : tasks[number].outputs], own[0])
        assert not logits[row, tasks[number].outputs :].any()


def test_a_step_in_parts_has_the_same_losses(read):
    tasks = read(("cola", "stsb", "mnli"))
    model = joint.build(tasks)
    scatter(model)
    examples = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    whole = joint.losses(model, tasks, examples, torch.device("cpu"))
    for at_once in (1, 2, 4, 100):
        torch.testing.assert_close(joint.losses(model, tasks, examples, torch.device("cpu"), at_once), whole)


@pytest.mark.parametrize("arm", ["none", "weight", "both"])
def test_what_is_shared_is_one_parameter_with_the_sum_of_the_gradients(arm, read):
    tasks = read()
    names = [task.name for task in tasks]
    separate = joint.build(tasks)
    model = joint.build(tasks)
    joint.share(model, names, arm)
    for each in (separate, model):
        joint.train_only(each, adapters=True, heads=False)
        torch.stack(list(joint.losses(each, tasks, [(0, 1, 2), (3, 4)], torch.device("cpu")).values())).sum().backward()

    def layers(of):
        return [layer for layer in of.modules() if isinstance(layer, hadamard_adapter.HadamardLinear)]

    assert len(layers(model)) == 2
    for own, layer in zip(layers(separate), layers(model), strict=True):
        for container in ("hadamard_weight", "hadamard_bias"):
            gradients = [getattr(own, container)[name].grad for name in names]
            assert all(gradient.abs().max() > 0 for gradient in gradients)
            values = getattr(layer, container)
            if container in joint.SHARED[arm]:
                assert values[names[0]] is values[names[1]]
                torch.testing.assert_close(values[names[0]].grad, sum(gradients))
            else:
                assert values[names[0]] is not values[names[1]]
                for name, gradient in zip(names, gradients, strict=True):
                    torch.testing.assert_close(values[name].grad, gradient)

    size, layer_count = 16, 2
    vectors = {"none": 4, "weight": 3, "both": 2}[arm]  # W and b of two tasks
    counts = count_parameters(model)
    assert (counts.adapter, counts.norm) == (vectors * size * layer_count, 2 * 2 * size * layer_count)
    joint.train_only(model, adapters=True, heads=True)
    pooler = (size + 1) * size  # which the checkpoint lacks, so that it belongs to the head
    assert count_parameters(model).head == sum(pooler + (size + 1) * task.outputs for task in tasks)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_saved_adapters_are_ordinary_ones_of_peft(kind, read, without_dropout, tmp_path):
    tasks = read(("cola", "stsb"), kind)
    model = joint.build(tasks)
    joint.share(model, ["cola", "stsb"], "both")
    scatter(model)
    for task in tasks:
        joint.save(model, task.name, tmp_path / "saved")
        base = AutoModelForSequenceClassification.from_pretrained(task.base.folder, num_labels=task.outputs)
        plain = PeftModel.from_pretrained(base, str(tmp_path / "saved" / task.name)).eval()
        features = task.workload.measured["held_out"]
        batch = task.loaded.collate(task.workload.tokenizer, features)
        batch.pop("labels")
        expected = joint.OfTask(model.eval(), task)(**batch).logits
        assert expected.std(dim=0).min() > 1e-3  # examples differ
        torch.testing.assert_close(plain(**batch).logits, expected)


def test_the_command_trains_scores_and_goes_on(small, run, tmp_path, monkeypatch):
    flags = [*small(), "--micro-batch-size", "3"]
    code, out, err = run(*flags, "--share", "none", "both", "--seeds", "0", "1")
    assert code == 0, err
    assert "2 seeds (0 1), validation split" in out
    assert "selected together: one step for all tasks" in out
    summary = json.loads((tmp_path / "out" / "shared.json").read_text())
    assert summary["parameters"]["none"]["adapter"] == 2 * summary["parameters"]["both"]["adapter"]
    assert summary["parameters"]["none"]["norm"] == summary["parameters"]["both"]["norm"]
    for table in summary["differences"].values():
        assert list(table) == ["both - none"]
    rows = list(csv.DictReader((tmp_path / "out" / "shared.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 2  # arms, seeds, selections, tasks
    assert {row["split"] for row in rows} == {"validation"}
    assert "<html>" in (tmp_path / "out" / "shared.html").read_text()[:200]

    cola, stsb = (adapter_file(tmp_path, "both", task) for task in TASKS)
    vectors = [name for name in cola if "hadamard_weight" in name or "hadamard_bias" in name]
    assert len(vectors) == 4
    assert all(torch.equal(cola[name], stsb[name]) for name in vectors)
    norms = [name for name in cola if "hadamard_norm" in name]
    assert norms
    assert not any(torch.equal(cola[name], stsb[name]) for name in norms)
    assert cola.keys() == stsb.keys()
    own = [adapter_file(tmp_path, "none", task) for task in TASKS]
    assert not any(torch.equal(own[0][name], own[1][name]) for name in vectors)

    # Another arm is trained beside those that are there; with all of them there, nothing is.
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/seed*/**/*.safetensors")}
    assert run(*flags)[0] == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    shared_weight = [adapter_file(tmp_path, "weight", task) for task in TASKS]
    for name in vectors:
        assert torch.equal(shared_weight[0][name], shared_weight[1][name]) == ("hadamard_weight" in name)
    monkeypatch.setattr(shared, "train", lambda *arguments: pytest.fail("trained again"))
    again = run(*flags)
    assert again[0] == 0
    assert "weight - none" in again[1]
    assert again[2].count("finished before") == 3

    code, out, err = run(*flags, "--learning-rate", "0.5")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --output-dir")
    assert "--learning-rate 0.01, and here it is 0.5" in err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tasks", "cola"], "--tasks cola is one task"),
        (["--tasks", "cola", "cola"], "--tasks names cola more than once"),
        (["--tasks", "cola", "stbs"], "--tasks stbs: there is no task of GLUE of that name, did you mean stsb?"),
        (["--tasks", "cola", "e2e"], "--tasks e2e: there is no task of GLUE of that name"),
        (["--batch-size", "100"], "--batch-size is 100 and cola has 18 training examples"),
        (["--micro-batch-size", "0"], "--micro-batch-size is 0: it must be at least 1"),
        (["--held-out", "0"], "--held-out is 0.0: it must be above 0 and below 1"),
        (["--seeds", "-1"], "--seeds is -1: it must be between 0 and"),
        (["--learning-rate", "nan"], "--learning-rate is nan: it must be above 0"),
        (["--learning-rate", "1e30"], "is not finite at step"),
        (["--model", "/nowhere"], "--model /nowhere"),
    ],
)
def test_bad_input_is_one_sentence(more, says, small, run):
    code, out, err = run(*small(), *more)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in err


def test_a_directory_of_something_else_is_left_alone(small, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    code, out, err = run(*small())
    assert (code, out) == (2, "")
    assert "holds files and no settings.json of this command" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["thesis.tex"]


def test_results_of_other_data_are_not_taken(small, run, glue_folder, tmp_path):
    flags = [*small(), "--share", "both"]
    assert run(*flags)[0] == 0
    glue_folder("cola", train=28)
    code, _, err = run(*flags)
    assert code == 2
    assert "the sha256 of the training data of cola is not the same now" in err


def test_selection_takes_the_earlier_of_equals_and_nothing_undefined(read):
    def entry(step, cola, stsb):
        return {"step": step, "cola": {"matthews_correlation": cola}, "stsb": {"pearson": stsb}}

    measurements = [entry(5, 0.1, 0.9), entry(10, 0.4, 0.5), entry(15, 0.4, 0.7), entry(20, 0.9, None)]
    chosen = joint_training.select(measurements, read())

    assert chosen["together"] == {"cola": {"step": 15, "value": 0.4}, "stsb": {"step": 15, "value": 0.7}}
    assert chosen["each"] == {"cola": {"step": 20, "value": 0.9}, "stsb": {"step": 5, "value": 0.9}}
    chosen = joint_training.select([*measurements[:1], entry(6, 0.1, 0.9)], read())
    assert {each["step"] for found in chosen.values() for each in found.values()} == {5}


def test_differences_are_of_the_same_seeds():
    def rows(cola, stsb):
        return [
            {"selection": "each", "task": task, "value": value} for task, value in zip(TASKS, (cola, stsb), strict=True)
        ]

    settings = {"tasks": list(TASKS), "seeds": [3, 4]}
    none = joint_report.scores_of({4: {"rows": rows(0.5, 0.7)}, 3: {"rows": rows(0.1, 0.3)}}, "each", settings)
    both = joint_report.scores_of({3: {"rows": rows(0.2, None)}, 4: {"rows": rows(0.8, 0.9)}}, "each", settings)
    assert none[joint_report.MEAN] == pytest.approx([0.2, 0.6])

    found = joint_report.differences({"none": none, "both": both})["both - none"]
    assert found["cola"]["values"] == pytest.approx([0.1, 0.3])
    assert found["cola"]["mean"] == pytest.approx(0.2)
    assert found["cola"]["std"] == pytest.approx(0.02**0.5)
    assert found["stsb"]["values"] == [None, pytest.approx(0.2)]
    assert found["stsb"]["mean"] is found[joint_report.MEAN]["std"] is None
    assert joint_report.cell(found["stsb"]) == "-"
    assert joint_report.cell(found["cola"], "+.4f") == "+0.2000 ± 0.1414"
