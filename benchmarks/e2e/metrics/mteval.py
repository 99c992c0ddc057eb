"""What BLEU and NIST share: the tokens of NIST's ``mteval-v13a`` in the two variants of the official script.

The official script computes BLEU and NIST with the Perl program (its default, here ``"mteval"``) or with a Python port
of it (``-p``, here ``"mteval-p"``, whose NIST the papers' tables have). They agree on usual outputs except for NIST's
length penalty (see ``nist.py``). On unusual ones they also differ in the tokens:

* the port lower-cases every letter, Perl the 26 ASCII ones only;
* the port reads an empty output as one empty token, Perl as none;
* an output of fewer than n tokens counts ``length - n + 1 <= 0`` n-grams in the port, and none in Perl.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal, TypeAlias

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

Variant: TypeAlias = Literal["mteval-p", "mteval"]
Tokens: TypeAlias = list[str]

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_split_13a = Tokenizer13a()


def tokenize(text: str, variant: Variant) -> Tokens:
    """Returns the 13a tokens of one line in lower case; lower-casing last, so that ``&AMP;`` is no entity."""
    tokens = _split_13a(text)
    if variant == "mteval":
        return tokens.translate(_ASCII_LOWER).split()
    return tokens.lower().split() or [""]


def tokenize_all(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], variant: Variant
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Tokenises the outputs and the references of every output."""
    return (
        [tokenize(hypothesis, variant) for hypothesis in hypotheses],
        [[tokenize(reference, variant) for reference in group] for group in references],
    )


def total_ngrams(hypotheses: Sequence[Tokens], n: int, variant: Variant) -> int:
    """Returns how many n-grams of order ``n`` the outputs are said to have: the denominator of a precision."""
    lengths = [len(tokens) - n + 1 for tokens in hypotheses]
    return sum(lengths) if variant == "mteval-p" else sum(max(0, length) for length in lengths)
