"""Which layers of a model: numbers, ranges and short words on a command line to peft's ``layers_to_transform``.

A selection is a sequence of parts: a number (``3``), a range with both its ends (``2-5``), ``top:8`` (the eight layers
next to the output), ``bottom:8`` (next to the embeddings), ``every:2`` (each second one, from the first). What any part
names is selected. Layers count from 0; in an encoder-decoder model both stacks do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from hadamard_core.targets import find_targets

_RANGE = re.compile(r"(\d+)-(\d+)")
_WORD = re.compile(r"(top|bottom|every):(\d+)")
_FORMS = "numbers, ranges such as 2-5, top:N, bottom:N or every:N"


def check_selection(parts: Sequence[int | str]) -> None:
    """Refuses what is no selection, whatever the model.

    Raises:
        ValueError: it is empty, or a part has none of the forms that are known.
    """
    if not parts:
        raise ValueError(f"layers is empty; give {_FORMS}, or leave it out for all layers")
    for part in parts:
        word = _WORD.fullmatch(str(part))
        if not (word or _RANGE.fullmatch(str(part)) or str(part).isdigit()):
            raise ValueError(f"layers has {part!r}; give {_FORMS}")
        if word and int(word[2]) < 1:
            raise ValueError(f"layers has {part!r}; the number must be at least 1")


def select_layers(parts: Sequence[int | str], known: Iterable[int]) -> list[int]:
    """Returns the numbers of the layers that a selection names, in order.

    Args:
        parts: the selection, see the module's docstring.
        known: the numbers of the layers that there are.

    Raises:
        ValueError: it is no selection, or names a layer that is not there.
    """
    check_selection(parts)
    known = sorted(set(known))
    selected: set[int] = set()
    for part in parts:
        word, span = _WORD.fullmatch(str(part)), _RANGE.fullmatch(str(part))
        if word:
            count = int(word[2])
            if word[1] != "every" and count > len(known):
                raise ValueError(f"layers has {part!r}, but there are {len(known)} layers")
            selected.update({"top": known[-count:], "bottom": known[:count], "every": known[::count]}[word[1]])
            continue
        first, last = (int(span[1]), int(span[2])) if span else (int(part), int(part))
        if first > last:
            raise ValueError(f"layers has {part!r}; a range goes from the lower number to the higher")
        named = set(range(first, last + 1))
        if not named <= set(known):
            without_gap = known == list(range(known[0], known[-1] + 1))
            written = f"{known[0]} to {known[-1]}" if without_gap else ", ".join(map(str, known))
            raise ValueError(f"layers has {part!r}, but the layers are {written}; give some of these")
        selected |= named
    return sorted(selected)


def layer_numbers(model: nn.Module, roles: Sequence[str] | None) -> list[int]:
    """Returns the numbers of a model's layers that have modules with these roles.

    Without roles, as where modules are named by ``target_modules``, those of its lists of layers, by peft's rule: the
    first number in a module's name.

    Raises:
        ValueError: the model has no such roles, or no numbered layers.
    """
    if roles is not None:
        return sorted({target.layer for target in find_targets(model, roles).values()})
    found = (re.match(r".*?\.[^.]*\.(\d+)\.", f".{name}.") for name, _ in model.named_modules())
    numbers = sorted({int(match[1]) for match in found if match})
    if not numbers:
        raise ValueError(f"layers is given, but a {type(model).__name__} has no numbered layers; leave it out")
    return numbers


def layers_to_transform(
    model: nn.Module, parts: Sequence[int | str] | None, roles: Sequence[str] | None
) -> list[int] | None:
    """Returns what peft's field of this name is for a selection; None for no selection.

    Args:
        model: whose layers they are.
        parts: the selection, see the module's docstring.
        roles: what is adapted in them; None where modules are named.

    Raises:
        ValueError: as of :func:`select_layers` and :func:`layer_numbers`.
    """
    return None if parts is None else select_layers(parts, layer_numbers(model, roles))
