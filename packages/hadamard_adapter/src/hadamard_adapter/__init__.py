"""The Hadamard adapter (Chen et al., CIKM 2023, arXiv:2407.11033) as a peft method.

Importing this package is what teaches peft the name::

    import hadamard_adapter
    from peft import get_peft_model

    model = get_peft_model(model, hadamard_adapter.HadamardAdapterConfig())

``PeftModel.from_pretrained`` of a Hadamard adapter needs the import, too.
"""

from hadamard_adapter.config import HadamardAdapterConfig
from hadamard_adapter.layer import HadamardLinear, HadamardNorm
from hadamard_adapter.model import HadamardAdapterModel
from hadamard_core.registration import register

__all__ = ["HadamardAdapterConfig", "HadamardAdapterModel", "HadamardLinear", "HadamardNorm"]

register("hadamard_adapter", HadamardAdapterConfig, HadamardAdapterModel)
