"""The papers' parameter counts, row by row, on the real architectures without weights."""

from __future__ import annotations

import pytest

from benchmarks.published.parameters import ROWS

# by hand, from the formulas: d = 1024, 24 layers, feed-forwards of 4096
D, LAYERS = 1024, 24
FORMULAS = {
    ("pfeiffer", 64): LAYERS * (2 * D * 64 + 64 + D),
    ("pfeiffer", 16): LAYERS * (2 * D * 16 + 16 + D),
    ("houlsby", 64): 2 * LAYERS * (2 * D * 64 + 64 + D),
    ("houlsby", 8): 2 * LAYERS * (2 * D * 8 + 8 + D),
    ("houlsby", 112): 2 * LAYERS * (2 * D * 112 + 112 + D),
    ("lin", 6): LAYERS * (2 * D * 6 + 6 + D + 2 * D),
    ("lin", 224): LAYERS * (2 * D * 224 + 224 + D + 2 * D),
    ("prelayer", 14): LAYERS * D * 14,
    ("lora", 8): 2 * LAYERS * 2 * D * 8,
    ("lora", 4): 2 * LAYERS * 2 * D * 4,
    ("vera", 256): 2 * LAYERS * (256 + D),
    ("vera", 1024): 2 * LAYERS * (1024 + D),
    ("fourierft", 1000): 2 * LAYERS * 1000,
    ("hut", 8): 2 * LAYERS * (2 * D * 8 + 2 * D),
    ("hut", 4): 2 * LAYERS * (2 * D * 4 + 2 * D),
    ("top2",): 2 * (12 * D * D + 13 * D),
    ("full", 1): 354_310_144,
    ("full", 3): 354_823_168,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"table {row.table}, {row.row} {row.printed}M")
def test_row(row):
    counts = row.counted()
    key = (row.method, row.table) if row.method == "full" else (row.method, *row.settings.values())
    whole = counts.adapter + (counts.norm if row.method in ("full", "top2") else 0)
    assert whole == FORMULAS[key]
    digits = len(row.printed.partition(".")[2])
    is_rounding = round(whole / 1e6, digits) == float(row.printed)
    assert is_rounding == (not row.why or row.why.startswith("norms"))


def test_both_tables_are_complete():
    assert [sum(row.table == number for row in ROWS) for number in (1, 3)] == [9, 10]
