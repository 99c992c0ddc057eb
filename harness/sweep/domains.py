"""Domains of a search space as the command line gives them, as words show them, and as Optuna stores their values."""

from __future__ import annotations

import contextlib
import math
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from hadamard_core.search_space import Choices, Domain, LogUniform, Uniform
from harness import recipes
from harness.errors import UserError


def encode(value: Any) -> Any:
    """Returns a value as Optuna can store it: a list joined by commas, anything else as it is."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value


def decode(key: str, value: Any, hint: Any) -> Any:
    """Returns what :func:`encode` made of a value of a setting with this annotation."""
    return read(key, [value], hint, False).values[0] if isinstance(value, str) else value


def words(domain: Domain) -> str:
    """Returns a domain in words, with every digit."""
    if isinstance(domain, Choices):
        return " | ".join(str(encode(value)) for value in domain.values)
    kind = "log-uniform" if isinstance(domain, LogUniform) else "uniform"
    return f"{domain.low!r} to {domain.high!r}, {kind}"


def fits(domain: Any, hint: Any) -> bool:
    """Whether something is a domain, of values that a setting of this annotation can have."""
    if not isinstance(domain, Choices):
        return isinstance(domain, (LogUniform, Uniform)) and float in _options(hint)
    try:
        for value in domain.values:
            recipes.convert("None" if value is None else list(value) if isinstance(value, tuple) else value, hint)
    except TypeError:
        return False
    return True


def read(flag: str, texts: Sequence[str], hint: Any, log: bool) -> Domain:
    """Returns what the values of a flag mean: two numbers a range, where the setting takes fractions, else choices.

    Args:
        flag: as the user wrote it, for what is said of it.
        texts: the values.
        hint: the annotation of the setting.
        log: whether a range is searched on a logarithmic scale.

    Raises:
        UserError: there is no value, one is of another type or there twice, or the range is none.
    """
    if not texts:
        raise UserError(f"{flag} without a value: give the values to search ({_takes(hint)})")
    values = [_value(flag, text, hint) for text in texts]
    if len(values) == 2 and float in _options(hint) and all(isinstance(value, float) for value in values):
        low, high = values
        if low == high:
            raise UserError(f"{flag} {' '.join(texts)}: both ends of the range are equal: give one value to fix it")
        if low > high:
            raise UserError(f"{flag} {' '.join(texts)}: the range ends below its start: give the lower end first")
        if log and low <= 0:
            raise UserError(f"{flag} {' '.join(texts)}: the range is searched logarithmically: start it above 0")
        return LogUniform(low, high) if log else Uniform(low, high)
    encoded = [encode(value) for value in values]
    for text, value in zip(texts, encoded, strict=True):
        if encoded.count(value) > 1:
            raise UserError(f"{flag} names {text} twice: give each value once")
    return Choices(tuple(values))


def _value(flag: str, text: str, hint: Any) -> Any:
    """Returns a word of the command line as a value of a setting's type."""
    for reading in _readings(flag, text, hint) if text else ():
        try:
            value = recipes.convert(reading, hint)
        except TypeError:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag} {text}: it takes finite numbers")
        return value
    raise UserError(f"{flag} {text or 'with an empty value'}: it takes {_takes(hint)}")


def _readings(flag: str, text: str, hint: Any) -> Iterator[Any]:
    """Yields what a word may be in a recipe, the narrower first."""
    options = _options(hint)
    for option in options:
        if typing.get_origin(option) in (tuple, list) and not (text == "None" and types.NoneType in options):
            yield [_value(flag, part, typing.get_args(option)[0]) for part in text.split(",")]
    if text.lower() in ("true", "false"):
        yield text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            yield number(text)
    yield text


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _takes(hint: Any) -> str:
    lists = any(typing.get_origin(option) in (tuple, list) for option in _options(hint))
    return recipes.describe(hint) + (", joined by commas" if lists else "")
