"""The Hadamard adapter keeps every promise of a peft method."""

from collections.abc import Mapping
from typing import Any

from hadamard_adapter import HadamardAdapterConfig
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import ModelCase, TwoLinear


class TestHadamardAdapter(MethodContract):
    config_class = HadamardAdapterConfig
    variants = (
        {"position": "projection", "norm": "both", "compute": "activation"},
        {"compute": "weight", "norm": "output", "weight": False},
    )

    def config(self, case: ModelCase, variant: Mapping[str, Any] = {}, **fields: Any) -> HadamardAdapterConfig:
        if case.task_type is None:  # Norms of custom models have no role: one of the two has a norm to name.
            fields |= {"norm_modules": ["norm"]} if case.build is TwoLinear else {"norm": "none"}
        return super().config(case, variant, **fields)
