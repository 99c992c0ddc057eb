"""Corpus NIST (Doddington, HLT 2002) of the official E2E script, in both of its variants.

    NIST = penalty * sum over n = 1..5 of (sum of info(g) over matched n-grams g of order n) / (n-grams in the outputs)
    info(w1..wn) = log2(count(w1..wn-1) / count(w1..wn)), counted over all references; log2(tokens / count(w1)) if n = 1
    penalty = exp(-beta * ln(min(1, output length / reference length))^2), with beta such that a ratio of 2/3 gives 1/2

A match is clipped by the largest count in any one reference. The variants differ in the penalty's reference length:
``mteval-p`` (the Python port) sums each output's mean reference length; ``mteval`` (Perl, as the official repository
changed it to count non-empty references only) divides the total length of all references by the mean number of
references, so that outputs with many references weigh more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from benchmarks.e2e.metrics.mteval import Tokens, Variant, total_ngrams

MAX_ORDER = 5
_BETA = math.log(2) / math.log(1.5) ** 2
_VERSION = 1


def compute(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], variant: Variant) -> float:
    """Returns NIST, 0 or more. (The port can go below 0 or divide by 0 where most outputs have fewer than five tokens;
    an order of which the outputs are said to have no n-grams adds nothing here.)

    Args:
        hypotheses: the outputs' tokens, from :func:`benchmarks.e2e.metrics.mteval.tokenize` in the same variant.
        references: for each output, the tokens of its references, at least one.
        variant: which of the official script's two programs to equal.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    matches: Counter[tuple[str, ...]] = Counter()
    for tokens, group in zip(hypotheses, references, strict=True):
        clip: Counter[tuple[str, ...]] = Counter()
        for reference in group:
            ngrams = Counter(_ngrams(reference))
            counts.update(ngrams)
            clip |= ngrams
        matches.update(Counter(_ngrams(tokens)) & clip)
    reference_tokens = sum(len(reference) for group in references for reference in group)

    gained = [0.0] * (MAX_ORDER + 1)
    for ngram, matched in matches.items():
        prefix = ngram[:-1]
        # Perl takes the string "0" for false, hence for an empty prefix.
        whole = not prefix or (variant == "mteval" and prefix == ("0",))
        gained[len(ngram)] += matched * math.log2((reference_tokens if whole else counts[prefix]) / counts[ngram])
    score = 0.0
    for n in range(1, MAX_ORDER + 1):
        total = total_ngrams(hypotheses, n, variant)
        score += gained[n] / total if total else 0.0
    return score * _length_penalty(total_ngrams(hypotheses, 1, variant), _reference_length(references, variant))


def signature(variant: Variant, references: str) -> str:
    """Says how :func:`compute` computed its score; ``references`` describes the references."""
    return f"nist|{references}|case:lc|tok:13a|n:{MAX_ORDER}|variant:{variant}|version:{_VERSION}"


def _ngrams(tokens: Tokens) -> Iterator[tuple[str, ...]]:
    for n in range(1, MAX_ORDER + 1):
        yield from zip(*(tokens[start:] for start in range(n)), strict=False)


def _reference_length(references: Sequence[Sequence[Tokens]], variant: Variant) -> float:
    if variant == "mteval-p":
        return sum(sum(map(len, group)) / len(group) for group in references)
    filled = [[reference for reference in group if reference] for group in references]
    return sum(map(len, (r for group in filled for r in group))) / (sum(map(len, filled)) / len(filled))


def _length_penalty(length: int, reference_length: float) -> float:
    ratio = length / reference_length
    if ratio <= 0:
        return 0.0
    return math.exp(-_BETA * math.log(min(1.0, ratio)) ** 2)
