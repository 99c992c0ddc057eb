"""The configuration of the Hadamard adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hadamard_core.config import HadamardConfig
from hadamard_core.registration import peft_type

ATTENTION_OUTPUT = "attention_output"
POSITIONS = ("context", "projection")
NORMS = ("attention", "output", "both", "none")


@dataclass
class HadamardAdapterConfig(HadamardConfig):
    """Configuration of the Hadamard adapter, ``A' = W * A + b``; further fields as in ``HadamardConfig``.

    A is the output of a self-attention and W, b are vectors of the hidden size that all tokens share. A norm of each
    adapted layer trains with them. The paper does not say which norm, nor whether A is taken before or after the output
    projection; the defaults are what its parameter counts and descriptions by others point to.

    Args:
        position: where A is taken. ``"context"``: the concatenated heads, which are the input of the output projection.
            ``"projection"``: its output, with its bias.
        norm: which norms of the adapted layers train: ``"attention"``, that of the attention's residual block (after it
            in post-norm models, before it in pre-norm models); ``"output"``, that of the feed-forward's; ``"both"``;
            ``"none"``.
        weight: train W.
        bias: train b.
        roles: which attentions: ``"attention_output"`` for all; with ``encoder.``, ``decoder.`` or ``cross.`` before it
            those of one stack, or cross-attention. Their norms go with them.
        target_modules: in place of ``roles``, names of the projections whose input (``"context"``) or output
            (``"projection"``) is adapted, by peft's rules; on any model.
        norm_modules: in place of what ``norm`` names, names of the norms that train, by peft's rules. Needed with
            ``target_modules`` on a model whose norms are not known by role, unless ``norm`` is ``"none"``.

    Raises:
        ValueError: nothing is left to train, an unknown value, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("Hadamard", "hadamard-adapter", "hadamard_adapter")

    roles: Sequence[str] | None = field(
        default=(ATTENTION_OUTPUT,),
        metadata={"help": "Which attentions to adapt where target_modules is not given: 'attention_output', ..."},
    )
    position: str = field(
        default="context", metadata={"help": "'context': before the output projection; 'projection': after it."}
    )
    norm: str = field(
        default="attention", metadata={"help": "Which norms train: 'attention', 'output', 'both' or 'none'."}
    )
    weight: bool = field(default=True, metadata={"help": "Train W, the scale of the attention's output."})
    bias: bool = field(default=True, metadata={"help": "Train b, the shift of the attention's output."})
    norm_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names of the norms that train, in place of those that `norm` names."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("hadamard_adapter")
        for name, known in (("position", POSITIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} in HadamardAdapterConfig; it must be one of "
                    f"{', '.join(map(repr, known))}."
                )
        for role in self.roles or ():
            if role.rpartition(".")[2] != ATTENTION_OUTPUT:
                raise ValueError(
                    f"roles has {role!r} in HadamardAdapterConfig; the adapter acts on attention outputs, so give "
                    f"{ATTENTION_OUTPUT!r}, with 'encoder.', 'decoder.' or 'cross.' before it for some of them, or "
                    "name other projections by target_modules."
                )
        if self.norm_modules is not None:
            if self.norm == "none":
                raise ValueError("norm_modules is given together with norm='none'; leave one of them out.")
            if not isinstance(self.norm_modules, str):
                self.norm_modules = set(self.norm_modules)
        if not (self.weight or self.bias or self.norm != "none"):
            raise ValueError(
                "weight and bias are off and norm is 'none' in HadamardAdapterConfig; nothing would train."
            )
