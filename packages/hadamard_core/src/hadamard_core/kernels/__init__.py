"""Triton kernels for the passes over activations and weights that are bound by memory; cuBLAS keeps the products.

``scale_shift``, ``scaled_weight`` and ``exact_columns`` are modules of this package, imported on first use, because
they import triton and this package must not: ask :func:`usable` first. Every kernel adds up in a fixed order and none
makes the host wait for the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from torch import Tensor

_MODULES = ("scale_shift", "scaled_weight", "exact_columns")

interpret_on_cpu = False
"""Whether tensors on a CPU are usable too, see :func:`interpreted`."""


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


@cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can take this tensor: it is on a CUDA or ROCm device, and triton is installed."""
    return (tensor.is_cuda or (interpret_on_cpu and tensor.device.type == "cpu")) and _has_triton()


@contextmanager
def interpreted() -> Iterator[None]:
    """Makes tensors on a CPU usable, through triton's interpreter. For tests: it is slow.

    Raises:
        RuntimeError: triton or a module of kernels was imported without TRITON_INTERPRET=1, and so is for GPUs only.
    """
    import triton
    import triton.language as tl

    global interpret_on_cpu
    namespaces = [tl, *(importlib.import_module(f"{__name__}.{name}") for name in _MODULES)]
    compiled = [
        f"{namespace.__name__}.{name}"
        for namespace in namespaces
        for name, function in vars(namespace).items()
        if isinstance(function, triton.JITFunction)
    ]
    if compiled:
        raise RuntimeError(
            f"{compiled[0]} and {len(compiled) - 1} more Triton functions are for GPUs only; set TRITON_INTERPRET=1 "
            "before triton and hadamard_core.kernels are first imported."
        )
    before, interpret_on_cpu = interpret_on_cpu, True
    try:
        yield
    finally:
        interpret_on_cpu = before
