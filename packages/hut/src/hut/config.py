"""The configuration of HUT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from hadamard_core.config import HadamardConfig, require_at_least
from hadamard_core.registration import peft_type


@dataclass
class HutConfig(HadamardConfig):
    """Configuration of HUT, ``W_new = mean(M_A) * W0 * mean(M_B)``; further fields as in ``HadamardConfig``.

    **The rank is nominal.** Only the means of M_A and M_B over r enter the function, and all r columns get the same
    gradient, so that Adam or AdamW learns the same function for every r. ``r`` is here because the paper has it and its
    parameter counts follow from it; r=1 learns the same with fewer parameters (see also :meth:`HutModel.compact`).

    Args:
        r: number of columns of M_A and of rows of M_B.
        scale: train gamma, the paper's scale of the result.
        shift: train beta, the paper's shift of the result.
        init: ``"identity"`` starts with M_A, M_B and gamma of one and beta of zero.

    Raises:
        ValueError: ``r`` below 1, an unknown ``init``, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("HUT", "hadamard-hut", "hut")

    r: int = field(
        default=8,
        metadata={"help": "Columns of M_A, rows of M_B. Nominal: the function learned does not depend on it."},
    )
    scale: bool = field(default=True, metadata={"help": "Train gamma, the scale of the result."})
    shift: bool = field(default=True, metadata={"help": "Train beta, the shift of the result."})
    init: str = field(default="identity", metadata={"help": "'identity': the adapted model starts as the base model."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("hut")
        require_at_least(self, "r", 1)
        if self.init != "identity":
            raise ValueError(f"init is {self.init!r} in HutConfig; only 'identity' is known.")
