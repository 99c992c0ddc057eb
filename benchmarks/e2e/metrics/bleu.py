"""Corpus BLEU of the official E2E script in both of its variants, on sacrebleu's counts.

Matches are clipped by the maximum over references, and the reference length is the closest one, ties to the shorter:
all as in sacrebleu, whose ``corpus_bleu(..., lowercase=True)`` therefore equals both variants on usual outputs. What is
left here is the arithmetic on these counts, where they differ:

* an order without a match: Perl (``mteval``), like sacrebleu, counts 1/2, 1/4, ... for the first, the second, ... of
  them; the Python port (``mteval-p``) a tiny constant;
* an order without any n-gram (no output has n tokens): Perl leaves its precision out;
* outputs of fewer than four tokens: the port subtracts from the number of n-grams (see ``mteval.py``), so that with
  many of them its BLEU exceeds 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import sacrebleu
from sacrebleu.metrics import BLEU

from benchmarks.e2e.metrics.mteval import Tokens, Variant, total_ngrams

MAX_ORDER = 4
# What the port counts instead of no match and instead of no n-gram.
_NO_MATCH = 1e-15
_NO_NGRAM = 1e-9


def compute(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], variant: Variant) -> float:
    """Returns BLEU between 0 and 1.

    Args:
        hypotheses: the outputs' tokens, from :func:`benchmarks.e2e.metrics.mteval.tokenize` in the same variant.
        references: for each output, the tokens of its references, at least one.
        variant: which of the official script's two programs to equal.
    """
    lines = [" ".join(tokens) for tokens in hypotheses]
    groups = [[" ".join(tokens) for tokens in group] for group in references]
    # sacrebleu wants the first reference of every output, then the second, ...; None where an output has no more.
    counts = BLEU(tokenize="none", force=True).corpus_score(lines, list(zip_longest(*groups)))
    totals = [total_ngrams(hypotheses, n, variant) for n in range(1, MAX_ORDER + 1)]
    if not totals[0]:
        return 0.0
    precisions = _perl_precisions if variant == "mteval" else _port_precisions
    log_precision = sum(map(math.log, precisions(counts.counts, totals))) / MAX_ORDER
    return math.exp(log_precision + min(0.0, 1 - counts.ref_len / totals[0]))


def signature(variant: Variant, references: str) -> str:
    """Says how :func:`compute` computed its score; ``references`` describes the references."""
    smoothing = "exp" if variant == "mteval" else "tiny"
    return f"bleu|{references}|case:lc|tok:13a|smooth:{smoothing}|variant:{variant}|sacrebleu:{sacrebleu.__version__}"


def _perl_precisions(matches: Sequence[int], totals: Sequence[int]) -> list[float]:
    precisions = []
    without_match = 0
    for matched, total in zip(matches, totals, strict=True):
        without_match += not matched and total > 0
        precisions.append((matched or 0.5**without_match) / total if total else 1.0)
    return precisions


def _port_precisions(matches: Sequence[int], totals: Sequence[int]) -> list[float]:
    pairs = zip(matches, totals, strict=True)
    return [max(matched, _NO_MATCH) / max(total, _NO_NGRAM) for matched, total in pairs]
