"""``outputs``: how large the self-attention outputs of each layer are, before and after full fine-tuning.

Figure 1 of the Hadamard adapter's paper (Chen et al., CIKM 2023, arXiv:2407.11033). Norms are L2 norms of a token's
output (width,), in the units of the activations, as a mean over the tokens of all examples without padding. The
relative change is the mean norm of the change over the mean norm before. The fine-tuned outputs are those on the same
texts; the inputs of their layers have changed too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import plotly.colors
import torch
import tyro
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots

from benchmarks.analysis import output, reporting
from benchmarks.analysis.attention_outputs import Position, Sample, SampleSettings, load_sample, paired_outputs
from benchmarks.analysis.runs import Run, read_run, require_same_base
from benchmarks.efficiency.report import table

SHOWN = {"norm_before": "before", "norm_after": "after", "norm_change": "change"}


@dataclass(frozen=True, kw_only=True)
class Settings(SampleSettings):
    """Measures the self-attention outputs of every layer before and after full fine-tuning."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of finished runs of --method full on tasks of GLUE, all on the same base model."""
    position: Position = "context"
    """Where the output is taken: the concatenated heads (context), or after the output projection (projection)."""
    output_dir: Path = Path("runs/analysis/outputs")
    """Folder for outputs.csv and outputs.html."""


@dataclass(frozen=True)
class Norms:
    """Mean L2 norms over tokens of one layer's outputs."""

    before: float
    after: float
    change: float

    @property
    def relative_change(self) -> float | None:
        """The norm of the change over that before; None if that is 0."""
        return self.change / self.before if self.before else None


def norms(run: Run, sample: Sample, position: Position, batch_size: int) -> dict[str, Norms]:
    """Returns the norms of each layer."""
    sums: dict[str, torch.Tensor] = {}
    for _, found in paired_outputs(run, sample, position, batch_size):
        for layer, (original, tuned) in found.items():
            own = torch.stack([each.norm(dim=1).sum() for each in (original, tuned, tuned - original)])
            sums[layer] = sums.get(layer, 0) + own
    return {layer: Norms(*(total / sample.tokens).tolist()) for layer, total in sums.items()}


def main(settings: Settings) -> None:
    """Writes ``outputs.csv`` and ``outputs.html`` and prints a table.

    Raises:
        UserError: what was given cannot be used.
    """
    reporting.require_runs(settings.runs)
    settings.check()
    runs = [read_run(path, "full") for path in settings.runs]
    require_same_base(runs)
    names = reporting.labels(runs)
    output.prepare(settings.output_dir)
    rows, lines = [], [f"self-attention outputs ({settings.position}), {reporting.model_in_words(runs[0])}"]
    lines.append("mean L2 norm over tokens, before and after full fine-tuning, on the same texts")
    for name, run in zip(names, runs, strict=True):
        sample = load_sample(run, settings)
        found = norms(run, sample, settings.position, settings.batch_size)
        rows += [
            {
                **reporting.identity(name, run, sample),
                "position": settings.position,
                "layer": layer,
                "norm_before": each.before,
                "norm_after": each.after,
                "norm_change": each.change,
                "relative_change": each.relative_change,
            }
            for layer, each in found.items()
        ]
        cells = [
            [layer, *map(reporting.number, (each.before, each.after, each.change, each.relative_change))]
            for layer, each in found.items()
        ]
        lines += ["", reporting.run_in_words(name, run, sample)]
        lines += table(["layer", "before", "after", "change", "relative change"], cells).splitlines()
    output.write_csv(settings.output_dir / "outputs.csv", rows)
    output.write_plot(settings.output_dir / "outputs.html", plot(rows, settings.position))
    print("\n".join([*lines, "", f"files: {settings.output_dir}"]))


def plot(rows: list[dict], position: Position) -> Figure:
    """Returns three panels, before, after and change, with a line for each run."""
    figure = make_subplots(cols=len(SHOWN), subplot_titles=list(SHOWN.values()))
    colours = plotly.colors.qualitative.Plotly
    for number, name in enumerate(dict.fromkeys(row["run"] for row in rows)):
        own = [row for row in rows if row["run"] == name]
        for column, key in enumerate(SHOWN, 1):
            line = Scatter(
                x=[row["layer"] for row in own],
                y=[row[key] for row in own],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line_color=colours[number % len(colours)],
            )
            figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="mean L2 norm", rangemode="tozero", col=1)
    title = f"Self-attention outputs ({position}), before and after full fine-tuning: {rows[0]['model']}"
    return figure.update_layout(title=title)
