"""HUT keeps every promise of a peft method."""

from hadamard_core.testing import MethodContract
from hut import HutConfig


class TestHut(MethodContract):
    config_class = HutConfig
    variants = (
        {"r": 3, "scale": False, "compute": "activation"},
        {"shift": False, "compute": "weight"},
    )
