"""Ratios against bytes, drawn by plotly in one HTML file that opens without a network (5 MB, most of it the script)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from benchmarks.efficiency.report import MIB
from benchmarks.efficiency.timing import Ratio
from harness.errors import UserError
from harness.rundir import write_text


def check(path: Path) -> None:
    """Refuses what could not be drawn, before anything is measured."""
    if path.suffix != ".html":
        raise UserError(f"--plot {path}: the drawing is an HTML file, so give a name that ends in .html")
    if find_spec("plotly") is None:
        raise UserError("--plot needs plotly, which is not installed: run pip install plotly")


def write(path: Path, points: Mapping[str, tuple[int, Ratio]], title: str) -> None:
    """Draws a point for each row.

    Args:
        points: by row, the bytes saved for backward over the floor, and the ratio of its time to the floor's.
        title: under which conditions the points hold.
    """
    from plotly import graph_objects

    ratios = [ratio for _, ratio in points.values()]
    scatter = graph_objects.Scatter(
        x=[count / MIB for count, _ in points.values()],
        y=[ratio.median for ratio in ratios],
        text=list(points),
        mode="markers+text",
        textposition="top center",
        error_y={
            "type": "data",
            "array": [ratio.interval[1] - ratio.median for ratio in ratios],
            "arrayminus": [ratio.median - ratio.interval[0] for ratio in ratios],
        },
    )
    figure = graph_objects.Figure(scatter)
    figure.update_layout(
        title={"text": title, "font": {"size": 12}},
        xaxis_title="MiB saved for backward over the floor",
        yaxis_title="time of a step over the floor's (95 % interval)",
        template="plotly_white",
    )
    write_text(path, figure.to_html(include_plotlyjs=True))
