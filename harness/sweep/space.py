"""The search space of a sweep: what the method declares, as the flags ``--space.NAME VALUES...`` change it.

A parameter's name is the dotted key of a setting, ``train.learning_rate`` for ``--train.learning-rate``; in a flag it
may be short (``--space.learning-rate``, ``--space.r``). What a flag's values mean is told by the setting's type: two
numbers are a range where the setting is a number with a fraction, logarithmic for learning rates and where the method
declares it so; otherwise values are a list to choose from, and one value fixes the setting. A value of a setting that
is a list itself is joined by commas: ``--space.method.roles query,value query``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hadamard_core.search_space import DEFAULT, Choices, Domain, LogUniform
from harness import cli, registry
from harness.base import CAUSAL_LM
from harness.config import RunConfig, validate
from harness.errors import UserError, one_line
from harness.sweep.domains import encode, fits, read, words

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

FIELDS = {"train": ("train",), "method": ("method_settings",), "task": ("task_settings",)}
"""The first part of a dotted key, and where in RunConfig it is; others are stages."""

SEED = "seed"
"""Nothing that a sweep searches; trials may differ in it where what they come to is averaged over it."""

COMMON = ("data.", "task.held_out", "train.eval_every")
"""How keys start whose value all trials share, like those of no section: it decides what is measured, and when."""


@dataclass(frozen=True)
class Space:
    """What a sweep searches.

    Attributes:
        parameters: dotted key -> where its values lie; one with a single choice is fixed.
    """

    parameters: Mapping[str, Domain]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Returns a value for each parameter, as the study's sampler draws it."""
        drawn = {}
        for key, domain in self.parameters.items():
            if isinstance(domain, Choices):
                drawn[key] = trial.suggest_categorical(key, [encode(value) for value in domain.values])
            else:
                drawn[key] = trial.suggest_float(key, domain.low, domain.high, log=isinstance(domain, LogUniform))
        return self.from_params(drawn)

    def grid(self) -> list[dict[str, Any]]:
        """Returns every combination of values, the last parameter's changing fastest.

        Raises:
            UserError: a parameter is a range.
        """
        for key, domain in self.parameters.items():
            if not isinstance(domain, Choices):
                log = isinstance(domain, LogUniform)
                middle = math.sqrt(domain.low * domain.high) if log else (domain.low + domain.high) / 2
                raise UserError(
                    f"a grid needs a list of values for each parameter, and {key} is a range, {words(domain)}: list "
                    f"three or more, such as {flag_of(key)} {domain.low:g} {middle:.1g} {domain.high:g}"
                )
        values = itertools.product(*(domain.values for domain in self.parameters.values()))
        return [dict(zip(self.parameters, combination, strict=True)) for combination in values]

    def to_params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a configuration's values as Optuna's parameters: lists are joined by commas."""
        return {key: encode(value) for key, value in values.items()}

    def from_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns Optuna's parameters as a configuration's values.

        Raises:
            UserError: a parameter or a value that this space does not have.
        """
        values = {}
        for key, param in params.items():
            domain = self.parameters.get(key)
            if domain is None:
                raise UserError(f"the parameter {key} of a trial is not in the search space, {self.describe()}")
            known = domain.values if isinstance(domain, Choices) else (param,)
            found = [value for value in known if encode(value) == param]
            if not found:
                raise UserError(f"a trial has {key} {param}, and the search space has {words(domain)}")
            values[key] = found[0]
        return values

    def identity(self) -> dict[str, str]:
        """Returns what two sweeps that search the same have in common: key -> its domain in words, exact."""
        return {key: words(domain) for key, domain in self.parameters.items()}

    def describe(self) -> str:
        """Returns the space as a line for a person."""
        return "; ".join(f"{key}: {words(domain)}" for key, domain in self.parameters.items())


def flag_of(key: str) -> str:
    """Returns the flag of a parameter: ``--space.train.learning-rate``."""
    return f"--space.{key}".replace("_", "-")


def path_of(key: str) -> list[str]:
    """Returns where in RunConfig the value of a dotted key is."""
    section, *path = key.split(".")
    return [*FIELDS.get(section, ("stages", section)), *path] if path else [section]


def apply(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns a configuration with the values of dotted keys; epochs switch off the number of steps, as in a recipe.

    Raises:
        UserError: a key that is no setting of this method and task, or a value that the settings refuse.
    """
    known = cli.keys(config)
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section = key.partition(".")[0]
        if key not in known or ("." not in key and key != SEED):
            raise UserError(f"{key} is no setting of --method {config.method} and --task {config.task}")
        *path, last = path_of(key)
        table = tree
        for name in path:
            table = table.setdefault(name, {})
        table[last] = value
        if value is not None and last in _ends(section):
            table.setdefault(_ends(section)[last], None)
    try:
        return _laid_over(config, tree)
    except ValueError as error:
        raise UserError(one_line(error)) from error


def _ends(section: str) -> Mapping[str, str]:
    """Returns setting -> the setting that it switches off, because both say when training ends."""
    if section in ("method", "task"):
        return {}
    # epochs of the train settings stay where steps are given, and do not count
    return {"epochs": "max_steps"} if section == "train" else {"epochs": "max_steps", "max_steps": "epochs"}


def _laid_over(instance: Any, tree: Mapping[str, Any]) -> Any:
    """Returns a dataclass tree with the values of a tree of mappings."""
    changes = {
        name: _laid_over(getattr(instance, name), value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
    }
    return replace(instance, **changes)


def build(config: RunConfig, given: Mapping[str, Sequence[str]], fixed: Collection[str] = ()) -> Space:
    """Returns the space that the method declares, as the command line changes it.

    Args:
        config: the configuration of the sweep, which holds what is not searched.
        given: name -> values of each flag ``--space.NAME VALUES...``, hyphens or underscores in the name.
        fixed: dotted keys that other flags give a value; declared parameters among them leave the space.

    Raises:
        UserError: the configuration cannot run; a flag names no setting, one that a sweep cannot search, or one that is
            fixed; its values are none, of a wrong type, refused by the settings, or no range; or nothing is left to
            search.
    """
    validate(config)
    known = {key: cli.plain(hint) for key, hint in cli.keys(config).items()}
    declared = _declared(config, known)
    parameters = {key: domain for key, domain in declared.items() if key not in fixed}
    flags: dict[str, str] = {}
    for name, texts in given.items():
        flag = f"--space.{name}"
        key = _key(name, config, known, declared)
        if key in flags:
            raise UserError(f"{flags[key]} and {flag} both mean {key}: give one of them")
        if key in fixed:
            raise UserError(f"{flag} searches {key} and {_run_flag(key)} fixes it: give one of them")
        flags[key] = flag
        log = key.endswith("learning_rate") or isinstance(declared.get(key), LogUniform)
        parameters[key] = read(flag, texts, known[key], log)
    sources = {key: flags.get(key, f"the declared {key}") for key in parameters}
    _check_together(config, sources, fixed)
    _check_values(config, parameters, sources)
    if all(isinstance(domain, Choices) and len(domain.values) == 1 for domain in parameters.values()):
        raise UserError(
            "nothing is left to search: give --space.NAME with several values, or train once with python -m harness.run"
        )
    return Space(parameters)


def _declared(config: RunConfig, known: Mapping[str, Any]) -> dict[str, Domain]:
    """Returns what the method declares, without the stages that the task leaves out."""
    declared = getattr(config.method_settings, "search_space", DEFAULT)
    for key, domain in declared.items():
        if key not in known or _is_common(key) or not fits(domain, known[key]):
            raise UserError(
                f"--method {config.method} declares {key} in its search space, with {domain}: a sweep cannot "
                "search such a setting, or not there, which only the method's package can mend"
            )
    return {key: domain for key, domain in declared.items() if key.partition(".")[0] not in _left_out(config)}


def _left_out(config: RunConfig) -> set[str]:
    """Returns the stages that train a head where the task's model has none."""
    if config.task_settings.auto_class != CAUSAL_LM:
        return set()
    return {stage.name for stage in getattr(config.method_settings, "stages", ()) if stage.needs_head}


def _is_common(key: str) -> bool:
    return "." not in key or key.startswith(COMMON)


def _key(name: str, config: RunConfig, known: Collection[str], declared: Collection[str]) -> str:
    """Returns the dotted key that a flag's name means."""
    word = name.replace("-", "_")
    sections = ("train", "method")
    ends = [key for key in declared if key.rpartition(".")[2] == word]
    ends.sort(key=lambda key: key.partition(".")[0] not in sections)
    meant = [word] if "." in word else [*ends, *(f"{section}.{word}" for section in sections), word]
    key = next((key for key in meant if key in known), None)
    if key is None:
        raise UserError(_unknown(name, word, config, known, declared))
    if _is_common(key):
        raise UserError(
            f"--space.{name}: {key} has to be the same in all trials, so that they can be compared: set it by "
            f"{_run_flag(key)}"
        )
    if (stage := key.partition(".")[0]) in _left_out(config):
        raise UserError(
            f"--space.{name}: {stage} is left out with --task {config.task}, whose model has no head to train"
        )
    return key


def _unknown(name: str, word: str, config: RunConfig, known: Collection[str], declared: Collection[str]) -> str:
    """Returns why a name that means no setting is refused."""
    section, dot, last = word.rpartition(".")
    own = [key for key in known if key.startswith((f"{section}.",) if dot else ("train.", "method."))]
    near = registry.closest(last, [key.rpartition(".")[2] for key in own if not _is_common(key)])
    missing = {
        "": f"--method {config.method} has no {last}, and the training has none either",
        "method": f"--method {config.method} has no {last}",
    }.get(section, f"there is no setting {word} with --method {config.method} and --task {config.task}")
    listed = [*declared, *(key for key in known if key.startswith("method.") and key not in declared)]
    known_names = f"(known: {', '.join(listed)}, and the settings of --train.* and --task.*)"
    return f"--space.{name}: " + f"{missing}{near} {known_names}".replace("_", "-")


def _check_together(config: RunConfig, sources: Mapping[str, str], fixed: Collection[str]) -> None:
    """Refuses parameters that would have no effect, or that contradict each other or a flag."""
    for key, source in sources.items():
        section, _, name = key.partition(".")
        if section in ("method", "task"):
            continue
        settings = config.train if section == "train" else getattr(config.stages, section)
        other = {"epochs": "max_steps", "max_steps": "epochs", "warmup_ratio": "warmup_steps"}.get(name, "")
        rival = f"{section}.{other}"
        is_given = bool(other) and getattr(settings, other) is not None
        if rival in sources or (is_given and (rival in fixed or name == "warmup_ratio")):
            advice = "leave one of them out"
            if rival not in {*sources, *fixed}:
                advice = f"leave it out, or give {_run_flag(rival)} None"
            raise UserError(
                f"{source} and {sources.get(rival, f'{_run_flag(rival)} {getattr(settings, other)}')} both say "
                f"{'how long the warmup is' if name == 'warmup_ratio' else 'when training ends'}: {advice}"
            )


def _check_values(config: RunConfig, parameters: Mapping[str, Domain], sources: Mapping[str, str]) -> None:
    """Refuses values that the settings refuse: each choice, and both ends of each range."""
    for key, domain in parameters.items():
        for value in domain.values if isinstance(domain, Choices) else (domain.low, domain.high):
            try:
                validate(apply(config, {key: value}))
            except UserError as error:
                raise UserError(f"{sources[key]} {encode(value)}: {error}") from error


def _run_flag(key: str) -> str:
    return f"--{key}".replace("_", "-")
