"""Reads a GLUE task, from parquet files like those of the hub's ``nyu-mll/glue`` or from the original TSVs.

GLUE is not part of this repository, since its texts come under many licences. TSVs are read by the rules that the
hub's files were made by: tabs separate, quotes are plain characters, empty lines do not count, lines end wherever
Python's text files end them. Both forms then give the same examples in the same order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

from benchmarks.glue.declaration import Declaration
from harness.errors import UserError, one_line
from harness.hub import hub_errors

REPOSITORY = "nyu-mll/glue"
LABEL, INDEX = "label", "idx"
HIGHEST_SCORE = 5

# MRPC before GLUE's download script split it: the pairs of both splits, and the ids of those of validation
PAIRS, VALIDATION_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"
PAIR_IDS = ("#1 ID", "#2 ID")

GIVE = "give --data.dir FOLDER with the parquet or TSV files of GLUE"
RESTORE = f"take the file again from {REPOSITORY} or from GLUE's own download"


@dataclass(frozen=True)
class Split:
    """The examples of one split.

    Attributes:
        texts: the text columns of each example, in the declaration's order.
        labels: the number of each example's class, or its score.
        idx: what the hub's files call each example; without such a column, its row from 0.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...] | tuple[float, ...]
    idx: tuple[int, ...]

    def take(self, rows: Iterable[int]) -> Split:
        """Returns the examples in these rows, counted from 0, in this order."""
        rows = tuple(rows)
        return Split(*(tuple(values[row] for row in rows) for values in (self.texts, self.labels, self.idx)))


@dataclass(frozen=True)
class Source:
    """A task's splits as they were found.

    Attributes:
        splits: by the names in the declaration's ``sizes``.
        origin: where they are from, in words that mean the same on other machines.
        warnings: in what they differ from the official splits.
    """

    splits: Mapping[str, Split]
    origin: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """What one file has of a split, before its texts and labels are checked; ``numbers`` are its rows or lines."""

    path: Path
    unit: str
    numbers: Sequence[int]
    texts: Sequence[tuple[str | None, ...]]
    labels: Sequence[Any]
    idx: Sequence[int] | None = None
    short_lines: int = 0


def load(declaration: Declaration, directory: Path | None) -> Source:
    """Reads and checks all splits of a task.

    Args:
        declaration: the task.
        directory: holds the task's files or a sub-folder with them, named after the task; the hub is asked if None.

    Raises:
        UserError: the files cannot be had, one is missing or damaged, or an example lacks a text or has a label that
            the task does not know.
    """
    if directory is None:
        folder, origin = _download(declaration)
    else:
        folder = _find(declaration, Path(directory))
        origin = "folder " + "/".join(Path(os.path.abspath(folder)).parts[1:][-2:])
    form, parts = _read(declaration, folder)
    splits, warnings = {}, []
    for split in declaration.sizes:
        splits[split], found = _check(declaration, split, parts[split])
        warnings += found
    return Source(splits, origin if directory is None else f"{origin}, {form}", tuple(warnings))


def _download(declaration: Declaration) -> tuple[Path, str]:
    subject = "GLUE is not part of this repository"
    # not the test splits: they have no labels, and that of QQP is larger than its training split
    patterns = [f"{declaration.name}/{split}*.parquet" for split in declaration.sizes]
    with hub_errors(subject, "data set", GIVE):
        snapshot = Path(snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=patterns))
    folder = snapshot / declaration.name
    if not folder.is_dir():  # a machine without network that has another task in its cache
        raise UserError(f"{subject}: the hub's cache on this machine has no {declaration.name} of {REPOSITORY}; {GIVE}")
    return folder, f"{REPOSITORY} on the model hub, revision {snapshot.name}"


def _find(declaration: Declaration, directory: Path) -> Path:
    if not directory.is_dir():
        what = "that is no folder" if directory.exists() else "there is no such folder"
        raise UserError(f"--data.dir {directory}: {what}: give one with the parquet or TSV files of GLUE")
    names = {_plain(declaration.name), _plain(declaration.folder)}
    inside = sorted(path for path in directory.iterdir() if path.is_dir() and _plain(path.name) in names)
    if len(inside) > 1:
        found = " and ".join(path.name for path in inside)
        raise UserError(f"--data.dir {directory}: it holds both {found}: give the one that is meant")
    return inside[0] if inside else directory


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _read(declaration: Declaration, folder: Path) -> tuple[str, dict[str, list[_Part]]]:
    """Returns the form of the files in a folder, in words, and what they hold of each split."""
    shards = {split: _shards(folder, split) for split in declaration.sizes}
    if any(shards.values()):
        for split, paths in shards.items():
            if not paths:
                raise UserError(f"{folder} lacks {split}.parquet: {RESTORE}")
        parts = {split: [_read_parquet(declaration, path) for path in paths] for split, paths in shards.items()}
        return "parquet", parts
    files = {split: folder / (split.replace("validation", "dev") + ".tsv") for split in declaration.sizes}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing and declaration.name == "mrpc" and (folder / PAIRS).is_file():
        return PAIRS, _read_pairs(declaration, folder)
    if len(missing) == len(files):
        wanted = ", ".join([f"{split}.parquet" for split in shards] + missing)
        raise UserError(
            f"{folder} has no {declaration.folder}: there is neither a sub-folder {declaration.name} or "
            f"{declaration.folder} nor one of {wanted}: {GIVE}"
        )
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}: {RESTORE}")
    return "TSV", {split: [_read_tsv(declaration, path)] for split, path in files.items()}


def _shards(folder: Path, split: str) -> list[Path]:
    """Returns the files of a split in their order; none if it has none.

    Raises:
        UserError: a shard is missing, or the split is there twice.
    """
    name = re.compile(rf"{split}(-\d+-of-(\d+))?\.parquet")
    found = {path.name: match[2] for path in sorted(folder.iterdir()) if (match := name.fullmatch(path.name))}
    if not found:
        return []
    first, count = next(iter(found.items()))
    whole = [f"{split}-{i:05}-of-{count}.parquet" for i in range(int(count))] if count else [first]
    for other in sorted(found.keys() - set(whole)):
        raise UserError(f"{folder} has both {first} and {other}: keep those that belong together")
    for shard in whole:
        if shard not in found:
            raise UserError(f"{folder} lacks {shard}: {RESTORE}")
    return [folder / shard for shard in whole]


def _read_parquet(declaration: Declaration, path: Path) -> _Part:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            optional = [INDEX] if INDEX in schema.names else []
            _check_columns(path, (*declaration.columns, LABEL, *optional), schema.names)
            _check_types(declaration, path, schema)
            table = file.read(columns=[*declaration.columns, LABEL, *optional])
        table.validate(full=True)  # that texts are UTF-8, among others
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last from a damaged column name
        raise UserError(f"{path} is not a readable parquet file ({one_line(error)}): {RESTORE}") from None
    texts = [table.column(column).to_pylist() for column in declaration.columns]
    idx = table.column(INDEX).to_pylist() if optional else None
    if idx and None in idx:
        raise UserError(f"{path}, row {idx.index(None) + 1}: it has no {INDEX}: {RESTORE}")
    rows = range(1, table.num_rows + 1)
    return _Part(path, "row", rows, list(zip(*texts, strict=True)), table.column(LABEL).to_pylist(), idx)


def _check_columns(path: Path, wanted: Sequence[str], found: Sequence[str]) -> None:
    for column in wanted:
        if column not in found:
            raise UserError(f"{path} has no column {column!r}, only {', '.join(found)[:300]}: {RESTORE}")
        if found.count(column) > 1:
            raise UserError(f"{path} has more than one column {column!r}: {RESTORE}")


def _check_types(declaration: Declaration, path: Path, schema: pa.Schema) -> None:
    is_integer, is_text = pa.types.is_integer, lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)
    wanted: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        **dict.fromkeys(declaration.columns, (is_text, "text")),
        LABEL: (pa.types.is_floating, "floating-point") if declaration.is_regression else (is_integer, "integer"),
        INDEX: (is_integer, "integer"),
    }
    for column, (is_right, name) in wanted.items():
        if column in schema.names and not is_right(schema.field(column).type):
            raise UserError(f"column {column!r} of {path} holds {schema.field(column).type}, not {name}: {RESTORE}")
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][LABEL]["names"]
    except (KeyError, TypeError, ValueError):
        return  # written by something else than the datasets library, so that nothing says what the numbers mean
    if names != list(declaration.labels):
        raise UserError(
            f"{path} numbers its labels {names} and {declaration.folder} has {list(declaration.labels)}: {RESTORE}"
        )


def _read_tsv(declaration: Declaration, path: Path) -> _Part:
    columns = (*(declaration.original_columns or declaration.columns), declaration.original_label)
    numbers, rows, short = _lines(path, columns, declaration.original_header, declaration.has_short_lines)
    return _Part(path, "line", numbers, [row[:-1] for row in rows], [row[-1] for row in rows], short_lines=short)


def _read_pairs(declaration: Declaration, folder: Path) -> dict[str, list[_Part]]:
    path, ids_path = folder / PAIRS, folder / VALIDATION_IDS
    if not ids_path.is_file():
        raise UserError(f"{folder} lacks {VALIDATION_IDS}, which says what in {PAIRS} is validation: {RESTORE}")
    _, ids, _ = _lines(ids_path, PAIR_IDS, header=PAIR_IDS)
    validation = set(ids)
    numbers, rows, _ = _lines(path, (*PAIR_IDS, *declaration.original_columns, declaration.original_label))
    parts = {}
    for split in declaration.sizes:
        chosen = [i for i, row in enumerate(rows) if (row[:2] in validation) == (split != "train")]
        texts, labels = [rows[i][2:-1] for i in chosen], [rows[i][-1] for i in chosen]
        parts[split] = [_Part(path, "line", [numbers[i] for i in chosen], texts, labels)]
    return parts


def _lines(
    path: Path, wanted: Sequence[str], header: Sequence[str] | None = None, skip_short: bool = False
) -> tuple[list[int], list[tuple[str, ...]], int]:
    """Reads columns of a file that tabs separate.

    Args:
        path: the file.
        wanted: names of columns, two or more.
        header: the names of all columns; the first line has them if None.
        skip_short: whether to leave out lines that end before a wanted column.

    Returns:
        For each row the number of its line, counted from 1, and what is in its wanted columns; the number of lines
        that were left out.

    Raises:
        UserError: the file is not UTF-8, or it or a line of it lacks a column.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: it is not UTF-8: {RESTORE}") from None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line)
    if header is None:
        number, line = next(numbered, (1, "\t".join(wanted)))  # an empty file lacks rows, not columns
        header = line.split("\t")
        if len(header) == 1:
            raise UserError(f"{path}, line {number}: it is not separated by tabs: {RESTORE}")
        _check_columns(path, wanted, header)
    places = [header.index(column) for column in wanted]
    numbers, rows, short = [], [], 0
    select, last = itemgetter(*places), max(places)
    for number, line in numbered:
        fields = line.split("\t")
        if len(fields) > last:
            numbers.append(number)
            rows.append(select(fields))
        elif skip_short:
            short += 1
        elif len(fields) == 1:
            raise UserError(f"{path}, line {number}: it is not separated by tabs: {RESTORE}")
        else:
            raise UserError(f"{path}, line {number}: it has {len(fields)} columns, not {len(header)}: {RESTORE}")
    return numbers, rows, short


def _check(declaration: Declaration, split: str, parts: Sequence[_Part]) -> tuple[Split, list[str]]:
    """Returns a split with its labels as numbers, and in what it differs from the official one.

    Raises:
        UserError: it has no rows, or a row lacks a text or has a label that the task does not know.
    """
    number_of, known = _numbering(declaration)
    may_be_empty = declaration.empty_texts if split == "train" else 0
    texts, labels, indices, empty, count = [], [], [], [], 0
    for part in parts:
        own = range(count, count + len(part.texts)) if part.idx is None else part.idx
        count += len(part.texts)
        for number, example, value, index in zip(part.numbers, part.texts, part.labels, own, strict=True):
            if not all(text and not text.isspace() for text in example):
                empty.append(f"{part.unit} {number}")
                if len(empty) > may_be_empty:
                    most = may_be_empty or "no"
                    raise UserError(
                        f"{part.path}, {empty[-1]}: a text is empty, but the official split has {most} such rows: "
                        f"{RESTORE}"
                    )
                continue
            label = number_of(value)
            if label is None:
                raise UserError(
                    f"{part.path}, {part.unit} {number}: its label {value!r} is not {known}: give a split with labels"
                )
            texts.append(example)
            labels.append(label)
            indices.append(index)
    if not texts:
        raise UserError(f"{parts[0].path} has no rows of the split {split}: {RESTORE}")
    if declaration.is_regression:  # as the hub's files hold them
        labels = pa.array(labels, pa.float32()).to_pylist()
    warnings = [
        f"{part.path.name}: lines left out because they end too early, as in {REPOSITORY}: {part.short_lines}"
        for part in parts
        if part.short_lines
    ]
    if empty:
        warnings.append(f"{split}: rows left out because a text is empty: {len(empty)} ({', '.join(empty)})")
    if count != declaration.sizes[split]:
        warnings.append(f"{split} has {count:,} rows, the official split has {declaration.sizes[split]:,}")
    return Split(tuple(texts), tuple(labels), tuple(indices)), warnings


def _numbering(declaration: Declaration) -> tuple[Callable[[Any], int | float | None], str]:
    """Returns what makes a number of a label, or None of one that cannot be, and in words what can be."""
    if declaration.is_regression:
        return _score, f"a number from 0 to {HIGHEST_SCORE}"
    labels = list(enumerate(declaration.labels))
    numbers = {spelling: number for number, name in labels for spelling in (number, str(number), name)}
    return numbers.get, "one of " + ", ".join(f"{number} ({name})" for number, name in labels)


def _score(value: str | float | None) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if 0 <= score <= HIGHEST_SCORE else None
