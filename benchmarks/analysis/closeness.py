"""``closeness``: how close the W and b that a Hadamard adapter has learned come to a fit of full fine-tuning.

The Hadamard adapter's paper (Chen et al., CIKM 2023, arXiv:2407.11033) motivates the adapter by the linear function
y = w x + b, unit by unit, that best gives the fine-tuned self-attention outputs y from the original ones x. Here the
learned vectors are held against that fit, at the adapter's own position: cosine similarity of W - 1 and w - 1 (not of W
and w, which are all near 1, so that it would be near 1 whatever was learned) and of the two b, their correlation over
units, and what either function leaves of the fine-tuned outputs, in the measure of ``fit``.

The residual of the learned vectors may be above 1, worse than not adapting: an adapter is trained on the task, in all
layers together, and with a norm besides; nothing asks it to give the outputs of full fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from torch import Tensor

from benchmarks.analysis import output, reporting
from benchmarks.analysis.adapter_values import Learned, correlation, cosine, read_learned
from benchmarks.analysis.attention_outputs import SampleSettings, load_sample
from benchmarks.analysis.fit import HALVES, Halves, collect
from benchmarks.analysis.runs import Run, read_run, require_same_base
from benchmarks.efficiency.report import table as columns
from harness.errors import UserError

COSINES = ("cosine_w", "cosine_b")
RESIDUALS = ("residual_adapter_other", "residual_fit_other")


@dataclass(frozen=True, kw_only=True)
class Settings(SampleSettings):
    """Compares the W and b that a Hadamard adapter has learned with the linear fit of full fine-tuning."""

    adapter_run: Annotated[Path, tyro.conf.Positional]
    """Directory of a finished run of --method hadamard on a task of GLUE."""
    full_run: Annotated[Path, tyro.conf.Positional]
    """Directory of a finished run of --method full on the same task and base model; its data is used."""
    output_dir: Path = Path("runs/analysis/closeness")
    """Folder for closeness.csv and closeness.html."""


def main(settings: Settings) -> None:
    """Writes ``closeness.csv`` and ``closeness.html`` and prints a table.

    Raises:
        UserError: what was given cannot be used.
    """
    settings.check(least=2)
    adapter, full = read_run(settings.adapter_run, "hadamard"), read_run(settings.full_run, "full")
    require_comparable(adapter, full)
    learned = read_learned(adapter)
    layers = [layer for layer in learned.layers if any(layer in learned.vectors.get(name, ()) for name in "Wb")]
    if not layers:
        raise UserError(f"{adapter.path}: its adapter has neither W nor b on a self-attention output: give another run")
    position = adapter.config.method_settings.position
    output.prepare(settings.output_dir)
    sample = load_sample(full, settings)
    found = collect(full, sample, position, settings.batch_size)
    about = {
        **reporting.identity(full.task, full, sample),
        "path": str(full.path),
        "adapter_path": str(adapter.path),
        "adapter_seed": adapter.config.seed,
        "position": position,
    }
    rows = [{**about, **compare(layer, learned, found[layer])} for layer in layers]
    output.write_csv(settings.output_dir / "closeness.csv", rows)
    output.write_plot(settings.output_dir / "closeness.html", plot(rows))
    without = [layer for layer in found if layer not in layers]
    units = len(next(iter(found.values())).linear()[0])
    lines = [
        f"learned W, b beside the linear fit w, b of full fine-tuning ({position}), {reporting.model_in_words(full)}",
        reporting.run_in_words("adapter", adapter),
        reporting.run_in_words("full", full, sample),
        *([f"layers without W and b, which are left out: {', '.join(without)}"] if without else []),
        f"cosine similarity and correlation over {units} units (unrelated ones: 0 +- {units**-0.5:.2f}); left: sum of "
        "squares that is left, over that of the change (1: as without adapting), on the half of the examples that was "
        "fitted / on the other",
        "",
        *table(rows),
        "",
        f"files: {settings.output_dir}",
    ]
    print("\n".join(lines))


def require_comparable(adapter: Run, full: Run) -> None:
    """Refuses runs on different tasks, or versions of a task, or base models.

    Raises:
        UserError: naming both.
    """
    tasks = [f"{run.task} (version {run.result['task']['version']})" for run in (adapter, full)]
    if tasks[0] != tasks[1]:
        raise UserError(
            f"{adapter.path} is a run on {tasks[0]} and {full.path} on {tasks[1]}: give two runs on the same task"
        )
    require_same_base([adapter, full])


def compare(layer: str, learned: Learned, halves: Halves) -> dict[str, str | float | None]:
    """Returns what is to be said of a layer; what the adapter lacks of W and b counts as 1 and 0."""
    w, b = halves.linear()
    own_w = vector(learned, "W", layer, torch.ones_like(w))
    own_b = vector(learned, "b", layer, torch.zeros_like(b))
    fitted = halves.coefficients("linear")
    row = {
        "layer": layer,
        "cosine_w": cosine(own_w - 1, w - 1),
        "correlation_w": correlation(own_w, w),
        "cosine_b": cosine(own_b, b),
        "correlation_b": correlation(own_b, b),
        "norm_w_adapter": float((own_w - 1).norm()),
        "norm_w_fit": float((w - 1).norm()),
        "norm_b_adapter": float(own_b.norm()),
        "norm_b_fit": float(b.norm()),
    }
    for half in HALVES:
        triangle = getattr(halves, half)
        row[f"residual_adapter_{half}"] = triangle.relative_residual(triangle.affine(own_w, own_b))
        row[f"residual_fit_{half}"] = triangle.relative_residual(fitted)
    return row


def vector(learned: Learned, name: str, layer: str, otherwise: Tensor) -> Tensor:
    """Returns a learned vector, or what stands for one that is not there."""
    return learned.vectors.get(name, {}).get(layer, otherwise)


def table(rows: list[dict]) -> list[str]:
    """Returns a line for each layer."""
    cells = []
    for row in rows:
        left = [
            " / ".join(reporting.number(row[f"residual_{whose}_{half}"], 3) for half in HALVES)
            for whose in ("adapter", "fit")
        ]
        alike = [reporting.number(row[key], 3) for key in ("cosine_w", "correlation_w", "cosine_b", "correlation_b")]
        cells.append([row["layer"], *alike, *left])
    head = ["layer", "cos W-1", "corr W", "cos b", "corr b", "left by adapter", "left by fit"]
    return columns(head, cells).splitlines()


def plot(rows: list[dict]) -> Figure:
    """Returns two panels by layer: similarities, and what is left on the half that was not fitted."""
    titles = ("cosine similarity, learned and fitted", "relative residual on examples that were not fitted")
    figure = make_subplots(cols=2, subplot_titles=titles)
    names = {COSINES[0]: "W - 1", COSINES[1]: "b", RESIDUALS[0]: "learned W, b", RESIDUALS[1]: "linear fit"}
    for column, keys in enumerate((COSINES, RESIDUALS), 1):
        for key in keys:
            layers, values = [row["layer"] for row in rows], [row[key] for row in rows]
            figure.add_trace(Scatter(x=layers, y=values, name=names[key]), row=1, col=column)
    figure.update_xaxes(title="layer")
    first = rows[0]
    return figure.update_layout(title=f"Hadamard adapter and full fine-tuning: {first['model']}, {first['task']}")
