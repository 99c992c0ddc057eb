"""HUT: Hadamard Updated Transformation (Zhang, Zhou and Chen, 2024, arXiv:2409.13501) as a peft method.

Importing this package is what teaches peft the name::

    import hut
    from peft import get_peft_model

    model = get_peft_model(model, hut.HutConfig(r=8))

``PeftModel.from_pretrained`` of a HUT adapter needs the import, too.
"""

from hadamard_core.registration import register
from hut.config import HutConfig
from hut.layer import HutLinear
from hut.model import HutModel

__all__ = ["HutConfig", "HutLinear", "HutModel"]

register("hut", HutConfig, HutModel)
