"""The configuration of bottleneck adapters, and what the papers set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from hadamard_core.config import HadamardConfig, require_at_least
from hadamard_core.registration import peft_type


class Kind(NamedTuple):
    """What a paper sets.

    Attributes:
        roles: the projections whose output is adapted, or, if ``on_layers``, that stand for the layers they are in.
        on_layers: what whole layers return is adapted.
        own_norm: the adapter begins with a layer norm of its own.
        activation: the nonlinearity between the two products.
        norms: the norms of the adapted layers train, too.
    """

    roles: tuple[str, ...]
    on_layers: bool
    own_norm: bool
    activation: str
    norms: bool


KINDS = {
    "houlsby": Kind(("attention_output", "ffn_output"), on_layers=False, own_norm=False, activation="gelu", norms=True),
    "pfeiffer": Kind(("ffn_output",), on_layers=True, own_norm=False, activation="relu", norms=False),
    "lin": Kind(("ffn_output",), on_layers=True, own_norm=True, activation="relu", norms=False),
}
ACTIVATIONS = ("gelu", "relu")


@dataclass
class BottleneckConfig(HadamardConfig):
    """Configuration of bottleneck adapters, ``z + up(f(down(z)))``; further fields as in ``HadamardConfig``.

    ``kind`` says which paper's, that is, what z is:

    * ``"houlsby"`` (Houlsby et al. 2019, arXiv:1902.00751): the output of each attention's and each feed-forward's last
      projection, before the residual is added. The norms of the adapted layers train, too.
    * ``"pfeiffer"`` (Pfeiffer et al. 2021, arXiv:2005.00247): what each layer returns, after the residual is added and,
      in post-norm models (BERT), after the last norm.
    * ``"lin"`` (Lin et al. 2020, arXiv:2004.03829): the same place, with a layer norm of the adapter's own before
      ``down``.

    ``up`` starts at zero, so that the adapted model starts as the base model, bit for bit; ``down`` is normal with a
    standard deviation of 0.02. The papers start both near zero (Houlsby with 1e-3 to 1e-2), so that theirs start near
    the base model.

    An adapter is no linear function, so that it cannot be merged.

    Args:
        kind: ``"houlsby"``, ``"pfeiffer"`` or ``"lin"``.
        bottleneck: the features between ``down`` and ``up``, the papers' m.
        activation: the nonlinearity f, ``"gelu"`` or ``"relu"``; that of the paper if None.
        norms: whether the norms of the adapted layers (not those of embeddings, nor final ones) train, too; as in the
            paper if None, where with ``target_modules`` they do not.
        roles: where, if not everywhere: the kind's own roles (``"attention_output"`` and ``"ffn_output"``; on whole
            layers ``"ffn_output"``, which stands for its layer), with ``encoder.``, ``decoder.`` or ``cross.`` before
            them for a part of the model.
        target_modules: in place of ``roles``, names of the modules whose output is adapted, by peft's rules; on any
            model.

    Raises:
        ValueError: an unknown value, ``bottleneck`` below 1, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("bottleneck", "hadamard-baselines", "hadamard_baselines.bottleneck")

    roles: Sequence[str] | None = field(
        default=None, metadata={"help": "Where target_modules is not given: the kind's roles, narrowed to a stack."}
    )
    kind: str = field(default="houlsby", metadata={"help": "Whose adapter: 'houlsby', 'pfeiffer' or 'lin'."})
    bottleneck: int = field(default=64, metadata={"help": "Features between the two products."})
    activation: str | None = field(default=None, metadata={"help": "'gelu' or 'relu'; that of the paper if not given."})
    norms: bool | None = field(
        default=None, metadata={"help": "Train the norms of the adapted layers; as in the paper if not given."}
    )

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"kind is {self.kind!r} in BottleneckConfig; it must be one of {', '.join(map(repr, KINDS))}."
            )
        paper = KINDS[self.kind]
        if self.roles is None and self.target_modules is None:
            self.roles = paper.roles
        super().__post_init__()
        self.peft_type = peft_type("bottleneck")
        require_at_least(self, "bottleneck", 1)
        if self.activation is None:
            self.activation = paper.activation
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {self.activation!r} in BottleneckConfig; it must be one of "
                f"{', '.join(map(repr, ACTIVATIONS))}."
            )
        if self.norms is None:
            self.norms = paper.norms and self.target_modules is None
        if self.compute != "auto":
            raise ValueError(
                f"compute is {self.compute!r} in BottleneckConfig; there is one way to compute a bottleneck, so leave "
                "it out."
            )
        for role in self.roles or ():
            if role.rpartition(".")[2] not in paper.roles:
                raise ValueError(
                    f"roles has {role!r} in BottleneckConfig; a {self.kind} adapter acts on "
                    f"{' and '.join(map(repr, paper.roles))}, with 'encoder.', 'decoder.' or 'cross.' before it for a "
                    "part of the model, so give these, or name other modules by target_modules."
                )
