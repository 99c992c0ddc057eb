"""Every metric equals the official script on its own files. METEOR of TGen takes most of this file's time."""

from __future__ import annotations

import csv

import pytest

from benchmarks.e2e.data import group_by_meaning_representation, load_split
from benchmarks.e2e.metrics import METRICS, bleu, mteval, nist, ptb_python, score
from benchmarks.e2e.score import read_hypotheses, read_references

PUBLISHED = {
    "tgen": {
        "bleu": "0.6593",
        "nist": "8.5923",
        "meteor": "0.4483",
        "rouge_l": "0.6850",
        "cider": "2.2338",
        "bleu_mteval_p": "0.6593",
        "nist_mteval": "8.6094",
    },
    # METEOR of the example: test_captions.py, which has a running METEOR.
    "example": {
        "bleu": "0.7203",
        "nist": "7.7889",
        "rouge_l": "0.7910",
        "cider": "2.3039",
        "bleu_mteval_p": "0.7203",
        "nist_mteval": "7.8212",
    },
}


@pytest.fixture(scope="module")
def texts(oracles):
    return {
        "tgen": (
            read_hypotheses(oracles / "tgen_test_outputs.txt"),
            list(group_by_meaning_representation(load_split("test")).values()),
        ),
        "example": (
            read_hypotheses(oracles / "example" / "baseline-output.txt"),
            read_references(oracles / "example" / "devel-conc.txt"),
        ),
    }


@pytest.fixture(scope="module")
def found(texts):
    return {name: score(*texts[name], metrics=PUBLISHED[name]) for name in texts}


def segment_scores(oracles, name):
    with open(oracles / f"{name}_segment_scores.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_corpus(found, name):
    assert {metric: f"{value:.4f}" for metric, value in found[name].metrics.items()} == PUBLISHED[name]
    assert found[name].unavailable == {}
    assert list(found["tgen"].metrics)[:5] == list(METRICS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_output_of_the_captions_half(oracles, found, name):
    official = segment_scores(oracles, name)
    for metric, values in found[name].instances.items():
        assert [f"{value:.4f}" for value in values] == [
            row[metric.upper().replace("CIDER", "CIDEr")] for row in official
        ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_output_of_the_mteval_half(oracles, texts, name):
    """The official script scores each output as a corpus of its own, with its Python port."""
    for row, hypothesis, group in zip(segment_scores(oracles, name), *texts[name], strict=True):
        tokens = mteval.tokenize_all([hypothesis], [group], "mteval-p")
        assert row["sys_out"] == hypothesis
        assert f"{bleu.compute(*tokens, 'mteval-p'):.4f}" == row["BLEU"]
        assert f"{nist.compute(*tokens, 'mteval-p'):.4f}" == row["NIST"]


def test_outputs_need_no_java_for_tokens(texts):
    for hypotheses, groups in texts.values():
        for line in [*hypotheses, *(reference for group in groups for reference in group)]:
            ptb_python.tokenize(line)


def test_without_java_the_other_numbers_stay(texts, found, no_java):
    without = score(*texts["tgen"], metrics=["meteor", "rouge_l", "cider"])
    assert without.metrics == {name: found["tgen"].metrics[name] for name in ("rouge_l", "cider")}
    assert list(without.unavailable) == ["meteor"]
    assert "tok:ptb-python" in without.signatures["cider"]
