"""Tables of sweeps: what they show, and that sweeps with unequal budgets do not stand in one."""

import json

import pytest

from benchmarks import tables
from harness.errors import UserError


def sweep(method, values, **changes):
    """What ``sweep.json`` holds of a sweep whose trials had these values; None for one that diverged."""
    rows = [
        {
            "slot": slot,
            "state": "diverged" if value is None else "complete",
            "values": None if value is None else [value],
            "params": {"train.learning_rate": 10.0 ** -(slot + 1), "method.r": 2},
            "steps": 7 if value is None else 30,
        }
        for slot, value in enumerate(values)
    ]
    metrics = {"loss": {"mean": 0.5, "std": 0.1}, "accuracy": {"mean": 0.625, "std": 0.0125}}
    found = {
        "study": f"toy-{method}",
        "identity": {
            **{"method": method, "task": "toy", "task_version": 1, "model": "tiny", "seed": 0, "sampler": "tpe"},
            **{"sampler_seed": 0, "pruner": "none", "train": {"batch_size": 4, "epochs": 3.0}, "data": {}},
            "task_settings": {"held_out": 0.1},
            "space": {"train.learning_rate": "0.001 to 0.1, log-uniform", "method.r": "2"},
        },
        "objectives": [{"name": "held-out accuracy", "direction": "maximize"}],
        "trials": {"pruned": 0, "diverged": sum(value is None for value in values), "failed": 0},
        "rows": rows,
        "best": max((slot for slot, value in enumerate(values) if value is not None), key=lambda slot: values[slot]),
        "without_influence": [
            {"parameter": "method.r", "groups": 0, "trials": 0, "values": [], "training_loss": None, "metrics": {}},
            {
                **{"parameter": "train.learning_rate", "groups": 1, "trials": 2, "values": [0.1, 0.01]},
                **{"training_loss": 0.25, "metrics": {"accuracy": 0.125}},
            },
        ],
        "finals": {"seeds": [0, 1, 2], "summary": {"held_out": {"metrics": metrics}}},
    }
    for name, value in changes.items():
        found["identity"][name] = value
    return found


def write(folder, *sweeps):
    for found in sweeps:
        (folder / f"{found['identity']['method']}.json").write_text(json.dumps(found))
    return folder


def test_show_the_best_and_all_trials(tmp_path):
    shown = tables.tables(write(tmp_path, sweep("hut", [0.25, None, 0.75]), sweep("lora", [0.5, 0.25, 0.125])))
    lines = shown.splitlines()
    assert lines[0].startswith(
        "| method | searched | trials | steps of a trial | best settings | its held-out accuracy"
    )
    assert lines[2] == (
        "| hut | train.learning_rate 0.001 to 0.1, log-uniform | 3 (0 pruned, 1 diverged, 0 failed) | 30 | "
        "learning_rate 0.001, r 2 | 0.7500 | 0.6250 ± 0.0125, seeds 0 1 2 |"
    )
    assert lines[3].startswith("| lora |")
    assert lines[7] == (
        "| hut | 0.7500 (learning_rate 0.001, r 2); 0.2500 (learning_rate 0.1, r 2); "
        "diverged (learning_rate 0.01, r 2) |"
    )
    assert lines[-1] == (
        "* lora: 2 trials that differ in train.learning_rate alone (0.1, 0.01): training loss curves differ by at most "
        "0.25, held-out accuracy by 0.12."
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampler": "random"}, "hut.json and lora.json cannot stand in one table: the sampler is tpe .* random"),
        ({"train": {"batch_size": 8}}, "the train.batch_size is 4 in one and 8 in the other"),
        ({"data": {"train_limit": 100}}, "the data.train_limit is None in one and 100 in the other"),
        ({"task_settings": {"held_out": 0.2}}, "the task_settings.held_out is 0.1 in one and 0.2 in the other"),
    ],
)
def test_refuse_other_conditions(changes, says, tmp_path):
    write(tmp_path, sweep("hut", [0.5, 0.25]), sweep("lora", [0.5, 0.25], **changes))
    with pytest.raises(UserError, match=says):
        tables.tables(tmp_path)


def test_refuse_unequal_budgets(tmp_path):
    write(tmp_path, sweep("hut", [0.5, 0.25]), sweep("lora", [0.5]))
    with pytest.raises(UserError, match="the number of trials is 2 in one and 1 in the other"):
        tables.tables(tmp_path)
    other = sweep("lora", [0.5, 0.25])
    other["rows"][0]["steps"] = 60
    write(tmp_path, other)
    with pytest.raises(UserError, match="the steps of a trial is 30 in one and 60 in the other"):
        tables.tables(tmp_path)
