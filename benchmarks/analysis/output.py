"""What an analysis leaves behind: data for programs, a plot for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, one_line
from harness.rundir import write_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def prepare(directory: Path) -> None:
    """Makes the directory that an analysis writes to, before anything is computed.

    Raises:
        UserError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir {directory} cannot be made: {one_line(error)}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that have the same keys, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, data: Any) -> None:
    """Writes JSON that holds no NaN."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_plot(path: Path, figure: Figure) -> None:
    """Writes an HTML file that opens without a network (5 MB, most of it plotly's script)."""
    figure.update_layout(template="plotly_white")
    write_text(path, figure.to_html(include_plotlyjs=True))
