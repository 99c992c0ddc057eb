"""ROUGE-L and CIDEr by pycocoevalcap's own code, on Penn Treebank tokens."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Returns ROUGE-L (F-measure with beta 1.2, best reference) of the corpus and of each output, between 0 and 1.

    Args:
        hypotheses: the outputs as Penn Treebank tokens with spaces between, see ``ptb.py``.
        references: for each output, its references in the same form.
    """
    return _compute(Rouge(), hypotheses, references)


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Returns CIDEr (4-grams, sigma 6, document frequencies of these references) as :func:`rouge_l` does, 0 to 10.

    One output alone always gets 0: every n-gram is then in every document.
    """
    return _compute(Cider(), hypotheses, references)


def signature(name: str, references: str, tokenizer: str) -> str:
    """Says how the score ``name`` was computed; ``references`` describes the references."""
    options = {"rouge_l": "beta:1.2", "cider": "n:4|sigma:6.0|df:references"}[name]
    return f"{name}|{references}|case:lc|tok:{tokenizer}|{options}|pycocoevalcap:{version('pycocoevalcap')}"


def _compute(
    scorer: Rouge | Cider, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    mean, each = scorer.compute_score(
        {number: list(group) for number, group in enumerate(references)},
        {number: [hypothesis] for number, hypothesis in enumerate(hypotheses)},
    )
    return float(mean), [float(value) for value in each]
