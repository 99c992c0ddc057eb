"""Scores E2E outputs as the official script does (tuetschek/e2e-metrics, ``measure_scores.py``), to its 4 decimals.

Where things are:

* ``scoring.py``: :func:`score` and :class:`Scores`, the one entry point; runs the parts below side by side;
* ``mteval.py``, ``bleu.py``, ``nist.py``: the MT-Eval half, in Python: 13a tokens, BLEU and NIST;
* ``ptb.py``, ``coco.py``, ``meteor.py``: the COCO caption half: Penn Treebank tokens, ROUGE-L and CIDEr, METEOR 1.5;
* ``java.py``: which Java runs the tokeniser and METEOR;
* ``nltk_columns.py``: nltk's metrics of the same names, for comparison with papers that print those;
* ``e2e_*/``: the same as ``evaluate`` modules: ``evaluate.load("<repository>/benchmarks/e2e/metrics/e2e_bleu")``.
"""

from benchmarks.e2e.metrics.scoring import EXTRA_COLUMNS, METRICS, Scores, score

__all__ = ["EXTRA_COLUMNS", "METRICS", "Scores", "score"]
