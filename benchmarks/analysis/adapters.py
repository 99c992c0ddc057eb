"""``adapters``: the values that Hadamard adapters have learned, by layer, and how alike they are across runs.

Figure 5 of the Hadamard adapter's paper (Chen et al., CIKM 2023, arXiv:2407.11033). "Importance" is the L2 norm of what
training has done to a vector: of W - 1, of b, and of what it has added to a norm's weight and bias. Similarity between
two runs, on other tasks or with other seeds, is the cosine of these, layer by layer. For W itself it is near 1 whatever
was learned, since all of W is near 1, so W - 1 is what counts; the CSV has both. Runs that adapt different layers are
compared in the layers that they share.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import tyro
from plotly.graph_objects import Figure, Heatmap
from plotly.subplots import make_subplots

from benchmarks.analysis import output, reporting
from benchmarks.analysis.adapter_values import STARTS, VECTORS, Learned, change, cosine, read_learned
from benchmarks.analysis.runs import Run, read_run, require_same_base
from benchmarks.efficiency.report import table
from harness.errors import UserError

SHOWN = {vector: f"{vector} - 1" if vector in STARTS else vector for vector in VECTORS}


@dataclass(frozen=True)
class Settings:
    """Shows the learned W, b and norms of Hadamard adapters by layer, and how alike they are across runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of finished runs of --method hadamard, all on the same base model."""
    output_dir: Path = Path("runs/analysis/adapters")
    """Folder for adapters.csv, adapters.html and, of two runs or more, similarity.csv."""


def main(settings: Settings) -> None:
    """Writes ``adapters.csv``, ``similarity.csv`` and ``adapters.html`` and prints tables.

    Raises:
        UserError: what was given cannot be used.
    """
    reporting.require_runs(settings.runs)
    runs = [read_run(path, "hadamard") for path in settings.runs]
    require_same_base(runs)
    position = shared_position(runs)
    names = reporting.labels(runs)
    learned = {name: read_learned(run) for name, run in zip(names, runs, strict=True)}
    output.prepare(settings.output_dir)
    values = value_rows(dict(zip(names, runs, strict=True)), learned)
    alike = similarity_rows(learned)
    output.write_csv(settings.output_dir / "adapters.csv", values)
    if alike:
        output.write_csv(settings.output_dir / "similarity.csv", alike)
    else:
        (settings.output_dir / "similarity.csv").unlink(missing_ok=True)
    output.write_plot(settings.output_dir / "adapters.html", plot(values, alike))
    lines = [f"what Hadamard adapters have learned ({position}), {reporting.model_in_words(runs[0])}"]
    for (name, own), run in zip(learned.items(), runs, strict=True):
        left_out = f"; {own.left_out} other adapted modules are left out" if own.left_out else ""
        lines.append(f"{reporting.run_in_words(name, run)}; layers {', '.join(own.layers)}{left_out}")
    lines += [*importance_tables(values, names), *similarity_tables(alike, learned)]
    print("\n".join([*lines, "", f"files: {settings.output_dir}"]))


def shared_position(runs: Sequence[Run]) -> str:
    """Returns where all runs adapt the attention's output.

    Raises:
        UserError: naming two that differ; their W and b act on other things.
    """
    first = runs[0].config.method_settings.position
    for run in runs[1:]:
        if run.config.method_settings.position != first:
            raise UserError(
                f"{runs[0].path} has --method.position {first} and {run.path} "
                f"{run.config.method_settings.position}, and their W and b act on other things: give runs with the same"
            )
    return first


def value_rows(runs: Mapping[str, Run], learned: Mapping[str, Learned]) -> list[dict]:
    """Returns a row for each run, layer and vector: its values, and the L2 norm of what training has done to it.

    Raises:
        UserError: no adapter has any of the vectors.
    """
    rows = [
        {
            **reporting.identity(name, runs[name]),
            "position": runs[name].config.method_settings.position,
            "layer": layer,
            "vector": vector,
            "units": len(value),
            "mean": float(value.mean()),
            "std": float(value.std(unbiased=False)),
            "min": float(value.min()),
            "max": float(value.max()),
            "importance": float(change(vector, value).norm()),
        }
        for name, own in learned.items()
        for vector, by_layer in own.vectors.items()
        for layer, value in by_layer.items()
    ]
    if not rows:
        raise UserError("these adapters have nothing on self-attention outputs and norms of layers: give other runs")
    return rows


def similarity_rows(learned: Mapping[str, Learned]) -> list[dict]:
    """Returns a row for each two runs, layer and vector that they share: cosines of the changes and of the values."""
    rows = []
    for (name, own), (other_name, other) in combinations(learned.items(), 2):
        for vector in VECTORS:
            ours, theirs = own.vectors.get(vector, {}), other.vectors.get(vector, {})
            rows += [
                {
                    "run": name,
                    "other": other_name,
                    "layer": layer,
                    "vector": vector,
                    "units": len(value),
                    "cosine_change": cosine(change(vector, value), change(vector, theirs[layer])),
                    "cosine_value": cosine(value, theirs[layer]),
                }
                for layer, value in ours.items()
                if layer in theirs
            ]
    return rows


def importance_tables(rows: Sequence[Mapping], names: Sequence[str]) -> list[str]:
    """Returns a table for each vector: a line for each layer, a column for each run."""
    lines = []
    for vector in dict.fromkeys(row["vector"] for row in rows):
        own = {(row["layer"], row["run"]): row for row in rows if row["vector"] == vector}
        layers = dict.fromkeys(layer for layer, _ in own)
        cells = [[layer, *(spread_in_words(own.get((layer, name))) for name in names)] for layer in layers]
        lines += ["", f"|{SHOWN[vector]}| (L2 norm), and mean +- std of {vector} over units"]
        lines += table(["layer", *names], cells).splitlines()
    return lines


def spread_in_words(row: Mapping | None) -> str:
    """Returns a cell of :func:`importance_tables`; a hyphen where a run has no such vector."""
    return "-" if row is None else f"{row['importance']:.3f} ({row['mean']:.3f} +- {row['std']:.3f})"


def similarity_tables(rows: Sequence[Mapping], learned: Mapping[str, Learned]) -> list[str]:
    """Returns a matrix of runs for each vector, of means over the layers that two runs share."""
    if len(learned) < 2:
        return ["", "similarity needs two runs"]
    lines = []
    for (name, own), (other_name, other) in combinations(learned.items(), 2):
        shared = [layer for layer in own.layers if layer in other.layers]
        if not shared:
            lines.append(f"{name} and {other_name} share no adapted layer")
        elif own.layers != other.layers:
            lines.append(f"{name} and {other_name} are compared in the layers that they share: {', '.join(shared)}")
    lines = ["", *lines] if lines else lines
    for vector in dict.fromkeys(row["vector"] for row in rows):
        own_rows = [row for row in rows if row["vector"] == vector]
        units = own_rows[0]["units"]
        title = f"cosine similarity of {SHOWN[vector]}, mean over shared layers"
        lines += ["", f"{title} (unrelated vectors of {units} units: 0 +- {units**-0.5:.2f} in a layer)"]
        lines += matrix(own_rows, list(learned), "cosine_change")
        if vector in STARTS:
            lines += ["", f"cosine similarity of {vector} itself, near 1 whatever was learned"]
            lines += matrix(own_rows, list(learned), "cosine_value")
    return lines


def matrix(rows: Sequence[Mapping], names: Sequence[str], key: str) -> list[str]:
    """Returns a line and a column for each run; a hyphen where two have nothing to compare."""
    found: dict[frozenset[str], list[float]] = {}
    for row in rows:
        if row[key] is not None:
            found.setdefault(frozenset((row["run"], row["other"])), []).append(row[key])

    def cell(name: str, other: str) -> str:
        values = found.get(frozenset((name, other)))
        return "" if name == other else reporting.number(statistics.fmean(values) if values else None, 3)

    return table(["", *names], [[name, *(cell(name, other) for other in names)] for name in names]).splitlines()


def plot(values: Sequence[Mapping], alike: Sequence[Mapping]) -> Figure:
    """Returns heat maps by layer, a row for each vector: importance in each run, similarity of each two runs."""
    vectors = list(dict.fromkeys(row["vector"] for row in values))
    titles = [f"{what} {SHOWN[vector]}" for vector in vectors for what in ("L2 norm of", "cosine similarity of")]
    figure = make_subplots(rows=len(vectors), cols=2, subplot_titles=titles, horizontal_spacing=0.15)
    for number, vector in enumerate(vectors, 1):
        own = [(row["run"], row["layer"], row["importance"]) for row in values if row["vector"] == vector]
        figure.add_trace(heat_map(own, colorscale="Blues", zmin=0), row=number, col=1)
        pairs = [
            (f"{row['run']}, {row['other']}", row["layer"], row["cosine_change"])
            for row in alike
            if row["vector"] == vector
        ]
        figure.add_trace(heat_map(pairs, colorscale="RdBu", zmin=-1, zmax=1), row=number, col=2)
    figure.update_xaxes(title="layer", type="category")
    first = values[0]
    title = f"Hadamard adapters ({first['position']}): {first['model']}"
    return figure.update_layout(title=title, height=300 * len(vectors) + 100)


def heat_map(cells: Sequence[tuple[str, str, float | None]], **colours: object) -> Heatmap:
    """Returns a heat map of (row, layer, value), with the values written in."""
    found = {(line, layer): value for line, layer, value in cells}
    lines, layers = (list(dict.fromkeys(keys)) for keys in (zip(*found, strict=True) if found else ((), ())))
    z = [[found.get((line, layer)) for layer in layers] for line in lines]
    return Heatmap(x=layers, y=lines, z=z, texttemplate="%{z:.2f}", showscale=False, **colours)
