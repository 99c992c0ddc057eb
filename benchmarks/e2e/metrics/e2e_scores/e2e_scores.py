"""All scores of the official E2E script in one call."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.e2e.metrics import evaluate_base, score


class E2eScores(evaluate_base.E2EMetric):
    """All scores of the official E2E script in one call."""

    about = (
        "BLEU, NIST, METEOR, ROUGE-L and CIDEr as the official script of the E2E NLG challenge (tuetschek/e2e-metrics) "
        "computes them. Quicker than the five modules e2e_* one after the other: texts are tokenised once, and METEOR "
        "runs beside the others."
    )
    returns = (
        "    metrics (dict): bleu, nist, meteor, rouge_l, cider, then bleu_mteval_p (with -p), nist_mteval (without) "
        "and nltk's columns.\n"
        "    unavailable (dict): the reason why a metric is missing, such as no Java.\n"
        "    signatures (dict): how each score was computed.\n"
        "    instances (dict): METEOR, ROUGE-L and CIDEr of each output.\n"
    )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict:
        return asdict(score(predictions, references))
