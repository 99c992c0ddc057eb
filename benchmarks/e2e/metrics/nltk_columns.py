"""nltk's metrics that share a name with official ones: other numbers, printed by some papers, never mixed up here.

Both take 13a tokens in lower case. nltk's METEOR aligns exact, stemmed and WordNet matches and has no paraphrases and
other weights (0.79 where METEOR 1.5 gives 0.45). nltk is imported where it is used: that takes seconds, since it brings
scipy along, and they pass here while METEOR starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.e2e.metrics.mteval import Tokens


def nist(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Returns ``nltk.translate.nist_score.corpus_nist`` with n = 5."""
    from nltk.translate.nist_score import corpus_nist

    return float(corpus_nist([list(group) for group in references], list(hypotheses), n=5))


def meteor(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Returns the mean of ``nltk.translate.meteor_score.meteor_score`` over the outputs; needs the WordNet data."""
    from nltk.translate.meteor_score import meteor_score

    scores = [meteor_score(group, tokens) for tokens, group in zip(hypotheses, references, strict=True)]
    return sum(scores) / len(scores)


def is_computable(name: str, hypotheses: Sequence[Tokens]) -> bool:
    """Tells whether ``nist_nltk`` has an n-gram of every order, or ``meteor_nltk`` its WordNet data on this machine.

    Nothing is downloaded.
    """
    if name == "nist_nltk":
        return max(map(len, hypotheses)) >= 5
    import nltk

    for resource in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(resource)
        except LookupError:
            continue
        return True
    return False


def signature(name: str, references: str) -> str:
    """Says how the column ``name`` was computed; ``references`` describes the references."""
    return f"{name}|{references}|case:lc|tok:13a|nltk:{version('nltk')}"
