"""ROUGE-L, CIDEr and METEOR. The tests of this file start METEOR once."""

from __future__ import annotations

import csv

import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from benchmarks.e2e.metrics import coco, java, meteor, ptb
from benchmarks.e2e.score import read_hypotheses, read_references

HYPOTHESES = ["the eagle is a cheap pub", "", "aromi serves french food near the river"]
REFERENCES = [
    ["the eagle is a cheap pub", "a low-priced pub is the eagle"],
    ["zizzi has a low rating"],
    ["near the river aromi offers french food", "aromi sells meals"],
]


@pytest.fixture(scope="module")
def process():
    with meteor.Meteor() as running:
        yield running


def test_rouge_l_by_hand():
    # Longest common subsequence a, b, d: precision 3/4, recall 3/5, beta 1.2.
    expected = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert coco.rouge_l(["a b c d"], [["a x b y d"]]) == (pytest.approx(expected), [pytest.approx(expected)])


def test_cider_of_copies_is_10_and_of_a_single_output_0():
    lines = ["a b c d e", "f g h i j"]
    assert coco.cider(lines, [[line] for line in lines])[0] == pytest.approx(10)
    assert coco.cider(lines[:1], [lines[:1]])[0] == 0


@pytest.mark.parametrize(("compute", "scorer"), [(coco.rouge_l, Rouge), (coco.cider, Cider)])
def test_equal_to_pycocoevalcap(compute, scorer):
    mean, each = scorer().compute_score(
        {f"inst-{number}": group for number, group in enumerate(REFERENCES)},
        {f"inst-{number}": [line] for number, line in enumerate(HYPOTHESES)},
    )
    assert compute(HYPOTHESES, REFERENCES) == (mean, list(each))


def test_meteor(process):
    done = []
    corpus, each = process.compute(HYPOTHESES, REFERENCES, lambda *progress: done.append(progress))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert each[:2] == [1.0, 0.0]
    assert 0 < corpus < each[0]
    swapped = [group[::-1] for group in REFERENCES]
    assert process.compute(HYPOTHESES, swapped) == (pytest.approx(corpus), pytest.approx(each))
    # One output alone: the corpus is that output.
    assert process.compute(HYPOTHESES[2:], REFERENCES[2:]) == (pytest.approx(each[2]), [pytest.approx(each[2])])


def test_meteor_of_the_official_example(process, oracles):
    tokens = ptb.tokenize_all(
        read_hypotheses(oracles / "example" / "baseline-output.txt"),
        read_references(oracles / "example" / "devel-conc.txt"),
    )
    corpus, each = process.compute(tokens.hypotheses, tokens.references)
    with open(oracles / "example_segment_scores.tsv", encoding="utf-8", newline="") as file:
        official = [row["METEOR"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert f"{corpus:.4f}" == "0.4801"
    assert [f"{value:.4f}" for value in each] == official


def test_a_meteor_that_dies_is_told_with_its_code():
    with meteor.Meteor() as dying:
        dying._process.kill()
        with pytest.raises(java.JavaError, match=r"METEOR ended with code -9 before all was scored"):
            dying.compute(HYPOTHESES, REFERENCES)


def test_a_meteor_that_cannot_start_is_told_with_its_reason(monkeypatch):
    monkeypatch.setattr(meteor, "_JVM_OPTIONS", ("-Xmx1k",))
    with meteor.Meteor() as broken, pytest.raises(java.JavaError, match=r"METEOR ended with code 1 .*: \S"):
        broken.compute(HYPOTHESES, REFERENCES)


def test_the_process_ends_with_its_context():
    with pytest.raises(RuntimeError, match="something else"), meteor.Meteor() as running:
        raise RuntimeError("something else")
    assert running._process.poll() is not None
