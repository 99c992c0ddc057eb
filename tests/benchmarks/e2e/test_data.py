"""The committed E2E data is the whole dataset, and a damaged copy of it is refused in one sentence."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.e2e.data import (
    DATA_DIRECTORY,
    ROWS_PER_SPLIT,
    Example,
    group_by_meaning_representation,
    load_split,
)
from harness.errors import UserError


@pytest.mark.parametrize(("split", "rows", "groups"), [("train", 42061, 4862), ("dev", 4672, 547), ("test", 4693, 630)])
def test_a_split_is_whole(split, rows, groups):
    examples = load_split(split)
    assert len(examples) == rows
    assert len(group_by_meaning_representation(examples)) == groups


def test_splits_share_no_meaning_representation():
    train, dev, test = (set(group_by_meaning_representation(load_split(split))) for split in ROWS_PER_SPLIT)
    assert not train & dev
    assert not train & test
    assert not dev & test


@pytest.mark.parametrize("split", ["dev", "test"])
def test_rows_of_one_meaning_representation_follow_each_other(split):
    examples = load_split(split)
    assert examples == [
        Example(mr, reference)
        for mr, references in group_by_meaning_representation(examples).items()
        for reference in references
    ]


def test_groups_keep_the_order_of_first_appearance():
    examples = [Example("b", "1"), Example("a", "2"), Example("b", "3")]
    assert list(group_by_meaning_representation(examples).items()) == [("b", ["1", "3"]), ("a", ["2"])]


def test_texts_keep_their_line_breaks():
    assert sum("\r\n" in example.reference for example in load_split("train")) == 2


def test_the_data_comes_with_its_licence():
    readme = (DATA_DIRECTORY / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in readme
    assert "Novikova" in readme


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"unknown E2E split 'valid': choose one of train, dev, test"):
        load_split("valid")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"dev split is missing at .*dev\.parquet"):
        load_split("dev", tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    whole = (DATA_DIRECTORY / "dev.parquet").read_bytes()
    (tmp_path / "dev.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable parquet file"):
        load_split("dev", tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.slice(1), "has 4671 rows, the E2E dev split has 4672"),
        (lambda table: table.rename_columns(["mr", "reference"]), "has no column 'meaning_representation'"),
        (lambda table: table.set_column(1, "reference", pa.array([None] * 4672, pa.string())), "no reference in row 0"),
        (lambda table: table.set_column(1, "reference", pa.array([" "] * 4672)), "no reference in row 0"),
        (lambda table: table.set_column(1, "reference", pa.array([1] * 4672)), "holds int64, not text"),
    ],
)
def test_other_data_is_refused(tmp_path, change, sentence):
    pq.write_table(change(pq.read_table(DATA_DIRECTORY / "dev.parquet")), tmp_path / "dev.parquet")
    with pytest.raises(UserError, match=sentence):
        load_split("dev", tmp_path)


def test_a_directory_of_ones_own_is_read(tmp_path):
    shutil.copy(DATA_DIRECTORY / "dev.parquet", tmp_path)
    assert load_split("dev", tmp_path) == load_split("dev")
