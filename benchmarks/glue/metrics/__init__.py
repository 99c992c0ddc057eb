"""Scores GLUE predictions to the same numbers as the ``glue`` metric of Hugging Face's ``evaluate``.

Where things are:

* ``scores.py``: :func:`compute` and :func:`signature`, over scikit-learn and scipy;
* ``glue_scores/``: the same as an ``evaluate`` module that loads by path and asks no hub for anything:
  ``evaluate.load("<repository>/benchmarks/glue/metrics/glue_scores", "cola")``.
"""

from benchmarks.glue.metrics.scores import METRICS, REGRESSION, compute, signature

__all__ = ["METRICS", "REGRESSION", "compute", "signature"]
