"""The command line of ``python -m harness.run``: names first, then tyro with the settings that those names have.

The flags depend on the method and the task, so :func:`parse` first looks for these two names, the preset and the run
directory; it then builds the defaults from the recipe and lets tyro lay the flags over them. tyro answers a bad flag
with a box of many lines; here every flag that tyro refuses is found by giving it to tyro alone, and told in a sentence.
"""

from __future__ import annotations

import contextlib
import io
import re
import traceback
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from harness import recipes, registry
from harness.config import RunConfig, StageConfig
from harness.errors import UserError, one_line
from harness.rundir import read_config

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class CommandLine:
    """Trains a method on a task, scores what was trained as read back from disk, and prints the result.

    Method and task bring settings of their own: `--method NAME --task NAME --help` shows them; `--list`
    shows the names.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...] = ()
    """Run once for each of these seeds, one after another, each in a directory of its own, and print mean, standard
    deviation, median and range; with --resume, seeds that are finished are kept and the others are run."""
    resume: Switch = False
    """Go on with the run in the run directory; the result is the one that the uninterrupted run would have had."""
    overwrite: Switch = False
    """Delete the run directory first if it exists."""
    json: Switch = False
    """Print the result as one line of JSON on stdout, and nothing else there."""
    list: Switch = False
    """List methods, tasks and presets, and stop."""
    debug: Switch = False
    """Keep tracebacks and the libraries' warnings."""


@dataclass(frozen=True)
class NoSettings:
    """Settings appear here once the command line names a method and a task."""


def parse(argv: Sequence[str]) -> CommandLine:
    """Returns the command line over the recipe over the defaults. ``--help`` prints and exits.

    Raises:
        UserError: an unknown name or flag, or a value that a flag does not take.
    """
    defaults = _defaults(argv)
    if any(token in ("-h", "--help") for token in argv):
        return tyro.cli(CommandLine, prog="python -m harness.run", default=defaults, args=["--help"])
    if defaults.list:
        return defaults
    groups = _groups(argv)
    flags = _flags(defaults)
    for group in groups:
        flag = _flag(group[0])
        if flag not in flags:
            if match := re.match(r"--(stage\w*)\.", flag):
                raise UserError(_no_such_stage(flag, match[1], defaults.config))
            near = registry.closest(flag, flags)
            raise UserError(f"unknown {'flag' if flag.startswith('-') else 'argument'} {group[0]}{near} (see --help)")
    given = {_flag(group[0]) for group in groups}
    if {"--seed", "--seeds"} <= given:
        raise UserError("--seed and --seeds both say with which seeds to run: give one of them")
    if "--train.epochs" in given and _value(argv, "--train.max-steps") not in (None, "None"):
        raise UserError("--train.epochs and --train.max-steps both say when to stop: give one of them")
    if "--train.epochs" in given:
        config = replace(defaults.config, train=replace(defaults.config.train, max_steps=None))
        defaults = replace(defaults, config=config)
    defaults = _without_the_recipes_end(defaults, given)
    command = _tyro(list(argv), defaults)
    if isinstance(command, CommandLine):
        _check_seeds(command.seeds, given)
        return command
    for group in groups:
        failure = _tyro(group, defaults)
        if not isinstance(failure, CommandLine):
            hint = flags[_flag(group[0])]
            reason = failure or f"it takes {'no value' if hint is bool else recipes.describe(hint)}"
            values = " ".join(group).partition("=")[2] if "=" in group[0] else " ".join(group[1:])
            if reason.startswith(f"{_flag(group[0])} "):
                raise UserError(reason)
            raise UserError(f"{_flag(group[0])} {values or 'without a value'}: {reason}")
    raise UserError(f"these flags do not go together: {command or 'see --help'}")


def _without_the_recipes_end(defaults: CommandLine, given: Collection[str]) -> CommandLine:
    """Returns the defaults without what they say of a stage's end where the command line says it the other way."""
    stages = defaults.config.stages
    for entry in fields(stages):
        for flag, other in (("epochs", "max_steps"), ("max-steps", "epochs")):
            if f"--{entry.name}.{flag}" in given and f"--{entry.name}.{other.replace('_', '-')}" not in given:
                stages = replace(stages, **{entry.name: replace(getattr(stages, entry.name), **{other: None})})
    return replace(defaults, config=replace(defaults.config, stages=stages))


def _no_such_stage(flag: str, stage: str, config: RunConfig) -> str:
    """Returns why a flag of a stage is refused."""
    stages = getattr(config.method_settings, "stages", ())
    if not stages:
        return f"{flag}: --method {config.method} is not trained in stages: its settings are the --train.* flags"
    if stage == stages[-1].name:
        return f"{flag}: the settings of the last stage are the --train.* flags"
    earlier = [entry.name for entry in fields(config.stages)]
    if stage in earlier:
        known = ", ".join(entry.name.replace("_", "-") for entry in fields(StageConfig))
        return f"{flag}: a stage has no such setting (known: {known})"
    return (
        f"{flag}: --method {config.method} has no such stage (known: {', '.join(earlier)}; --train.* is the last one)"
    )


def _check_seeds(seeds: Sequence[int], given: Collection[str]) -> None:
    """Refuses a list of seeds that names none, or one of them twice."""
    if "--seeds" in given and not seeds:
        raise UserError("--seeds without a value: it takes one seed or several")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UserError(f"--seeds names {twice[0]} twice: give each seed once")


def _defaults(argv: Sequence[str]) -> CommandLine:
    """Returns what holds where the command line is silent."""
    placeholder = RunConfig("", "", NoSettings(), NoSettings())
    if "--list" in argv:
        return CommandLine(placeholder, list=True)
    method, task, preset = (_value(argv, flag) for flag in ("--method", "--task", "--preset"))
    directory = _value(argv, "--output-dir")
    if "--resume" in argv and directory and not method and not task:
        path = Path(directory)
        stored = read_config(path)
        names = str(stored.pop("method")), str(stored.pop("task"))
        return CommandLine(recipes.from_tree(*names, stored, str(path / "config.toml")))
    if ("--help" in argv or "-h" in argv) and not (method and task):
        return CommandLine(placeholder)
    for kind, name in (("method", method), ("task", task)):
        if not name:
            known = ", ".join(registry.entries(kind))
            raise UserError(f"--{kind} is missing: choose one of {known or 'none, since none is installed'}")
    return CommandLine(recipes.build(method, task, preset or RunConfig.preset))


def _flag(token: str) -> str:
    """Returns the flag of ``--flag=value``, hyphens for underscores."""
    return token.partition("=")[0].replace("_", "-") if token.startswith("-") else token


def _value(argv: Sequence[str], flag: str) -> str | None:
    """Returns the last value of a flag, None where it has none."""
    found = None
    for group in _groups(argv):
        if _flag(group[0]) == flag:
            found = group[0].partition("=")[2] if "=" in group[0] else " ".join(group[1:])
    return found


def _groups(argv: Sequence[str]) -> list[list[str]]:
    """Returns each flag with its values; what stands before the first flag is a group of its own."""
    groups: list[list[str]] = []
    for token in argv:
        if token.startswith("--") or token == "-h" or not groups:
            groups.append([token])
        else:
            groups[-1].append(token)
    return groups


def _flags(instance: Any, prefix: str = "--") -> dict[str, Any]:
    """Returns every flag of a dataclass tree with its annotation."""
    flags: dict[str, Any] = {}
    hints = typing.get_type_hints(type(instance), include_extras=True)
    for entry in fields(instance):
        value, hint = getattr(instance, entry.name), hints[entry.name]
        name = entry.name.removesuffix("_settings").replace("_", "-")
        markers = getattr(hint, "__metadata__", ())
        if is_dataclass(value):
            flags.update(_flags(value, prefix if entry.name in ("config", "stages") else f"{prefix}{name}."))
        elif tyro.conf.Suppress not in markers:
            plain = hint.__origin__ if markers else hint
            flags[prefix + name] = plain
            if plain is bool and tyro.conf.FlagCreatePairsOff not in markers:
                flags[f"{prefix}no-{name}"] = plain
    return flags


def _tyro(args: list[str], defaults: CommandLine) -> CommandLine | str:
    """Returns what tyro makes of the arguments, or why it refuses them, if a settings class says so itself."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(CommandLine, default=defaults, args=args, console_outputs=False)
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None:
            frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(cause.__traceback__)]
            if isinstance(cause, ValueError) and "__post_init__" in frames:
                return one_line(cause)
            cause = cause.__context__
        return ""
