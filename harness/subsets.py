"""Seeded parts of a data set that are the same on every Python and nested: a smaller one is a part of a larger one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def chosen(count: int, limit: int, seed: int) -> list[int]:
    """Returns ``limit`` of the positions below ``count``, in order: those that hash lowest."""

    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{seed}/{position}".encode()).digest()

    return sorted(sorted(range(count), key=rank)[:limit])


def subset(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """Returns ``limit`` of the items in their own order, all of them if there is no limit or there are not so many."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[position] for position in chosen(len(items), limit, seed)]
