"""How results are shown and stored: one table on stdout, everything in a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.efficiency.settings import ModelSettings, Settings
from harness.rundir import write_text

MIB = 2**20
_PACKAGES = ("torch", "transformers", "peft", "triton")
_CPUINFO = Path("/proc/cpuinfo")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table for a terminal: the first column to the left, the others to the right."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def machine(device: torch.device) -> dict[str, Any]:
    """Returns what computed a result."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _cpu_name() -> str:
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that decide about speed; None for one not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def conditions(settings: Settings) -> str:
    """Returns the line above a table: under which conditions its numbers hold."""
    device = settings.torch_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({_cpu_name()})"
    parts = [settings.dtype, where, f"{torch.get_num_threads()} threads"]
    if isinstance(settings, ModelSettings):
        layers = "" if settings.layers is None else f" with {settings.layers} layers"
        size = f"batch {settings.batch_size} x {settings.length} tokens"
        parts = [f"{settings.model_config}{layers}, random weights", size, *parts]
        parts += ["torch.compile"] * settings.compile
    parts += [f"{name} {number}" for name, number in versions().items() if name in ("torch", "transformers", "peft")]
    return ", ".join(parts)


def conditions_of_times(settings: Settings) -> str:
    """Returns that line for a table of times."""
    return f"{conditions(settings)}; medians of {settings.turns} interleaved turns of {settings.steps} steps"


def write_json(command: str, settings: Settings, result: Mapping[str, Any]) -> None:
    """Writes a result to the file of ``--json``, if there is one."""
    if settings.json is None:
        return
    content = {
        "command": f"benchmarks.efficiency.{command}",
        "machine": machine(settings.torch_device),
        "versions": versions(),
        "settings": {**asdict(settings), "device": str(settings.torch_device)},
        **result,
    }
    write_text(settings.json, json.dumps(content, indent=1, default=str) + "\n")


def mib(count: int) -> str:
    """Returns bytes as MiB."""
    return f"{count / MIB:.2f}"
