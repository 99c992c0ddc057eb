"""What a forward pass costs over the base model: ``python -m benchmarks.efficiency.inference``.

Without gradients and in evaluation mode, unmerged and merged; a merged adapter costs nothing, which is checked here by
measuring it beside the base model. Merged weights are copies, so that there is a row of the base model with such copies
too: what it differs by is where memory happens to be. Scale and shift in a module before the projection has no merged
form here. One token at a time, as in decoding (without its cache of keys and values)::

    python -m benchmarks.efficiency.inference --batch-size 1 --length 1
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from torch import nn

from benchmarks.efficiency.models import ROLES, Batch, build_frozen, compiled, share_weights
from benchmarks.efficiency.report import conditions_of_times, table, write_json
from benchmarks.efficiency.settings import ModelSettings, chosen, parse
from benchmarks.efficiency.timing import Ratio, interleave, median_seconds, paired
from benchmarks.efficiency.variants import VARIANTS, adapt, make, notes
from hadamard_core.targets import module_names
from harness.errors import run_command

BASE = "base"
COPIED = "base, copied"
MERGED = ", merged"
NAMES = ("hut", "hut-weight", "hut-activation", "hadamard", "scale-shift", "lora", "vera", "peft-lora", "peft-vera")
MERGED_INTO = (*ROLES, "attention_output", "attention_norm")
"""What merging changes."""
MERGED_NAMES = ("hut", "hadamard", "lora", "vera")


@dataclass(frozen=True)
class InferenceSettings(ModelSettings):
    """Measures the latency of a forward pass over that of the base model."""


@dataclass(frozen=True)
class Row:
    """Median seconds of a forward pass, and their ratio to the base model's."""

    label: str
    seconds: float
    to_base: Ratio


def models(settings: InferenceSettings, base: nn.Module) -> dict[str, nn.Module]:
    """Returns the models by row; merged ones have the weights for themselves that merging changes."""
    projections = module_names(base, MERGED_INTO)
    made = {BASE: share_weights(base), COPIED: share_weights(base, own=projections)}
    for name in chosen(settings.only, (BASE, *NAMES), BASE)[1:]:
        made[name] = make(name, base, settings.seed)
        if name in MERGED_NAMES:
            copied = share_weights(base, own=projections)
            adapted: PeftModel = adapt(VARIANTS[name].build, copied, settings.seed, name)
            made[name + MERGED] = adapted.merge_and_unload()
    return {name: model.eval() for name, model in made.items()}


def measure(settings: InferenceSettings, base: nn.Module) -> dict[str, Row]:
    """Returns the rows."""
    made = models(settings, base)
    batch = Batch(base, settings.batch_size, settings.length, settings.seed)
    embeddings = {name: model.get_input_embeddings() for name, model in made.items()}
    called = compiled(made) if settings.compile else made
    with torch.no_grad():
        steps = {name: lambda name=name: batch.outputs(called[name], embeddings[name]) for name in made}
        turns = interleave(steps, settings.turns, settings.torch_device, repeats=settings.steps)
    return {name: Row(_label(name), median_seconds(turns, name), paired(turns, name, BASE)) for name in made}


def _label(name: str) -> str:
    if name in (BASE, COPIED):
        return name.replace(BASE, "base model")
    short = name.removesuffix(MERGED)
    return VARIANTS[short].label + name[len(short) :]


def show(settings: InferenceSettings, rows: Mapping[str, Row]) -> str:
    """Returns the table."""
    lines = [
        [row.label, name, f"{1e3 * row.seconds:.2f}", row.to_base.text, row.to_base.quartiles_text]
        for name, row in rows.items()
    ]
    headers = ["forward pass of", "name", "ms", "to base [95 %]", "quartiles"]
    return f"{conditions_of_times(settings)}\n\n{table(headers, lines)}"


def main(argv: Sequence[str]) -> int:
    settings = parse(InferenceSettings, "inference", argv)
    chosen(settings.only, (BASE, *NAMES), BASE)
    base = build_frozen(settings)
    rows = measure(settings, base)
    print(show(settings, rows) + notes(base))
    write_json("inference", settings, {"rows": {name: asdict(row) for name, row in rows.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
