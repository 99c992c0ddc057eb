"""LoRA and VeRA of peft, computed by ``hadamard_core.functional.low_rank_linear``.

Same parameters, same files, same numbers as ``peft.LoraConfig`` and ``peft.VeraConfig``; only how a layer computes its
forward and backward pass is different::

    import hadamard_baselines
    from peft import get_peft_model

    model = get_peft_model(model, hadamard_baselines.LoraConfig(r=8, target_modules=["query", "value"]))
"""

from hadamard_baselines.lora import LoraConfig, LoraLinear
from hadamard_baselines.vera import VeraConfig, VeraLinear, VeraModel

__all__ = ["LoraConfig", "LoraLinear", "VeraConfig", "VeraLinear", "VeraModel"]
