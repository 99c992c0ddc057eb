"""Which runs compare: what the runs on one board have in common, and those in one of its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]

NOT_OF_THE_DATA = frozenset({"train_subset", "origin", "warnings", "cut_to_max_length"})
"""Facts of the data that differ between runs that compare: the seed that drew them, the folder on that machine, and how
many texts were cut, which follows from the draw and from the settings."""

NOT_OF_THE_ROW = frozenset(
    {
        *("seed", "output_dir", "description", "preset", "eval_batch_size"),  # which change no setting of the training
        *("allow_pickle", "trust_remote_code"),  # which permit, and change nothing
        *("model", "task", "task_settings", "split"),  # which the board has; a model's name may be a path
    }
)


def board_key(result: Result) -> str:
    """Returns what makes runs comparable, whatever the method, as a text.

    Task and version, base weights, start, data, how the task is set, split and number of examples. Steps and batch
    size are no part of it: they are told in each row.
    """
    task, model = result["task"], result["model"]
    return as_key(
        [
            *(task["name"], task["version"], model["sha256"], result["init_from"], shared_data(result)),
            *(result["config"].get("task_settings", {}), *scored_on(result)),
        ]
    )


def shared_data(result: Result) -> dict[str, Any]:
    """Returns the facts of the data that runs that compare have in common."""
    return {name: value for name, value in result["data"].items() if name not in NOT_OF_THE_DATA}


def scored_on(result: Result) -> tuple[str, int]:
    """Returns split and number of examples, which all evaluations of a result share."""
    entry = next(iter(result["evaluations"].values()))
    return entry["split"], entry["examples"]


def row_settings(result: Result) -> dict[str, Any]:
    """Returns the configuration that the runs of a row share, as a tree."""
    config = {name: value for name, value in result["config"].items() if name not in NOT_OF_THE_ROW}
    config["method"] = result["method"]["name"]
    config["data"] = {name: value for name, value in config.get("data", {}).items() if name != "dir"}
    config["train"] = {name: value for name, value in config["train"].items() if name != "save_every"}
    return config


def row_key(result: Result) -> str:
    """Returns the configuration that the runs of a row share, as a text."""
    return as_key(row_settings(result))


def numbers(result: Result) -> str:
    """Returns what two runs of one configuration and seed have in common if they came to the same."""
    scores = {which: entry["metrics"] for which, entry in result["evaluations"].items()}
    return as_key([result["parameters"], result["train"]["steps"], scores])


def as_key(tree: Any) -> str:
    """Returns JSON that is the same for trees that are."""
    return json.dumps(tree, sort_keys=True)
