"""Hyper-parameter sweeps with Optuna: ``python -m harness.sweep``."""
