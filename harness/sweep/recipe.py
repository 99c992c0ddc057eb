"""A configuration as a recipe file, so that the best trial of a sweep can be trained again by one short command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import tomli_w

from harness import recipes
from harness.config import RunConfig, to_tree

COMMON = ("model", "score", "split", "eval_batch_size", "init_from", "new_head")
USERS = ("allow_pickle", "trust_remote_code")
"""What a file must not switch on, because files of others may then run programs here."""


def text(config: RunConfig, comment: Sequence[str], description: str = "") -> str:
    """Returns the TOML text of a recipe that configures a run of the same method and task just so.

    It holds what differs from the defaults, but for what is the user's to say: seed, run directory and data folder, and
    the switches that let files of others run programs, which a comment names. Data and task are in its common part,
    everything of the method and its training in that of the method.

    Args:
        comment: lines that stand at the top.
        description: what a run with the recipe says first; the configuration's own is of the preset it came from.
    """
    classes = type(config.method_settings), type(config.task_settings)
    default = recipes.bare(config.method, classes[0], config.task, classes[1], config.preset)
    changes = _changes(config, default)
    train = changes.get("train", {})
    data = {name: value for name, value in changes.get("data", {}).items() if name != "dir"}
    # One part of a recipe cannot have both; epochs of the common part stay, and do not count beside the other's steps.
    epochs = {"epochs": train.pop("epochs")} if {"epochs", "max_steps"} <= train.keys() else {}
    common = {name: changes[name] for name in COMMON if name in changes}
    common |= _filled({"data": data, "task": changes.get("task_settings", {}), "train": epochs})
    own = {"train": train, "method": changes.get("method_settings", {}), **changes.get("stages", {})}
    recipe = {"description": description} if description else {}
    recipe |= {**common, "methods": {config.method: _filled(own)}}
    switches = " and ".join(f"--{name.replace('_', '-')}" for name in USERS if getattr(config, name))
    lines = [*comment, *([f"Besides it needs {switches}, which a recipe cannot give."] if switches else [])]
    top = "".join(f"{_comment(line)}\n" for each in lines for line in each.splitlines() or [""])
    return (f"{top}\n" if top else "") + tomli_w.dumps(recipe)


def _changes(instance: Any, default: Any) -> dict[str, Any]:
    """Returns what differs from the default as values of TOML."""
    changes: dict[str, Any] = {}
    for entry in fields(instance):
        value, usual = getattr(instance, entry.name), getattr(default, entry.name)
        if is_dataclass(value):
            changes |= _filled({entry.name: _changes(value, usual)})
        elif value != usual:
            changes[entry.name] = "None" if value is None else to_tree(value)
    return changes


def _filled(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: table for name, table in tables.items() if table}


def _comment(line: str) -> str:
    return f"# {''.join(letter if letter.isprintable() else ' ' for letter in line)}".rstrip()
