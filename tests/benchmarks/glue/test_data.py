"""Both forms of GLUE give the same examples, and files that are not GLUE are refused in one sentence."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from benchmarks.glue import data
from benchmarks.glue.data import Source, Split, load
from harness.errors import UserError

NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
REPOSITORY = Path(__file__).parents[3]


def without_sizes(source: Source) -> list[str]:
    """Returns the warnings that have nothing to do with the folder being small."""
    return [warning for warning in source.warnings if not re.fullmatch(r".* rows, the official split has .*", warning)]


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def change_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = change(path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def with_column(name: str, values: Callable[[list], object]) -> Callable[[pa.Table], pa.Table]:
    """Returns a change of one column of a table, which keeps what the table says about itself."""

    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        new = values(table.column(name).to_pylist())
        array = new if isinstance(new, pa.Array) else pa.array(new, table.column(name).type)
        return table.set_column(place, name, array).replace_schema_metadata(table.schema.metadata)

    return change


def put(row: int, value: object) -> Callable[[list], list]:
    """Returns a change of one value of a list, rows counted from 1."""
    return lambda values: [*values[: row - 1], value, *values[row:]]


def put_field(line: int, field: int, value: str) -> Callable[[list[str]], list[str]]:
    """Returns a change of one field of a line, lines counted from 1 and fields from 0."""

    def change(lines: list[str]) -> list[str]:
        fields = lines[line - 1].split("\t")
        return put(line, "\t".join(put(field % len(fields) + 1, value)(fields)))(lines)

    return change


class TestForms:
    @pytest.mark.parametrize("name", NAMES)
    def test_both_give_the_same_examples(self, name, glue_folder, declarations):
        """Texts hold quotes, letters beyond ASCII and blanks at their ends."""
        parquet = load(declarations[name], glue_folder(name, "parquet"))
        original = load(declarations[name], glue_folder(name, "original"))
        assert parquet.splits == original.splits
        assert parquet.splits.keys() == declarations[name].sizes.keys()
        assert parquet.origin == f"folder parquet/{name}, parquet"
        assert original.origin == f"folder original/{declarations[name].folder}, TSV"
        assert without_sizes(parquet) == without_sizes(original) == []

    @pytest.mark.parametrize("name", NAMES)
    def test_examples_are_those_of_the_file(self, name, glue_folder, declarations):
        folder = glue_folder(name)
        for split, read in load(declarations[name], folder).splits.items():
            table = pq.read_table(folder / name / f"{split}.parquet")
            columns = [table[column].to_pylist() for column in declarations[name].columns]
            assert read.texts == tuple(zip(*columns, strict=True))
            assert read.labels == tuple(table["label"].to_pylist())
            assert read.idx == tuple(table["idx"].to_pylist())

    def test_mrpc_before_its_split_gives_the_same_examples(self, glue_folder, declarations):
        unsplit = load(declarations["mrpc"], glue_folder("mrpc", "unsplit"))
        assert unsplit.splits == load(declarations["mrpc"], glue_folder("mrpc", "original")).splits
        assert unsplit.origin == "folder unsplit/MRPC, msr_paraphrase_train.txt"

    def test_mrpc_needs_the_ids_of_its_split(self, glue_folder, declarations):
        folder = glue_folder("mrpc", "unsplit")
        (folder / "MRPC" / "dev_ids.tsv").unlink()
        with pytest.raises(UserError, match=r"MRPC lacks dev_ids\.tsv"):
            load(declarations["mrpc"], folder)

    @pytest.mark.parametrize("name", ["mnli", "wnli"])
    @pytest.mark.parametrize("spelling", [0, 1], ids=["number", "word"])
    def test_a_label_is_a_number_or_a_word(self, name, spelling, glue_folder, declarations):
        folder = glue_folder(name, "original")
        expected = load(declarations[name], folder).splits["train"]
        for number, label in enumerate(expected.labels):
            written = (str(label), declarations[name].labels[label])[spelling]
            change_lines(folder / declarations[name].folder / "train.tsv", put_field(number + 2, -1, written))
        assert load(declarations[name], folder).splits["train"] == expected

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_line_ends_byte_order_marks_and_empty_lines_do_not_count(self, end, glue_folder, declarations):
        folder = glue_folder("rte", "original")
        expected = load(declarations["rte"], folder)
        path = folder / "RTE" / "train.tsv"
        text = path.read_text(encoding="utf-8").replace("\n", end)
        path.write_bytes(f"\ufeff{text}{end}{end}".encode())
        assert load(declarations["rte"], folder) == expected

    def test_shards_are_read_in_order(self, glue_folder, declarations):
        folder = glue_folder("rte")
        expected = load(declarations["rte"], folder)
        path = folder / "rte" / "train.parquet"
        table = pq.read_table(path)
        path.unlink()
        for shard, first, last in ((0, 0, 7), (1, 7, 20), (2, 20, 24)):
            pq.write_table(table.slice(first, last - first), folder / "rte" / f"train-{shard:05}-of-00003.parquet")
        assert load(declarations["rte"], folder) == expected

    def test_rows_without_an_index_are_counted(self, glue_folder, declarations):
        folder = glue_folder("rte")
        expected = load(declarations["rte"], folder)
        for path in (folder / "rte").iterdir():
            change_table(path, lambda table: table.drop_columns(["idx"]))
        assert load(declarations["rte"], folder) == expected

    def test_an_index_with_gaps_is_kept(self, glue_folder, declarations):
        folder = glue_folder("mrpc")
        change_table(folder / "mrpc" / "train.parquet", with_column("idx", lambda rows: [3 * row + 1 for row in rows]))
        assert load(declarations["mrpc"], folder).splits["train"].idx[:3] == (1, 4, 7)

    def test_examples_can_be_chosen(self):
        split = Split((("a",), ("b",), ("c",)), (0, 1, 0), (5, 6, 7))
        assert split.take([2, 0]) == Split((("c",), ("a",)), (0, 0), (7, 5))


class TestFolders:
    @pytest.mark.parametrize("name", ["STS-B", "stsb", "sts_b", "STSB"])
    def test_a_sub_folder_may_be_spelled_in_any_way(self, name, glue_folder, declarations):
        folder = glue_folder("stsb")
        (folder / "stsb").rename(folder / name)
        assert load(declarations["stsb"], folder).origin == f"folder parquet/{name}, parquet"

    def test_the_folder_may_be_the_task_s_own(self, glue_folder, declarations):
        folder = glue_folder("rte")
        assert load(declarations["rte"], folder / "rte") == load(declarations["rte"], folder)

    def test_the_origin_is_the_same_from_everywhere(self, glue_folder, declarations, monkeypatch):
        folder = glue_folder("rte")
        monkeypatch.chdir(folder / "rte")
        assert load(declarations["rte"], Path(".")).origin == load(declarations["rte"], folder).origin

    def test_tasks_share_a_folder(self, glue_folder, declarations):
        folder = glue_folder("rte")
        assert glue_folder("cola") == folder
        assert load(declarations["rte"], folder).splits != load(declarations["cola"], folder).splits

    def test_no_folder_is_refused(self, tmp_path, declarations):
        with pytest.raises(UserError, match=r"--data.dir \S*/none: there is no such folder: give one"):
            load(declarations["rte"], tmp_path / "none")

    def test_a_file_is_refused(self, tmp_path, declarations):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"--data.dir \S*/file: that is no folder: give one"):
            load(declarations["rte"], tmp_path / "file")

    def test_a_folder_without_the_task_is_refused(self, glue_folder, declarations):
        says = (
            r"has no MNLI: there is neither a sub-folder mnli or MNLI nor one of train.parquet, "
            r"validation_matched.parquet, .*, dev_mismatched.tsv: give --data.dir FOLDER"
        )
        with pytest.raises(UserError, match=says):
            load(declarations["mnli"], glue_folder("rte"))

    def test_two_folders_of_a_task_ask_for_a_choice(self, glue_folder, declarations):
        folder = glue_folder("stsb")
        shutil.copytree(folder / "stsb", folder / "STS-B")
        with pytest.raises(UserError, match="it holds both STS-B and stsb: give the one that is meant"):
            load(declarations["stsb"], folder)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("form", ["parquet", "original"])
    def test_a_missing_split_is_named(self, name, form, glue_folder, declarations):
        for split in declarations[name].sizes:
            folder = glue_folder(name, form)
            if form == "parquet":
                path = folder / name / f"{split}.parquet"
            else:
                path = folder / declarations[name].folder / f"{split.replace('validation', 'dev')}.tsv"
            path.unlink()
            with pytest.raises(UserError, match=rf"{path.parent} lacks {path.name}: take the file again from"):
                load(declarations[name], folder)

    def test_a_missing_shard_is_named(self, glue_folder, declarations):
        folder = glue_folder("rte")
        (folder / "rte" / "train.parquet").rename(folder / "rte" / "train-00001-of-00002.parquet")
        with pytest.raises(UserError, match=r"rte lacks train-00000-of-00002\.parquet"):
            load(declarations["rte"], folder)

    @pytest.mark.parametrize("other", ["train-00000-of-00001", "train-00001-of-00004"])
    def test_a_split_that_is_there_twice_is_refused(self, other, glue_folder, declarations):
        folder = glue_folder("rte")
        for name in (other, "train-00000-of-00002", "train-00001-of-00002"):
            shutil.copy(folder / "rte" / "train.parquet", folder / "rte" / f"{name}.parquet")
        with pytest.raises(UserError, match=r"has both train\S*.parquet and train\S*.parquet: keep those that belong"):
            load(declarations["rte"], folder)


def rename(old: str, new: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.rename_columns([new if name == old else name for name in table.column_names])


def other_classes(table: pa.Table) -> pa.Table:
    metadata = table.schema.metadata[b"huggingface"].replace(b'"entailment", "not_', b'"not_entailment", "')
    return table.replace_schema_metadata({"huggingface": metadata})


class TestDamagedParquet:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                rename("sentence2", "hypothesis"),
                "has no column 'sentence2', only sentence1, hypothesis, label, idx: take",
            ),
            (rename("idx", "label"), "has more than one column 'label'"),
            (rename("idx", "sentence1"), "has more than one column 'sentence1'"),
            (
                with_column("sentence1", lambda rows: pa.array(range(24))),
                "column 'sentence1' of .* holds int64, not text",
            ),
            (with_column("label", lambda rows: pa.array(map(str, rows))), "column 'label' .* string, not integer"),
            (with_column("label", lambda rows: pa.array(map(float, rows))), "column 'label' .* double, not integer"),
            (with_column("label", lambda rows: pa.array(map(bool, rows))), "column 'label' .* bool, not integer"),
            (with_column("idx", lambda rows: pa.array(map(str, rows))), "column 'idx' .* string, not integer"),
            (with_column("idx", put(4, None)), r"train\.parquet, row 4: it has no idx"),
            (
                with_column("label", put(3, -1)),
                r"train\.parquet, row 3: its label -1 is not one of 0 \(entailment\), 1 \(not_ent",
            ),
            (with_column("label", put(3, 2)), "row 3: its label 2 is not one of"),
            (with_column("label", put(3, None)), "row 3: its label None is not one of"),
            (
                with_column("sentence2", put(5, None)),
                r"train\.parquet, row 5: a text is empty, but the official split has no such rows",
            ),
            (with_column("sentence2", put(5, "")), "row 5: a text is empty"),
            (with_column("sentence1", put(5, " \u00a0")), "row 5: a text is empty"),
            (other_classes, r"numbers its labels \['not_entailment', 'entailment'\] and RTE has \['entailment', 'not_"),
            (lambda table: table.slice(0, 0), "has no rows of the split train"),
            (
                with_column("sentence1", lambda rows: pa.array([b"\xff"] * len(rows)).view(pa.string())),
                "is not a readable parquet file .*UTF8",
            ),
        ],
    )
    def test_it_is_refused(self, change, says, glue_folder, declarations):
        folder = glue_folder("rte")
        change_table(folder / "rte" / "train.parquet", change)
        with pytest.raises(UserError, match=says):
            load(declarations["rte"], folder)

    @pytest.mark.parametrize("score", [-0.25, 5.25, float("nan"), float("inf"), None])
    def test_a_score_that_cannot_be_is_refused(self, score, glue_folder, declarations):
        folder = glue_folder("stsb")
        change_table(folder / "stsb" / "validation.parquet", with_column("label", put(2, score)))
        says = rf"validation.parquet, row 2: its label {score} is not a number from 0 to 5: give a split with labels"
        with pytest.raises(UserError, match=says):
            load(declarations["stsb"], folder)

    def test_scores_are_floating_point_numbers(self, glue_folder, declarations):
        folder = glue_folder("stsb")
        change_table(folder / "stsb" / "train.parquet", with_column("label", lambda rows: pa.array(map(round, rows))))
        with pytest.raises(UserError, match=r"column 'label' of .* holds int64, not floating-point"):
            load(declarations["stsb"], folder)

    @pytest.mark.parametrize("keep", [0, 3, 100, 1000, -100, -4])
    def test_a_cut_file_is_refused(self, keep, glue_folder, declarations):
        folder = glue_folder("rte")
        path = folder / "rte" / "train.parquet"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match=r"rte/train.parquet is not a readable parquet file"):
            load(declarations["rte"], folder)

    def test_a_damaged_column_name_is_refused(self, glue_folder, declarations):
        folder = glue_folder("rte")
        path = folder / "rte" / "train.parquet"
        path.write_bytes(path.read_bytes().replace(b"sentence1", b"sentence\x9d"))
        with pytest.raises(UserError, match=r"rte/train\.parquet is not a readable parquet file"):
            load(declarations["rte"], folder)

    def test_a_row_of_a_later_shard_is_counted_in_its_file(self, glue_folder, declarations):
        folder = glue_folder("rte")
        path = folder / "rte" / "train.parquet"
        shutil.copy(path, folder / "rte" / "train-00000-of-00002.parquet")
        change_table(path, with_column("label", put(3, 9)))
        path.rename(folder / "rte" / "train-00001-of-00002.parquet")
        with pytest.raises(UserError, match=r"train-00001-of-00002.parquet, row 3: its label 9"):
            load(declarations["rte"], folder)

    def test_files_that_do_not_name_their_classes_are_read(self, glue_folder, declarations):
        folder = glue_folder("rte")
        expected = load(declarations["rte"], folder)
        for metadata in (None, {"huggingface": "{"}, {"huggingface": "[]"}, {"pandas": "{}"}):
            change_table(
                folder / "rte" / "train.parquet", lambda table, said=metadata: table.replace_schema_metadata(said)
            )
            assert load(declarations["rte"], folder) == expected

    def test_long_strings_are_text(self, glue_folder, declarations):
        folder = glue_folder("rte")
        expected = load(declarations["rte"], folder)
        long = with_column("sentence1", lambda rows: pa.array(rows, pa.large_string()))
        change_table(folder / "rte" / "train.parquet", long)
        assert load(declarations["rte"], folder) == expected


class TestDamagedTsv:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (
                put_field(1, 2, "hypothesis"),
                " has no column 'sentence2', only index, sentence1, hypothesis, label: take",
            ),
            (put_field(1, 0, "label"), " has more than one column 'label'"),
            (lambda lines: [line.replace("\t", ",") for line in lines], ", line 1: it is not separated by tabs"),
            (lambda lines: put(6, lines[5].replace("\t", ","))(lines), ", line 6: it is not separated by tabs"),
            (lambda lines: put(6, lines[5].rpartition("\t")[0])(lines), ", line 6: it has 3 columns, not 4"),
            (put_field(4, -1, "maybe"), r", line 4: its label 'maybe' is not one of 0 \(entailment\), 1 \(not_ent"),
            (put_field(4, -1, "2"), ", line 4: its label '2' is not one of"),
            (put_field(4, -1, "-1"), ", line 4: its label '-1' is not one of"),
            (put_field(4, -1, ""), ", line 4: its label '' is not one of"),
            (put_field(4, 1, ""), ", line 4: a text is empty, but the official split has no such rows"),
            (put_field(4, 2, "  "), ", line 4: a text is empty"),
            (lambda lines: lines[:1], " has no rows of the split train"),
            (lambda lines: [], " has no rows of the split train"),
        ],
    )
    def test_it_is_refused(self, change, says, glue_folder, declarations):
        folder = glue_folder("rte", "original")
        change_lines(folder / "RTE" / "train.tsv", change)
        with pytest.raises(UserError, match=rf"/RTE/train\.tsv{says}"):
            load(declarations["rte"], folder)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda lines: [line.replace("\t", ",") for line in lines], "line 1: it is not separated by tabs"),
            (lambda lines: ["source\tlabel\tmark\tsentence", *lines], "line 1: its label 'label' is not one of"),
            (lambda lines: put(2, "a\t1")(lines), "line 2: it has 2 columns, not 4"),
        ],
    )
    def test_files_without_a_header_are_refused(self, change, says, glue_folder, declarations):
        folder = glue_folder("cola", "original")
        change_lines(folder / "CoLA" / "dev.tsv", change)
        with pytest.raises(UserError, match=rf"/CoLA/dev\.tsv, {says}"):
            load(declarations["cola"], folder)

    @pytest.mark.parametrize("score", ["-0.25", "5.25", "nan", "inf", "", "high"])
    def test_a_score_that_cannot_be_is_refused(self, score, glue_folder, declarations):
        folder = glue_folder("stsb", "original")
        change_lines(folder / "STS-B" / "dev.tsv", put_field(2, -1, score))
        with pytest.raises(UserError, match=rf"dev.tsv, line 2: its label '{score}' is not a number from 0 to 5"):
            load(declarations["stsb"], folder)

    def test_another_encoding_is_refused(self, glue_folder, declarations):
        folder = glue_folder("rte", "original")
        path = folder / "RTE" / "train.tsv"
        lines = path.read_bytes().split(b"\n")
        first = next(number for number, line in enumerate(lines, 1) if "é".encode() in line)
        path.write_bytes("\n".join(line.decode() for line in lines).encode("latin-1"))
        with pytest.raises(UserError, match=rf"/RTE/train\.tsv, line {first}: it is not UTF-8"):
            load(declarations["rte"], folder)

    def test_lines_of_the_unsplit_mrpc_are_counted_in_its_file(self, glue_folder, declarations):
        folder = glue_folder("mrpc", "unsplit")
        change_lines(folder / "MRPC" / "msr_paraphrase_train.txt", put_field(9, 0, "7"))
        with pytest.raises(UserError, match=r"msr_paraphrase_train.txt, line 9: its label '7'"):
            load(declarations["mrpc"], folder)

    def test_ids_of_mrpc_that_tabs_do_not_separate_are_refused(self, glue_folder, declarations):
        folder = glue_folder("mrpc", "unsplit")
        change_lines(folder / "MRPC" / "dev_ids.tsv", lambda lines: [line.replace("\t", " ") for line in lines])
        with pytest.raises(UserError, match=r"dev_ids.tsv, line 1: it is not separated by tabs"):
            load(declarations["mrpc"], folder)


class TestWarnings:
    @pytest.mark.parametrize("name", NAMES)
    def test_rows_are_counted(self, name, glue_folder, declarations):
        warnings = load(declarations[name], glue_folder(name, train=30, validation=6)).warnings
        assert warnings == tuple(
            f"{split} has {30 if split == 'train' else 6} rows, the official split has {rows:,}"
            for split, rows in declarations[name].sizes.items()
        )

    def test_short_lines_of_qqp_are_left_out(self, glue_folder, declarations):
        folder = glue_folder("qqp", "original")
        expected = load(declarations["qqp"], folder)
        cut = ["1\t2\t3\tthe cat", "", "sees the dog\t0", "a dog"]  # as line breaks inside a text make them
        change_lines(folder / "QQP" / "train.tsv", lambda lines: [*lines[:5], *cut, *lines[5:]])
        source = load(declarations["qqp"], folder)
        assert source.splits == expected.splits
        (warning,) = without_sizes(source)
        assert warning == "train.tsv: lines left out because they end too early, as in nyu-mll/glue: 3"

    @pytest.mark.parametrize(("form", "unit", "first"), [("parquet", "row", 1), ("original", "line", 2)])
    def test_empty_texts_of_qqp_are_left_out(self, form, unit, first, glue_folder, declarations):
        folder = glue_folder("qqp", form)
        expected = load(declarations["qqp"], folder)
        empty_texts(folder, form, "train", (3, 7))
        source = load(declarations["qqp"], folder)
        rows = [row for row in range(24) if row not in (3, 7)]
        assert source.splits == {**expected.splits, "train": expected.splits["train"].take(rows)}
        (warning,) = without_sizes(source)
        assert warning == f"train: rows left out because a text is empty: 2 ({unit} {3 + first}, {unit} {7 + first})"
        assert set(expected.warnings) < set(source.warnings)  # those left out count as rows of the split

    @pytest.mark.parametrize(("form", "unit", "first"), [("parquet", "row", 1), ("original", "line", 2)])
    @pytest.mark.parametrize(("split", "rows", "most"), [("train", (3, 7, 9), 2), ("validation", (3,), "no")])
    def test_more_empty_texts_are_refused(self, form, unit, first, split, rows, most, glue_folder, declarations):
        folder = glue_folder("qqp", form)
        empty_texts(folder, form, split, rows)
        place = rf", {unit} {rows[-1] + first}"
        says = rf"{place}: a text is empty, but the official split has {most} such rows"
        with pytest.raises(UserError, match=says):
            load(declarations["qqp"], folder)


def empty_texts(folder: Path, form: str, split: str, rows: tuple[int, ...]) -> None:
    """Empties the second question in some rows of QQP, counted from 0."""
    for row in rows:
        if form == "parquet":
            change_table(folder / "qqp" / f"{split}.parquet", with_column("question2", put(row + 1, "")))
        else:
            file = split.replace("validation", "dev") + ".tsv"
            change_lines(folder / "QQP" / file, put_field(row + 2, 4, ""))


class TestHub:
    @pytest.mark.parametrize("name", ["rte", "mnli"])
    def test_its_files_are_read(self, name, glue_folder, declarations, monkeypatch):
        folder = glue_folder(name)
        asked = {}

        def download(repository, **settings):
            asked.update(settings, repository=repository)
            return str(folder)

        monkeypatch.setattr(data, "snapshot_download", download)
        source = load(declarations[name], None)
        assert source.splits == load(declarations[name], folder).splits
        assert source.origin == f"nyu-mll/glue on the model hub, revision {folder.name}"
        assert asked["repository"] == "nyu-mll/glue"
        assert asked["repo_type"] == "dataset"
        wanted = [f"{name}/{split}-00000-of-00001.parquet" for split in declarations[name].sizes]
        offered = [*wanted, f"{name}/test_matched-00000-of-00001.parquet", f"{name}/test-00000-of-00001.parquet"]
        assert [path for path in offered if any(Path(path).match(to) for to in asked["allow_patterns"])] == wanted

    @pytest.mark.parametrize(
        "error",
        [LocalEntryNotFoundError("offline"), ConnectionError("offline"), ValueError("Unknown scheme for proxy URL")],
        ids=lambda error: type(error).__name__,
    )
    def test_without_it_a_folder_is_asked_for(self, error, declarations, monkeypatch):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(data, "snapshot_download", download)
        says = (
            r"GLUE is not part of this repository: .*; give --data\.dir FOLDER with the parquet or TSV files of GLUE$"
        )
        with pytest.raises(UserError, match=says):
            load(declarations["rte"], None)

    def test_a_cache_with_another_task_only_is_no_source(self, glue_folder, declarations, monkeypatch):
        folder = glue_folder("cola")
        monkeypatch.setattr(data, "snapshot_download", lambda *_, **__: str(folder))
        with pytest.raises(
            UserError, match=r"GLUE is not part of this repository: .* no rte .*; give --data\.dir FOLDER"
        ):
            load(declarations["rte"], None)


@pytest.fixture(scope="module")
def official() -> Path:
    """GLUE itself; not part of this repository, since its texts come under many licences."""
    folder = Path(os.environ.get("HADAMARD_SHARED", REPOSITORY.parent / "shared")) / "data" / "glue"
    if not folder.is_dir():
        pytest.skip(f"no GLUE at {folder}: set HADAMARD_SHARED to the folder that holds data/glue")
    return folder


class TestOfficialFiles:
    @pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "rte", "wnli"])
    def test_they_are_whole(self, name, official, declarations):
        source = load(declarations[name], official)
        assert source.warnings == ()
        assert {split: len(read.labels) for split, read in source.splits.items()} == declarations[name].sizes
        assert all(len(set(read.idx)) == len(read.idx) for read in source.splits.values())

    def test_what_is_missing_is_named(self, official, declarations):
        if (official / "qnli" / "train.parquet").exists():
            pytest.skip("QNLI is whole here")
        with pytest.raises(UserError, match=r"qnli lacks train\.parquet: take the file again from nyu-mll/glue"):
            load(declarations["qnli"], official)
