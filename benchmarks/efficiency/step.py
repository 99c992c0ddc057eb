"""What a training step costs over the frozen model: ``python -m benchmarks.efficiency.step``.

A step is forward and backward on one batch. The floor is the same frozen model with gradients of activations only,
which no adapter can go below; all rows share its weights and get its inputs, with gradients down to the embeddings. For
each row: the median of the ratios to the floor of the same turn with its 95 % interval, and the quartiles of a turn;
the bytes that autograd saves for backward over the floor (each storage once, parameters left out); what trains; and
the bytes of its checkpoint. Below it, ratios of rows to each other, and with ``--growth`` how the cost grows.

HUT beside peft's LoRA alone, for example::

    python -m benchmarks.efficiency.step --only hut-weight hut-activation peft-lora --json step.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.efficiency import growth, plot
from benchmarks.efficiency.models import Batch, build_frozen, compiled
from benchmarks.efficiency.report import conditions, conditions_of_times, mib, table, write_json
from benchmarks.efficiency.settings import ModelSettings, Switch, check_output, chosen, parse
from benchmarks.efficiency.timing import Ratio, interleave, median_seconds, paired, wait_for
from benchmarks.efficiency.variants import FLOOR, VARIANTS, checkpoint_bytes, make, notes, trained_parameters
from hadamard_core.accounting import bytes_saved_for_backward
from harness.errors import run_command

PAIRS = (
    ("lora", "peft-lora"),
    ("vera", "peft-vera"),
    ("hut", "peft-lora"),
    ("hut-weight", "peft-lora"),
    ("hut-activation", "peft-lora"),
    ("hut-weight", "hut-autograd"),
    ("scale-shift", "peft-lora"),
)
"""Rows of interest beside each other: the first over the second."""


@dataclass(frozen=True)
class StepSettings(ModelSettings):
    """Measures the cost of a training step over the frozen model."""

    growth: Switch = False
    """Also measure how the cost grows with the rank, the tokens, and the adapters in one batch."""
    plot: Path | None = None
    """HTML file to draw the ratios against the bytes saved in."""


@dataclass(frozen=True)
class Row:
    """What a step of one row costs.

    Attributes:
        seconds: median of a step.
        to_floor: its ratio to the floor's.
        bytes_saved: for backward, parameters and buffers left out.
        bytes_over_floor: of these, what the floor does not save.
        peak_over_floor: the same of the largest allocation within a step, on a GPU; gradients are in it.
        trained: how many numbers train.
        checkpoint_bytes: what ``save_pretrained`` writes of them.
    """

    label: str
    seconds: float
    to_floor: Ratio
    bytes_saved: int
    bytes_over_floor: int
    peak_over_floor: int | None
    trained: int
    checkpoint_bytes: int


def measure(settings: StepSettings, base: nn.Module) -> tuple[dict[str, Row], dict[tuple[str, str], Ratio]]:
    """Returns the rows, and the ratios of ``PAIRS``."""
    names = chosen(settings.only, list(VARIANTS), FLOOR)
    device = settings.torch_device
    batch = Batch(base, settings.batch_size, settings.length, settings.seed)
    models = {name: make(name, base, settings.seed) for name in names}
    embeddings = {name: model.get_input_embeddings() for name, model in models.items()}
    called = compiled(models) if settings.compile else models
    forward = {name: batch.loss(called[name], embeddings[name]) for name in names}

    def forget(name: str) -> None:
        models[name].zero_grad()

    steps = {name: lambda name=name: forward[name]().backward() for name in names}
    turns = interleave(steps, settings.turns, device, forget, settings.steps)
    saved, peak = {}, {}
    for name, model in models.items():
        saved[name] = bytes_saved_for_backward(forward[name], [*model.parameters(), *model.buffers(), batch.target])
        peak[name] = _peak_bytes(forward[name], device)
        forget(name)
    rows = {
        name: Row(
            label=VARIANTS[name].label,
            seconds=median_seconds(turns, name),
            to_floor=paired(turns, name, FLOOR),
            bytes_saved=saved[name],
            bytes_over_floor=saved[name] - saved[FLOOR],
            peak_over_floor=None if peak[name] is None else peak[name] - peak[FLOOR],
            trained=trained_parameters(models[name]),
            checkpoint_bytes=checkpoint_bytes(models[name]),
        )
        for name in names
    }
    return rows, {(one, other): paired(turns, one, other) for one, other in PAIRS if {one, other} <= set(names)}


def _peak_bytes(forward: Any, device: torch.device) -> int | None:
    """Bytes that a step allocates on a GPU at most, beyond what is there before; None on another device."""
    if device.type != "cuda":
        return None
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward().backward()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device) - before


def show(settings: StepSettings, rows: Mapping[str, Row], pairs: Mapping[tuple[str, str], Ratio]) -> str:
    """Returns the tables."""
    gpu = settings.torch_device.type == "cuda"
    headers = ["step of", "name", "ms", "to floor [95 %]", "quartiles", "saved MiB over floor"]
    headers += ["peak MiB over floor"] * gpu + ["trained", "checkpoint KiB"]
    lines = []
    for name, row in rows.items():
        line = [row.label, name, f"{1e3 * row.seconds:.1f}", row.to_floor.text, row.to_floor.quartiles_text]
        line.append(mib(row.bytes_over_floor))
        if row.peak_over_floor is not None:
            line.append(mib(row.peak_over_floor))
        lines.append([*line, f"{row.trained:,}", f"{row.checkpoint_bytes / 1024:.1f}"])
    text = f"{conditions_of_times(settings)}\n\n{table(headers, lines)}"
    if pairs:
        lines = [[f"{one} / {other}", ratio.text, ratio.quartiles_text] for (one, other), ratio in pairs.items()]
        text += f"\n\n{table(['ratio of', 'median [95 %]', 'quartiles'], lines)}"
    return text


def main(argv: Sequence[str]) -> int:
    settings = parse(StepSettings, "step", argv)
    check_output("--plot", settings.plot)
    if settings.plot is not None:
        plot.check(settings.plot)
    chosen(settings.only, list(VARIANTS), FLOOR)
    base = build_frozen(settings)
    rows, pairs = measure(settings, base)
    print(show(settings, rows, pairs) + notes(base), flush=True)
    entries = growth.measure(settings, base) if settings.growth else []
    if entries:
        print(f"\n{growth.show(entries)}")
    if settings.plot is not None:
        points = {name: (row.bytes_over_floor, row.to_floor) for name, row in rows.items()}
        plot.write(settings.plot, points, conditions(settings))
    result = {
        "rows": {name: asdict(row) for name, row in rows.items()},
        "pairs": {f"{one} / {other}": asdict(ratio) for (one, other), ratio in pairs.items()},
        "growth": [asdict(entry) for entry in entries],
    }
    write_json("step", settings, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
