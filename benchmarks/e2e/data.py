"""The E2E NLG dataset (Novikova, Dusek and Rieser, SIGDIAL 2017) as committed in ``data/``.

A row pairs a meaning representation (MR) such as ``name[The Eagle], food[French]`` with one human reference. A system
is scored once per *distinct* MR, against all references of that MR.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UserError

DATA_DIRECTORY = Path(__file__).parent / "data"
ROWS_PER_SPLIT = {"train": 42061, "dev": 4672, "test": 4693}
COLUMNS = ("meaning_representation", "reference")


@dataclass(frozen=True)
class Example:
    """One row: a meaning representation and one reference, both in their original spelling."""

    meaning_representation: str
    reference: str


def load_split(split: str, directory: Path | None = None) -> list[Example]:
    """Reads and verifies one split, rows in their published order.

    Two train references hold a line break (``"\\r\\n"``) inside the text; nothing is changed here.

    Args:
        split: ``"train"``, ``"dev"`` or ``"test"``.
        directory: holds ``<split>.parquet``; the data committed with this module if None.

    Raises:
        UserError: if the split is unknown, or its file is missing, not readable as parquet or not the whole split.
    """
    if split not in ROWS_PER_SPLIT:
        raise UserError(f"unknown E2E split {split!r}: choose one of {', '.join(ROWS_PER_SPLIT)}")
    path = (DATA_DIRECTORY if directory is None else Path(directory)) / f"{split}.parquet"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"the E2E {split} split is missing at {path}: restore that file from the repository") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path} is not a readable parquet file ({reason}): restore it from the repository") from None
    _verify(table, split, path)
    columns = [table.column(name).to_pylist() for name in COLUMNS]
    return [Example(*row) for row in zip(*columns, strict=True)]


def group_by_meaning_representation(examples: Iterable[Example]) -> dict[str, list[str]]:
    """Maps each distinct MR to its references, both in order of first appearance.

    On dev and test this is the order that hypothesis files follow: 547 and 630 MRs.
    """
    groups: dict[str, list[str]] = {}
    for example in examples:
        groups.setdefault(example.meaning_representation, []).append(example.reference)
    return groups


def _verify(table: pa.Table, split: str, path: Path) -> None:
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}: restore it from the repository")
    if table.num_rows != ROWS_PER_SPLIT[split]:
        raise UserError(
            f"{path} has {table.num_rows} rows, the E2E {split} split has {ROWS_PER_SPLIT[split]}: "
            "restore it from the repository"
        )
    for name in COLUMNS:
        column = table.column(name)
        if not pa.types.is_string(column.type):
            raise UserError(f"column {name!r} of {path} holds {column.type}, not text: restore it from the repository")
        for row, text in enumerate(column.to_pylist()):
            if text is None or not text.strip():
                raise UserError(f"{path} has no {name} in row {row}: restore it from the repository")
