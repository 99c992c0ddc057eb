"""BLEU and NIST: hand-computed cases of both variants, and sacrebleu's BLEU where it has to be the same."""

from __future__ import annotations

import math
import random

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.e2e.data import group_by_meaning_representation, load_split
from benchmarks.e2e.metrics import bleu, mteval, nist, score

VARIANTS = ("mteval-p", "mteval")


def bleu_of(hypotheses, references, variant):
    return bleu.compute(*mteval.tokenize_all(hypotheses, references, variant), variant)


def nist_of(hypotheses, references, variant):
    return nist.compute(*mteval.tokenize_all(hypotheses, references, variant), variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Eagle, £20-25.", ["the", "eagle", ",", "£20", "-", "25", "."]),
        ("It's Café Adriatic", ["it's", "café", "adriatic"]),
        ("rated 3.5\tout of 5.0.", ["rated", "3.5", "out", "of", "5.0", "."]),
        ("&quot;A&amp;B&quot; (pub)", ['"', "a", "&", "b", '"', "(", "pub", ")"]),
        ("&AMP;", ["&", "amp", ";"]),
    ],
)
def test_13a_tokens(text, tokens, variant):
    assert mteval.tokenize(text, variant) == tokens


def test_the_variants_differ_in_capital_accents_and_empty_outputs():
    assert [mteval.tokenize("CAFÉ", variant) for variant in VARIANTS] == [["café"], ["cafÉ"]]
    assert [mteval.tokenize(" ", variant) for variant in VARIANTS] == [[""], []]


def test_bleu_equals_sacrebleu_on_a_split():
    groups = list(group_by_meaning_representation(load_split("dev")).values())[:100]
    rng = random.Random(0)
    hypotheses = [" ".join(rng.choice(group).split()[: rng.randint(8, 40)]) for group in groups]
    hypotheses = hypotheses[1:] + hypotheses[:1]
    columns = [[group[i] if i < len(group) else None for group in groups] for i in range(max(map(len, groups)))]
    expected = sacrebleu.corpus_bleu(hypotheses, columns, lowercase=True).score / 100
    assert 0.05 < expected < 0.95
    for variant in VARIANTS:
        assert bleu_of(hypotheses, groups, variant) == pytest.approx(expected, rel=1e-12)


def test_bleu_where_orders_have_no_match():
    # 2 of 4, 1 of 3, then none of 2 and none of 1, and no brevity penalty.
    arguments = (["a b c d"], [["a b x y"]])
    assert bleu_of(*arguments, "mteval") == pytest.approx((2 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** 0.25)
    assert bleu_of(*arguments, "mteval") == pytest.approx(sacrebleu.corpus_bleu(["a b c d"], [["a b x y"]]).score / 100)
    assert bleu_of(*arguments, "mteval-p") == pytest.approx((2 / 4 * 1 / 3 * 1e-15 / 2 * 1e-15) ** 0.25)


def test_bleu_where_no_output_has_four_tokens():
    assert bleu_of(["a b c"], [["a b c"]], "mteval") == pytest.approx(1)
    # The port divides its tiny constants: 1e-15 matches by 1e-9 four-grams.
    assert bleu_of(["a b c"], [["a b c"]], "mteval-p") == pytest.approx(1e-6**0.25)


def test_bleu_takes_the_shorter_of_two_closest_references():
    # Length 5 against 4 and 6: 4 counts, so there is no brevity penalty.
    assert bleu_of(["a b c d e"], [["a b c d e f", "a b c d"]], "mteval") == pytest.approx(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nist_by_hand(variant):
    # Each word is one of two: 1 bit each; "b" always follows "a": 0 bits. (1 + 1) / 2 + 0 / 1.
    assert nist_of(["a b"], [["a b"]], variant) == pytest.approx(1)
    # Five different words: log2(5) bits each, and nothing is left to learn from longer n-grams.
    assert nist_of(["a b c d e"], [["a b c d e"]], variant) == pytest.approx(math.log2(5))
    # A match counts as often as in one reference at most: 2 of 5 "a", each log2(8 / 4) bits; (a, a) log2(4 / 2) bits.
    references = [["a a x y", "a a z w"]]
    assert nist_of(["a a a a a"], references, variant) == pytest.approx(2 * 1 / 5 + math.log2(4 / 2) / 4)


def test_nist_length_penalty_of_both_variants():
    # Outputs of 5 + 5 tokens. Mean reference lengths 5 + 15 (-p); 30 tokens over a mean of 2 references (Perl).
    hypotheses = ["a b c d e", "f g h i j"]
    references = [["a b c d e"] * 3, ["f g h i j k l m n o p q r s t"]]
    penalty = {"mteval": 0.5, "mteval-p": 0.5 ** ((math.log(2) / math.log(1.5)) ** 2)}
    found = {variant: nist_of(hypotheses, references, variant) for variant in VARIANTS}
    assert found["mteval-p"] / found["mteval"] == pytest.approx(penalty["mteval-p"] / penalty["mteval"])
    # 3 * 5 words of log2(30 / 3) bits count once each; 5 of log2(30 / 1); over 10 words.
    assert found["mteval"] == pytest.approx(0.5 * (5 * math.log2(10) + 5 * math.log2(30)) / 10)


def test_nist_of_perl_takes_the_word_0_for_no_word():
    text = "0 x 0 x y"
    difference = nist_of([text], [[text]], "mteval") - nist_of([text], [[text]], "mteval-p")
    assert difference == pytest.approx(2 * math.log2(5 / 2) / 4)


@pytest.mark.parametrize("hypotheses", [["", ""], ["a", "b"], ["a b c d e f", ""]])
def test_almost_empty_outputs_have_finite_scores(hypotheses):
    found = score(hypotheses, [["a b c d e f"], ["b c d e f g"]], metrics=["bleu", "nist", "nist_mteval", "nist_nltk"])
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.metrics["bleu"] <= 1


words = st.lists(st.sampled_from(["the", "a", "pub", "Eagle,", "£20-25.", "5", "it's"]), min_size=5, max_size=12)
corpora = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(corpora, st.randoms(use_true_random=False))
def test_order_of_references_and_of_outputs_does_not_matter(corpus, rng):
    corpus = [(" ".join(hypothesis), [" ".join(reference) for reference in group]) for hypothesis, group in corpus]
    shuffled = [(hypothesis, rng.sample(group, len(group))) for hypothesis, group in rng.sample(corpus, len(corpus))]
    for variant in VARIANTS:
        for metric in (bleu_of, nist_of):
            before, after = (metric(*zip(*pairs, strict=True), variant) for pairs in (corpus, shuffled))
            assert after == pytest.approx(before)


@settings(max_examples=40, deadline=None)
@given(st.lists(words, min_size=1, max_size=4))
def test_copies_of_a_reference_have_bleu_1_and_no_longer_output_gains_nist(references):
    lines = [" ".join(reference) for reference in references]
    groups = [[line] for line in lines]
    for variant in VARIANTS:
        assert bleu_of(lines, groups, variant) == pytest.approx(1)
        assert nist_of([f"{line} zebra" for line in lines], groups, variant) <= nist_of(lines, groups, variant) + 1e-9
