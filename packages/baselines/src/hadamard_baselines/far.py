"""FAR, freeze and reconfigure (Vucetic et al. 2022, arXiv 2205.01541): train the nodes of the feed-forward that learn.

A node is an output of a feed-forward projection: a row of its weight and an entry of its bias. Stage 1, priming, trains
all nodes for a short while (:func:`prime`). The learning of a node is the L1 norm of what its values changed by; of
each projection, the nodes with the most become learners (:func:`learners`), and stage 2 trains only them: the adapter
of :class:`FarConfig`. ``far_weight`` (k, in_features) and ``far_bias`` (k,) hold what is added to the rows, the buffer
``far_index`` (k,) says which::

    y = x W^T + bias;    y[..., far_index] += x far_weight^T + far_bias

The paper cuts a projection in two, learners and the rest, and merges them after training. Adding to the outputs of the
whole is the same function: no gradient and no optimiser state exists for a frozen row, and only k rows are multiplied
twice.

What the paper leaves open, and what is chosen here: nodes that are not kept return to their pretrained values, so that
an adapter is its learners alone; learners go on from their primed values, with a new optimiser. Attention, norms and
embeddings are frozen throughout, the head trains in both stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.changes import Change, Slices, changes_of, put_changes, take_changes_off
from hadamard_baselines.sparse import Entries, SparseProjection, SparseTuner
from hadamard_core.config import HadamardConfig
from hadamard_core.registration import peft_type, register

FEED_FORWARD = ("ffn_input", "ffn_gate", "ffn_output")


def prime(model: nn.Module, modules: Mapping[str, Slices] | Sequence[str]) -> None:
    """Freezes a model and lets the weights and biases of some projections change, for stage 1.

    Args:
        modules: as of ``put_changes``.
    """
    put_changes(model, modules)


def learner_count(retain: float, nodes: int) -> int:
    """How many of so many nodes are learners."""
    return max(1, round(retain * nodes))


@torch.no_grad()
def learners(model: nn.Module, retain: float) -> dict[str, dict[str, Entries]]:
    """The nodes that changed most, of each projection, then makes of the model what it was before stage 1.

    Returns:
        by the name of the module, then that of the parameter, for :meth:`FarModel.place`. Of nodes that changed by the
        same, the first are taken.
    """
    changes: dict[str, dict[str, Change]] = {}
    for name, parameter, change in changes_of(model):
        changes.setdefault(name, {})[parameter] = change
    take_changes_off(model)
    found = {}
    for name, own in changes.items():
        rows = {parameter: change.by_row() for parameter, change in own.items()}
        learning = rows["weight"].abs().sum(1)
        if "bias" in rows:
            learning = learning + rows["bias"].abs()
        count = learner_count(retain, len(learning))
        index = learning.sort(descending=True, stable=True).indices[:count].sort().values
        nodes = own["weight"].features_of(index)
        found[name] = {parameter: Entries(nodes, values[index]) for parameter, values in rows.items()}
    return found


@dataclass
class FarConfig(HadamardConfig):
    """Configuration of learner rows, what stage 2 of FAR trains; further fields as in ``HadamardConfig``.

    A new adapter has its learners spread evenly over the nodes: learned positions come from stage 1, by :func:`prime`,
    :func:`learners` and :meth:`FarModel.place`.

    Args:
        retain: the share of the nodes of each projection that are learners.
        roles: the projections of the feed-forward; of the default those that the model has.

    Raises:
        ValueError: ``retain`` is not a share, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("FAR", "hadamard-baselines", "hadamard_baselines")

    roles: Sequence[str] | None = field(
        default=FEED_FORWARD, metadata={"help": "What to adapt where target_modules is not given, by role."}
    )
    retain: float = field(default=0.1, metadata={"help": "The share of the nodes of a projection that are learners."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("far")
        if not 0 < self.retain <= 1:
            raise ValueError(f"retain is {self.retain} in FarConfig; it must be above 0 and at most 1.")


class FarLinear(SparseProjection):
    """``y = x W^T + bias`` with ``x far_weight^T + far_bias`` added to the outputs ``far_index``."""

    adapter_layer_names = ("far_weight", "far_bias")
    index_names = ("far_index",)
    other_param_names = (*SparseProjection.other_param_names, *index_names)

    def add_adapter(self, adapter_name: str, config: FarConfig) -> None:
        own = self.rows_of(adapter_name)
        nodes = self.out_features if own is None else len(own)
        count = learner_count(config.retain, nodes)
        index = torch.arange(count) * nodes // count
        index = index if own is None else own[index]
        spread = 0.0 if config.init_weights else 0.2
        found = {"weight": Entries(index, spread * torch.randn(count, self.in_features))}
        if self.original()[1] is not None:
            found["bias"] = Entries(index, spread * torch.randn(count))
        self._put(adapter_name, found, trains=True)

    def place(self, adapter_name: str, found: Mapping[str, Entries]) -> None:
        self._put(adapter_name, found, self.trains(adapter_name))

    def _put(self, adapter_name: str, found: Mapping[str, Entries], trains: bool) -> None:
        self.far_index[adapter_name] = found["weight"].index.to(self.get_base_layer().weight.device)
        for parameter, entries in found.items():
            self._store(f"far_{parameter}", adapter_name, entries.values, trains)

    def _learners(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        # Past the attribute access of modules, which would take as long as a small layer.
        modules = self._modules
        weight, bias = (modules[name]._parameters.get(adapter_name) for name in self.adapter_layer_names)
        return modules["far_index"]._buffers[adapter_name], weight, bias

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        y = self.base_layer(x)
        # What a plain projection returns is nobody else's, so that it may be added to in place.
        add = Tensor.index_add if self.plain_base() is None else Tensor.index_add_
        for name in adapter_names:
            index, weight, bias = self._learners(name)
            learned = linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
            y = add(y, -1, index, learned.to(y.dtype))
        return y

    def changed(self, adapter_names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.original()
        transposed = isinstance(self.get_base_layer(), Conv1D)
        dtypes = [self.far_weight[name].dtype for name in adapter_names]
        dtype = max([weight.dtype, *dtypes], key=lambda dtype: torch.finfo(dtype).bits)
        new_weight, new_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        for name in adapter_names:
            index, of_weight, of_bias = self._learners(name)
            rows = of_weight.to(dtype)
            new_weight = new_weight.index_add(int(transposed), index, rows.T if transposed else rows)
            if of_bias is not None:
                new_bias = new_bias.index_add(0, index, of_bias.to(dtype))
        return new_weight.to(weight.dtype), None if bias is None else new_bias.to(bias.dtype)


class FarModel(SparseTuner):
    """Adapts nodes of projections; made by ``peft.get_peft_model(model, FarConfig(...))``."""

    prefix = "far_"
    tuner_layer_cls = FarLinear


register("far", FarConfig, FarModel)
