"""HUT as a peft tuner."""

from __future__ import annotations

from hadamard_core.tuner import HadamardTuner
from hut.layer import HutLinear


class HutModel(HadamardTuner):
    """Adapts projections of a model with HUT; made by ``peft.get_peft_model(model, HutConfig(...))``."""

    prefix = "hut_"
    tuner_layer_cls = HutLinear

    def compact(self, adapter_name: str = "default") -> None:
        """Turns an adapter into the smallest one of the same function, in place: r = 1 without gamma.

        Because only means over r enter the function, an adapter of rank r can be stored in three vectors a projection:
        at r = 8 on a square one, 1/6 of the bytes. The result is an ordinary HUT adapter: save it, load it, merge it
        as any other. It is meant for storage and transport: trained further, it learns differently, because gamma is
        gone.

        Args:
            adapter_name: which adapter.

        Raises:
            ValueError: there is no adapter of this name, or it is merged.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(
                f"There is no adapter {adapter_name!r} to make compact; the model has {sorted(self.peft_config)}."
            )
        layers = [m for m in self.model.modules() if isinstance(m, HutLinear) and adapter_name in m.hut_A]
        if any(adapter_name in layer.merged_adapters for layer in layers):
            raise ValueError(f"The adapter {adapter_name!r} is merged; unmerge it before making it compact.")
        for layer in layers:
            layer.compact(adapter_name)
        self.peft_config[adapter_name].r = 1
        self.peft_config[adapter_name].scale = False
