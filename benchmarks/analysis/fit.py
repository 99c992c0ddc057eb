"""``fit``: how well element-wise functions of the original self-attention outputs give the fine-tuned ones.

Figure 2 of the Hadamard adapter's paper (Chen et al., CIKM 2023, arXiv:2407.11033), whose finding is that a linear
function is enough. Every hidden unit has coefficients of its own, which all tokens share: a constant (y = c), a
constant shift (y = x + b), a linear (y = w x + b), a quadratic and a cubic function. They are fitted on one half of the
examples and measured on both: "fitted" is that half, "other" the other one, where more coefficients do not help by
themselves.

The relative residual is the sum of squares that a function leaves of y, over that of the change y - x: 1 is what not
adapting at all leaves, 0 is all of the change reproduced. R^2 is against the variance of y about each unit's mean. Mean
values are over tokens and units; on the fitted half every function that has a free constant meets the mean of y, so
that only those of the other half say something. The fine-tuned outputs are those on the same texts, and the inputs of
their layers have changed too: the change also holds what comes from the layers below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.analysis import output, reporting
from benchmarks.analysis.attention_outputs import Position, Sample, SampleSettings, load_sample, paired_outputs
from benchmarks.analysis.elementwise import DEGREES, Standard, Triangle
from benchmarks.analysis.runs import Run, read_run, require_same_base
from benchmarks.efficiency.report import table as columns
from harness.errors import UserError
from harness.subsets import chosen

FUNCTIONS = ("constant", *DEGREES)
HALVES = ("fitted", "other")
HALVES_SEED = 1
"""Divides the examples; another number than that which draws them, whose order they would follow."""


@dataclass(frozen=True, kw_only=True)
class Settings(SampleSettings):
    """Fits element-wise functions from the original self-attention outputs to the fine-tuned ones, layer by layer."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of finished runs of --method full on tasks of GLUE, all on the same base model."""
    position: Position = "context"
    """Where the output is taken: the concatenated heads (context), or after the output projection (projection)."""
    output_dir: Path = Path("runs/analysis/fit")
    """Folder for fit.csv, fit.html and fit.safetensors, which holds w and b of the linear function of each layer."""


@dataclass(frozen=True)
class Halves:
    """The outputs of one layer on the two halves of the examples, standardised alike."""

    fitted: Triangle
    other: Triangle

    def coefficients(self, function: str) -> Tensor:
        """Returns the coefficients of one of :data:`FUNCTIONS`, from the fitted half."""
        return self.fitted.constant() if function == "constant" else self.fitted.fit(function)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Returns w and b (units,) of the linear function."""
        return self.fitted.weight_and_bias(self.fitted.fit("linear"))


def collect(run: Run, sample: Sample, position: Position, batch_size: int) -> dict[str, Halves]:
    """Returns what is kept of each layer's outputs, before and after.

    Raises:
        UserError: there are not two examples, or what :func:`paired_outputs` raises.
    """
    count = len(sample.features)
    if count < 2:
        raise UserError(f"{run.path}: its {sample.split} split has {count} example: a fit needs one in each half")
    first = set(chosen(count, count // 2, HALVES_SEED))
    parts = [sorted(first), sorted(set(range(count)) - first)]
    found: dict[str, Halves] = {}
    for part, outputs in paired_outputs(run, sample, position, batch_size, parts):
        for layer, (original, tuned) in outputs.items():
            if layer not in found:
                standard = Standard.of(original)
                found[layer] = Halves(Triangle(standard), Triangle(standard))
            getattr(found[layer], HALVES[part]).add(original, tuned)
    return found


def main(settings: Settings) -> None:
    """Writes ``fit.csv``, ``fit.html`` and ``fit.safetensors`` and prints a table.

    Raises:
        UserError: what was given cannot be used.
    """
    reporting.require_runs(settings.runs)
    settings.check(least=2)
    runs = [read_run(path, "full") for path in settings.runs]
    require_same_base(runs)
    names = reporting.labels(runs)
    output.prepare(settings.output_dir)
    rows: list[dict] = []
    tensors: dict[str, Tensor] = {}
    lines = [
        f"element-wise fits of self-attention outputs ({settings.position}) after full fine-tuning from those before, "
        f"on the same texts; {reporting.model_in_words(runs[0])}",
        "sum of squares that is left, over that of the change (1: as without adapting), on the half of the examples "
        "that was fitted / on the other; R^2 of the linear function is on the other",
    ]
    for name, run in zip(names, runs, strict=True):
        sample = load_sample(run, settings)
        found = collect(run, sample, settings.position, settings.batch_size)
        own = [
            {**reporting.identity(name, run, sample), "position": settings.position, **row}
            for layer, halves in found.items()
            for row in layer_rows(layer, halves)
        ]
        for layer, halves in found.items():
            for letter, vector in zip("wb", halves.linear(), strict=True):
                tensors[f"{name}.{layer}.{letter}"] = vector.contiguous()
        rows += own
        lines += ["", reporting.run_in_words(name, run, sample), *table(own)]
    output.write_csv(settings.output_dir / "fit.csv", rows)
    output.write_plot(settings.output_dir / "fit.html", plot(rows, settings.position))
    save_linear(settings.output_dir / "fit.safetensors", tensors, dict(zip(names, runs, strict=True)), settings)
    print("\n".join([*lines, "", f"files: {settings.output_dir}"]))


def layer_rows(layer: str, halves: Halves) -> list[dict]:
    """Returns what is to be said of a layer: a row for each function and half."""
    rows = []
    for function in FUNCTIONS:
        coefficients = halves.coefficients(function)
        for half in HALVES:
            triangle: Triangle = getattr(halves, half)
            rows.append(
                {
                    "layer": layer,
                    "function": function,
                    "half": half,
                    "half_tokens": triangle.tokens,
                    "relative_residual": triangle.relative_residual(coefficients),
                    "r_squared": triangle.r_squared(coefficients),
                    "mean_before": float(triangle.mean_before().mean()),
                    "mean_after": float(triangle.mean_after().mean()),
                    "mean_fit": float(triangle.mean_fitted(coefficients).mean()),
                }
            )
    return rows


def save_linear(path: Path, tensors: Mapping[str, Tensor], runs: Mapping[str, Run], settings: Settings) -> None:
    """Writes w and b of the linear functions, ``RUN.LAYER.w`` and ``RUN.LAYER.b``, (units,) in float64."""
    about = {
        "position": settings.position,
        "model_sha256": next(iter(runs.values())).base.fingerprint,
        "runs": json.dumps({name: str(run.path) for name, run in runs.items()}),
    }
    beside = path.with_name(f".{path.name}.new")
    save_file(dict(tensors), beside, metadata=about)
    beside.replace(path)


def table(rows: list[dict]) -> list[str]:
    """Returns a line for each layer of a run."""
    cells: dict[str, dict[tuple[str, str], dict]] = {}
    for row in rows:
        cells.setdefault(row["layer"], {})[row["function"], row["half"]] = row
    lines = []
    for layer, own in cells.items():
        both = [
            " / ".join(
                reporting.number(own[function, half]["relative_residual"], 1 if function == "constant" else 3)
                for half in HALVES
            )
            for function in FUNCTIONS
        ]
        lines.append([layer, *both, reporting.number(own["linear", "other"]["r_squared"], 3)])
    return columns(["layer", *FUNCTIONS, "R^2 linear"], lines).splitlines()


def plot(rows: list[dict], position: Position) -> Figure:
    """Returns, for each run, residuals and mean values by layer on the half that was not fitted."""
    names = list(dict.fromkeys(row["run"] for row in rows))
    titles = [f"{name}: {what}" for name in names for what in ("relative residual", "mean value of the outputs")]
    figure = make_subplots(rows=len(names), cols=2, subplot_titles=titles)
    other = [row for row in rows if row["half"] == "other"]
    for number, name in enumerate(names, 1):
        own = [row for row in other if row["run"] == name]
        layers = list(dict.fromkeys(row["layer"] for row in own))
        lines = {
            ("original", 2): [row["mean_before"] for row in own if row["function"] == "linear"],
            ("fine-tuned", 2): [row["mean_after"] for row in own if row["function"] == "linear"],
        }
        for function in FUNCTIONS:
            of_it = [row for row in own if row["function"] == function]
            if function != "constant":  # which is far off and would press the others together
                lines[function, 1] = [row["relative_residual"] for row in of_it]
            lines[function, 2] = [row["mean_fit"] for row in of_it]
        for (label, column), values in lines.items():
            figure.add_trace(Scatter(x=layers, y=values, name=f"{name}: {label}"), row=number, col=column)
    figure.update_xaxes(title="layer")
    title = f"Element-wise fits ({position}), examples that were not fitted: {rows[0]['model']}"
    return figure.update_layout(title=title, height=350 * len(names) + 100)
