"""The configuration of HUT."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hadamard_core.config import HadamardConfig, require_at_least
from hadamard_core.registration import peft_type

# What PeftConfig.from_pretrained says without the import is a bare KeyError, so the card that lies beside the config
# says what to do.
_CARD_SECTION = """
## Loading this adapter

This is a HUT adapter. peft learns the method from the package `hadamard-hut`, which has to be imported first:

```python
import hut
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "PATH")
```
"""


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

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """As peft's; also tells a reader of the model card, where one was written, to import this package."""
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        if card.is_file():
            text = card.read_text(encoding="utf-8")
            if _CARD_SECTION not in text:
                card.write_text(text + _CARD_SECTION, encoding="utf-8")
