"""Diff pruning (Guo, Rush, Kim 2021, arXiv 2012.07463): ``theta + delta`` with a delta that is zero almost everywhere.

Stage 1 learns which values differ: ``delta = z * w``. A gate z of each value, and with ``structured`` one more of each
weight matrix or bias vector with which it is multiplied, is a stretched and clamped binary concrete variable::

    u ~ U(0, 1)    s = sigmoid(log u - log(1 - u) + alpha)    z = min(1, max(0, s (r - l) + l))    l = -1.5, r = 1.5
    P(z != 0) = sigmoid(alpha - log(-l / r))

w is ``weight`` or ``bias`` of a :class:`GatedChange`, alpha its ``gate_bias`` times ``alpha_speed``. The loss gets
lambda times :func:`expected_nonzero`, the sum of P over all values. Between the stages :func:`largest` keeps as many
values as were asked for, those with the largest \\|delta\\| (gates without noise). Stage 2 trains these alone, the
adapter of :class:`DiffPruningConfig`: ``diffpruning_weight`` and ``diffpruning_bias`` hold the values (k,), the buffers
with ``_index`` their positions (k,) in the flattened parameter, weights read as (out_features, in_features).

Stage 1 takes the memory of full fine-tuning twice over, for w and alpha and their state, and that of the gates. In
stage 2 memory is that of the frozen model, and time that of full fine-tuning: see
:func:`~hadamard_baselines.sparse.sparse_linear`. The paper's delta covers all of BERT; here it covers projections and
norms of the layers, not embeddings, poolers and heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.changes import PARAMETERS, Change, Slices, changes_of, put_changes, take_changes_off
from hadamard_baselines.sparse import (
    Entries,
    SparseLayer,
    SparseProjection,
    SparseTuner,
    add_at,
    add_to_weight,
    sparse_linear,
)
from hadamard_core.config import HadamardConfig
from hadamard_core.norm import TrainedNorm, is_norm
from hadamard_core.orientation import weight_as_linear
from hadamard_core.registration import peft_type, register
from hadamard_core.targets import ROLES

LOWER, UPPER = -1.5, 1.5
"""l and r, what gates are stretched to before they are clamped."""
ALPHA_START = 5.0
"""Where every alpha starts; all gates are open there, but for noise."""
_LEAST_NOISE = 1e-6


class GatedChange(Change):
    """A change w whose values have gates: ``z * w``. Without noise where the module is in evaluation mode.

    Args:
        original, name, dim, own_rows: as of ``Change``.
        structured: a gate of the whole parameter besides.
        alpha_speed: alpha is stored divided by it, which under Adam makes its learning rate so many times that of w.
    """

    def __init__(
        self,
        original: Tensor,
        name: str,
        dim: int = 0,
        own_rows: Tensor | None = None,
        *,
        structured: bool = True,
        alpha_speed: float = 1000.0,
    ) -> None:
        super().__init__(original, name, dim, own_rows)
        self.alpha_speed = alpha_speed
        # A bias of the gates' logits, and named one because it must be spared from weight decay like other biases.
        self.gate_bias = nn.ParameterDict()
        for gate, shape in (("element", super().change().shape), ("group", ())):
            if gate == "element" or structured:
                start = torch.full(shape, ALPHA_START / alpha_speed, dtype=torch.float32, device=original.device)
                self.gate_bias[gate] = nn.Parameter(start)

    def gate(self) -> Tensor:
        """z of each value, that of the group multiplied in."""
        return math.prod(self._gate_of(stored) for stored in self.gate_bias.values())

    def _gate_of(self, stored: Tensor) -> Tensor:
        logits = stored * self.alpha_speed
        if self.training:
            logits = logits + torch.rand_like(logits).logit(_LEAST_NOISE)
        return (logits.sigmoid() * (UPPER - LOWER) + LOWER).clamp(0, 1)

    def change(self) -> Tensor:
        return super().change() * self.gate()

    def expected_nonzero(self) -> Tensor:
        """How many values are expected to have an open gate, ()."""
        shift = math.log(-LOWER / UPPER)
        return math.prod((stored * self.alpha_speed - shift).sigmoid().sum() for stored in self.gate_bias.values())


def relax(
    model: nn.Module,
    modules: Mapping[str, Slices] | Sequence[str],
    structured: bool = True,
    alpha_speed: float = 1000.0,
) -> None:
    """Freezes a model and puts a :class:`GatedChange` on the weights and biases of some modules, for stage 1.

    Args:
        modules: as of ``put_changes``.
        structured, alpha_speed: as of :class:`GatedChange`.
    """
    put_changes(model, modules, partial(GatedChange, structured=structured, alpha_speed=alpha_speed))


def expected_nonzero(model: nn.Module) -> Tensor | None:
    """How many values of a model are expected to have an open gate, differentiable, (); None if it has no gates."""
    gated = [change for _, _, change in changes_of(model) if isinstance(change, GatedChange)]
    return torch.stack([change.expected_nonzero() for change in gated]).sum() if gated else None


def kept(sparsity: float, total: int) -> int:
    """How many of so many values are kept."""
    return max(1, round(sparsity * total)) if total else 0


@torch.no_grad()
def largest(model: nn.Module, sparsity: float) -> dict[str, dict[str, Entries]]:
    """The changes of a model that are largest over all its modules, then makes of it what it was before stage 1.

    Among equals, such as changes of zero where fewer gates are open than are to be kept, the first in the model's order
    are taken, so that the same parameters always give the same adapter.

    Returns:
        by the name of the module, then that of the parameter, for :meth:`DiffPruningModel.place`.
    """
    changes = {(name, parameter): change.eval() for name, parameter, change in changes_of(model)}
    deltas = {key: change.by_row() for key, change in changes.items()}
    take_changes_off(model)
    sizes = torch.cat([delta.abs().flatten() for delta in deltas.values()])
    count = kept(sparsity, len(sizes))
    threshold = sizes.topk(count).values[-1]
    ties = count - int((sizes > threshold).sum())
    del sizes
    found: dict[str, dict[str, Entries]] = {}
    for (name, parameter), delta in deltas.items():
        values = delta.flatten()
        chosen = values.abs() > threshold
        equal = (values.abs() == threshold).nonzero().flatten()[:ties]
        chosen[equal] = True
        ties -= len(equal)
        index = chosen.nonzero().flatten()
        width = delta[0].numel()
        place = changes[name, parameter].features_of(index // width) * width + index % width
        found.setdefault(name, {})[parameter] = Entries(place.int(), values[index])
    return found


@dataclass
class DiffPruningConfig(HadamardConfig):
    """Configuration of a sparse difference, what stage 2 of diff pruning trains; fields as in ``HadamardConfig``.

    A new adapter has its values spread evenly over the parameters that it may change: learned positions come from
    stage 1, by :func:`relax`, :func:`largest` and :meth:`DiffPruningModel.place`.

    Args:
        sparsity: the share of values that differ, over the weights and biases of all modules adapted.
        counts: by module, how many values of its weight and of its bias differ; by ``sparsity`` if None.
        roles: projections and norms; of the default those that the model has.

    Raises:
        ValueError: ``sparsity`` is not a share, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("Diff pruning", "hadamard-baselines", "hadamard_baselines")
    own_counts: ClassVar[Sequence[int]] = ()
    """The tuner's word to the layer that it makes: how many values of its weight and bias."""

    roles: Sequence[str] | None = field(
        default=ROLES, metadata={"help": "What to adapt where target_modules is not given, by role; norms too."}
    )
    sparsity: float = field(default=0.005, metadata={"help": "The share of values that differ."})
    counts: dict[str, list[int]] | None = field(
        default=None, metadata={"help": "By module, how many values of its weight and its bias differ."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("diffpruning")
        if not 0 < self.sparsity <= 1:
            raise ValueError(f"sparsity is {self.sparsity} in DiffPruningConfig; it must be above 0 and at most 1.")


class DiffPruningLayer(SparseLayer):
    """What projections and norms share: positions and values of a weight and a bias."""

    adapter_layer_names = ("diffpruning_weight", "diffpruning_bias")
    index_names = ("diffpruning_weight_index", "diffpruning_bias_index")
    other_param_names = (*SparseLayer.other_param_names, *index_names)

    def add_adapter(self, adapter_name: str, config: DiffPruningConfig) -> None:
        device = self.get_base_layer().weight.device
        for parameter, count in zip(PARAMETERS, config.own_counts, strict=False):
            if count:
                index = self._spread(adapter_name, parameter, count).to(device)
                values = torch.zeros(count) if config.init_weights else 0.2 * torch.randn(count)
                self._put(adapter_name, parameter, Entries(index, values), trains=True)

    def place(self, adapter_name: str, found: Mapping[str, Entries]) -> None:
        trains = self.trains(adapter_name)
        for parameter, entries in found.items():
            self._remove(adapter_name, parameter)
            if len(entries.index):
                self._put(adapter_name, parameter, entries, trains)

    def _put(self, adapter_name: str, parameter: str, entries: Entries, trains: bool) -> None:
        getattr(self, f"diffpruning_{parameter}_index")[adapter_name] = entries.index
        self._store(f"diffpruning_{parameter}", adapter_name, entries.values, trains)

    def _remove(self, adapter_name: str, parameter: str) -> None:
        for container in (f"diffpruning_{parameter}", f"diffpruning_{parameter}_index"):
            if adapter_name in getattr(self, container):
                del getattr(self, container)[adapter_name]

    def _spread(self, adapter_name: str, parameter: str, count: int) -> Tensor:
        """So many positions, (count,), evenly over those that the adapter may change."""
        total = self.get_base_layer()._parameters[parameter].numel()
        return (torch.arange(count) * total // count).int()

    def _entries(self, adapter_names: Sequence[str], parameter: str) -> Entries | None:
        """The entries of several adapters side by side; None if there are none."""
        # Past the attribute access of modules, which would take as long as a small layer.
        values = self._modules[f"diffpruning_{parameter}"]._parameters
        names = [name for name in adapter_names if name in values]
        if not names:
            return None
        index = self._modules[f"diffpruning_{parameter}_index"]._buffers
        if len(names) == 1:
            return Entries(index[names[0]], values[names[0]])
        return Entries(torch.cat([index[name] for name in names]), torch.cat([values[name] for name in names]))


class DiffPruningLinear(DiffPruningLayer, SparseProjection):
    """``y = x (W + delta_W)^T + (bias + delta_bias)``."""

    def _spread(self, adapter_name: str, parameter: str, count: int) -> Tensor:
        own = self.rows_of(adapter_name)
        if own is None:
            return super()._spread(adapter_name, parameter, count)
        width = self.in_features if parameter == "weight" else 1
        steps = torch.arange(count) * (len(own) * width) // count
        return (own[steps // width] * width + steps % width).int()

    def changed(self, adapter_names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.original()
        of_weight, of_bias = (self._entries(adapter_names, name) for name in PARAMETERS)
        if of_weight is not None and isinstance(self.get_base_layer(), Conv1D):
            weight = add_to_weight(weight.T, *of_weight).T
        elif of_weight is not None:
            weight = add_to_weight(weight, *of_weight)
        return weight, bias if of_bias is None else add_at(bias, *of_bias)

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        of_weight, of_bias = (self._entries(adapter_names, name) for name in PARAMETERS)
        if of_weight is None and of_bias is None:
            return self.base_layer(x)
        base = self.plain_base()
        if base is None:
            return self.base_layer(x) + self._difference(x, of_weight, of_bias)
        weight, bias = weight_as_linear(base), base.bias
        if of_bias is not None:
            bias = add_at(bias, *of_bias)
        return linear(x, weight, bias) if of_weight is None else sparse_linear(x, weight, bias, *of_weight)

    def _difference(self, x: Tensor, of_weight: Entries | None, of_bias: Entries | None) -> Tensor:
        """``x delta_W^T + delta_bias``, for a base layer whose product is its own affair."""
        bias = None if of_bias is None else add_at(of_bias.values.new_zeros(self.out_features), *of_bias)
        if of_weight is None:
            return bias.to(x.dtype)
        return sparse_linear(x, x.new_zeros(self.out_features, self.in_features), bias, *of_weight)


class DiffPruningNorm(DiffPruningLayer, TrainedNorm):
    """A norm with changes at some positions of its weight and bias."""

    def _values(self, adapter_names: Sequence[str]) -> Any:
        values = super()._values([])
        for name in PARAMETERS:
            if (entries := self._entries(adapter_names, name)) is not None:
                values = values._replace(**{name: add_at(getattr(values, name), *entries)})
        return values


class DiffPruningModel(SparseTuner):
    """Adapts a model with a sparse difference; made by ``get_peft_model(model, DiffPruningConfig(...))``."""

    prefix = "diffpruning_"
    tuner_layer_cls = DiffPruningLayer
    # How many values the modules had that were adapted so far: shares are rounded in their sum.
    _total = 0

    def layer_class(self, target: nn.Module) -> type[SparseLayer]:
        return DiffPruningNorm if is_norm(target) else DiffPruningLinear

    def _prepare_adapter_config(self, peft_config: DiffPruningConfig, model_config: dict) -> DiffPruningConfig:
        self._total = 0
        return super()._prepare_adapter_config(peft_config, model_config)

    def _create_and_replace(
        self, peft_config: DiffPruningConfig, adapter_name: str, target: nn.Module, *args: Any, current_key: str
    ) -> None:
        peft_config.own_counts = self._counts(peft_config, target, current_key)
        super()._create_and_replace(peft_config, adapter_name, target, *args, current_key=current_key)

    def _counts(self, config: DiffPruningConfig, target: nn.Module, key: str) -> list[int]:
        if config.counts is not None:
            if key not in config.counts:
                raise ValueError(
                    f"counts of DiffPruningConfig has nothing for the module {key}, which is adapted; leave the module "
                    "out with exclude_modules, or leave counts out."
                )
            return config.counts[key]
        base = target.get_base_layer() if isinstance(target, DiffPruningLayer) else target
        found = self._targets(config).get(key)
        slices = None if found is None else found.slices
        counts = []
        for name in PARAMETERS:
            parameter = base._parameters.get(name)
            size = 0 if parameter is None else parameter.numel()
            size = size if slices is None else size * len(slices) // slices[0].parts
            before, self._total = self._total, self._total + size
            counts.append(kept(config.sparsity, self._total) - kept(config.sparsity, before))
        return counts

    def place(self, found: Mapping[str, Mapping[str, Entries]], adapter_name: str = "default") -> None:
        super().place(found, adapter_name)
        self.peft_config[adapter_name].counts = {
            name: [len(entries[parameter].index) if parameter in entries else 0 for parameter in PARAMETERS]
            for name, entries in found.items()
        }


register("diffpruning", DiffPruningConfig, DiffPruningModel)
