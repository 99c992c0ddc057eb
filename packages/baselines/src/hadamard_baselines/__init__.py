"""The methods that the Hadamard family is compared with, as methods of peft.

LoRA and VeRA have peft's parameters, files and numbers; only how a layer computes its forward and backward pass is
different (``hadamard_core.functional.low_rank_linear``)::

    import hadamard_baselines
    from peft import get_peft_model

    model = get_peft_model(model, hadamard_baselines.LoraConfig(r=8, target_modules=["query", "value"]))

The others are methods that peft does not ship. Importing this package is what teaches peft their names, for loading
their adapters, too.
"""

from hadamard_baselines.abba import AbbaConfig
from hadamard_baselines.bitfit import BitfitConfig
from hadamard_baselines.bottleneck import BottleneckConfig
from hadamard_baselines.diff_pruning import DiffPruningConfig
from hadamard_baselines.far import FarConfig
from hadamard_baselines.lora import LoraConfig, LoraLinear
from hadamard_baselines.prelayer import PrelayerConfig
from hadamard_baselines.ssf import SsfConfig
from hadamard_baselines.vera import VeraConfig, VeraLinear, VeraModel

__all__ = [
    "AbbaConfig",
    "BitfitConfig",
    "BottleneckConfig",
    "DiffPruningConfig",
    "FarConfig",
    "LoraConfig",
    "LoraLinear",
    "PrelayerConfig",
    "SsfConfig",
    "VeraConfig",
    "VeraLinear",
    "VeraModel",
]
