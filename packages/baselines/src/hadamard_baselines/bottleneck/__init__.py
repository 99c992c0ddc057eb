"""Bottleneck adapters (Houlsby et al. 2019, Pfeiffer et al. 2021, Lin et al. 2020) as a peft method.

Importing this package is what teaches peft the name::

    from hadamard_baselines.bottleneck import BottleneckConfig
    from peft import get_peft_model

    model = get_peft_model(model, BottleneckConfig(kind="pfeiffer", bottleneck=64))

``PeftModel.from_pretrained`` of a bottleneck adapter needs the import, too.
"""

from hadamard_baselines.bottleneck.config import BottleneckConfig
from hadamard_baselines.bottleneck.layer import BottleneckNorm, OutputBottleneck
from hadamard_baselines.bottleneck.model import BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckModel", "BottleneckNorm", "OutputBottleneck"]
