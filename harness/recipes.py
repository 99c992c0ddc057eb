"""Reads recipe files and merges them: dataclass defaults, the recipe, its parts for one task and for one method.

A recipe is ``PRESET.toml`` in the task's ``recipes`` folder, or any file that ``--recipe`` names. Its top holds the
settings that all methods share; a table ``[methods.NAME]`` holds what differs for one method and may have the same
keys, and ``[methods.NAME.method]`` besides::

    description = "what this preset is, and what it is not"
    model = "smollm2-135m"
    score = ["last"]
    [train]
    max_steps = 60
    [task]
    beams = 4
    [methods.hut.train]
    learning_rate = 1e-2
    [methods.hut.method]
    r = 8
    [methods.hadamard.stage1]
    epochs = 1
    [tasks.mnli.train]
    epochs = 3

A stage's table is there for each stage of the method but the last, whose settings are those of ``train``; a task's part
is for recipes that several tasks share, and comes before the method's. ``methods_from = "FILE"`` takes the settings of
methods that the recipe does not name from the ``[methods]`` of a file beside it. A method that neither names takes the
common part. Steps and epochs say one thing in two ways, so a part that sets the one switches off the other.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from harness import registry
from harness.config import RunConfig, stage_settings
from harness.errors import UserError, one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

# what a recipe may set at its top or below [methods.NAME], and the field of RunConfig that it means
SHARED = {
    **{name: name for name in ("description", "model", "seed", "score", "split", "eval_batch_size", "train", "data")},
    **{name: name for name in ("init_from", "new_head")},
    "task": "task_settings",
}
FOR_ONE_METHOD = {**SHARED, "method": "method_settings"}


def read_toml(path: Path) -> dict[str, Any]:
    """Returns a TOML file's tables.

    Raises:
        UserError: the file is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {one_line(error)}") from error


def build(method: str, task: str, preset: str) -> RunConfig:
    """Returns the configuration of a preset for one method, before the command line.

    Raises:
        UserError: an unknown method, task or preset, or a recipe with a key or value that does not exist.
    """
    method_class, task_class = registry.load("method", method), registry.load("task", task)
    known = registry.presets(task_class)
    if preset not in known:
        raise UserError(
            f"--preset {preset}: task {task} has no preset of that name{registry.closest(preset, known)} "
            f"(known: {', '.join(known) or 'none'})"
        )
    config = bare(method, method_class, task, task_class, preset)
    return _with_recipe(config, read_toml(known[preset]), str(known[preset]))


def build_from_file(method: str, task: str, path: Path) -> RunConfig:
    """Returns the configuration of a recipe file for one method, before the command line.

    The file's name without ``.toml`` stands in the configuration as that of a preset would. A file that names methods
    is for these: unlike a preset, made for a comparison, it says nothing about the others.

    Raises:
        UserError: an unknown method or task; a file that cannot be read or is for other methods; or a key or value in
            it that does not exist.
    """
    method_class, task_class = registry.load("method", method), registry.load("task", task)
    if not str(path).isprintable():
        raise UserError(f"--recipe {str(path)!r} has characters that cannot be printed: rename the file")
    try:
        recipe = read_toml(path)
    except OSError as error:
        raise UserError(f"--recipe {path} cannot be read: {error.strerror}") from error
    named = recipe.get("methods", {})
    if named and isinstance(named, Mapping) and method not in named and "methods_from" not in recipe:
        raise UserError(
            f"--recipe {path} has settings for --method {' and '.join(named)}, and none for {method}: give the method "
            "that it is for, or another recipe"
        )
    return _with_recipe(bare(method, method_class, task, task_class, path.stem), recipe, str(path))


def _with_recipe(config: RunConfig, recipe: Mapping[str, Any], file: str) -> RunConfig:
    """Returns a configuration with a recipe laid over it: the common part, then those of its task and its method."""
    common = {key: value for key, value in recipe.items() if key not in ("tasks", "methods", "methods_from")}
    config = merge_part(config, common, SHARED, file, "")
    for kind, own, allowed in (("tasks", config.task, SHARED), ("methods", config.method, FOR_ONE_METHOD)):
        parts = recipe.get(kind, {})
        if not isinstance(parts, Mapping):
            raise UserError(f"{file}: {kind} must be a table")
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise UserError(f"{file}: {kind}.{name} must be a table")
            if name == own:
                config = merge_part(config, part, allowed, file, f"{kind}.{name}.")
                if allowed is FOR_ONE_METHOD:
                    config = merge_stages(config, part, file, f"{kind}.{name}.")
    if "methods_from" in recipe and config.method not in recipe.get("methods", {}):
        other = Path(file).parent / str(recipe["methods_from"])
        if not other.is_file():
            raise UserError(f"{file}: methods_from is {recipe['methods_from']!r}: there is no such file beside it")
        config = _with_recipe(config, {"methods": read_toml(other).get("methods", {})}, str(other))
    return config


def bare(method: str, method_class: type[Any], task: str, task_class: type[Any], preset: str) -> RunConfig:
    """Returns the configuration of all defaults."""
    config = RunConfig(method, task, method_class(), task_class(), preset=preset)
    stages = stage_settings(method_class)
    return config if stages is None else replace(config, stages=stages())


def merge_part(
    config: RunConfig, part: Mapping[str, Any], allowed: Mapping[str, str], file: str, where: str
) -> RunConfig:
    """Returns ``config`` with one part of a recipe laid over it."""
    stages = {entry.name for entry in fields(config.stages)} if allowed is FOR_ONE_METHOD else set()
    for key in part:
        if key not in allowed and key not in stages:
            raise UserError(f"{file}: unknown key {where}{key}{registry.closest(key, {*allowed, *stages})}")
    train = part.get("train")
    given = set(train) if isinstance(train, Mapping) else set()
    if {"epochs", "max_steps"} <= given:
        raise UserError(f"{file}: {where}train has both epochs and max_steps: keep the one that is meant")
    if "epochs" in given:
        config = replace(config, train=replace(config.train, max_steps=None))
    return overlay(config, {allowed[key]: value for key, value in part.items() if key in allowed}, file, where)


def merge_stages(config: RunConfig, part: Mapping[str, Any], file: str, where: str) -> RunConfig:
    """Returns ``config`` with the tables of a method's stages laid over it."""
    names = {entry.name for entry in fields(config.stages)}
    tables = {name: table for name, table in part.items() if name in names}
    return replace(config, stages=overlay(config.stages, tables, file, where))


def overlay(instance: T, table: Mapping[str, Any], file: str, where: str) -> T:
    """Returns a dataclass instance with the values of a TOML table in place of its own.

    Raises:
        UserError: a key that is no field, or a value of the wrong type, with file and key.
    """
    names = {entry.name for entry in fields(instance)}
    hints = typing.get_type_hints(type(instance))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise UserError(f"{file}: unknown key {where}{key}{registry.closest(key, names)}")
        current = getattr(instance, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UserError(f"{file}: {where}{key} must be a table")
            changes[key] = overlay(current, value, file, f"{where}{key.removesuffix('_settings')}.")
            continue
        try:
            changes[key] = convert(value, hints[key])
        except TypeError as error:
            raise UserError(f"{file}: {where}{key} is {value!r}: it must be {error}") from error
    try:
        return replace(instance, **changes)
    except ValueError as error:
        raise UserError(f"{file}: {where.rstrip('.') or 'top'}: {one_line(error)}") from error


def from_tree(method: str, task: str, tree: Mapping[str, Any], file: str) -> RunConfig:
    """Returns the configuration that a run directory's ``config.toml`` holds; a field it lacks was None.

    Raises:
        UserError: the file holds a key or value that does not exist.
    """
    config = bare(method, registry.load("method", method), task, registry.load("task", task), RunConfig.preset)
    return overlay(_without_optional(config), tree, file, "")


def _without_optional(instance: Any) -> Any:
    hints = typing.get_type_hints(type(instance))
    changes: dict[str, Any] = {}
    for entry in fields(instance):
        value = getattr(instance, entry.name)
        if is_dataclass(value):
            changes[entry.name] = _without_optional(value)
        elif types.NoneType in typing.get_args(hints[entry.name]):
            changes[entry.name] = None
    return replace(instance, **changes)


def convert(value: Any, hint: Any) -> Any:
    """Returns a TOML value as the type that a field is annotated with.

    Raises:
        TypeError: it cannot be; the message says what would be right.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value == "None" and types.NoneType in arguments:
            return None
        for choice in arguments:
            try:
                return convert(value, choice)
            except TypeError:
                continue
        raise TypeError(describe(hint))
    if hint is types.NoneType and value == "None":
        return None
    if origin is Literal and value in arguments and isinstance(value, tuple(type(item) for item in arguments)):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin in (tuple, list) and isinstance(value, list):
        return origin(convert(item, arguments[0]) for item in value)
    if hint is Any or (hint is bool and isinstance(value, bool)):
        return value
    if hint in (int, str) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise TypeError(describe(hint))


def describe(hint: Any) -> str:
    """Returns an annotation in words: ``a whole number or None``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(choice) for choice in arguments)
    if origin is Literal:
        return " or ".join(str(item) for item in arguments)
    if origin in (tuple, list):
        return f"a list of: {describe(arguments[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        Path: "a path",
        types.NoneType: "None",
    }
    return words.get(hint, str(hint))
