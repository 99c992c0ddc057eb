"""What a Hadamard adapter has learned, layer by layer, and how alike two such vectors are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from benchmarks.analysis.attention_outputs import sites
from benchmarks.analysis.runs import Run
from hadamard_adapter import HadamardLinear, HadamardNorm

ADAPTER = "default"  # peft's name for an adapter that is given none

# vector -> the role of the modules that hold it, their class, and the container in them
VECTORS = {
    "W": ("attention_output", HadamardLinear, "hadamard_weight"),
    "b": ("attention_output", HadamardLinear, "hadamard_bias"),
    "attention norm weight": ("attention_norm", HadamardNorm, "hadamard_norm_weight"),
    "attention norm bias": ("attention_norm", HadamardNorm, "hadamard_norm_bias"),
    "output norm weight": ("output_norm", HadamardNorm, "hadamard_norm_weight"),
    "output norm bias": ("output_norm", HadamardNorm, "hadamard_norm_bias"),
}
"""Of norms, what is held is what training has added to their own weight and bias."""

STARTS = {"W": 1.0}
"""Where vectors start that do not start at 0."""


@dataclass(frozen=True)
class Learned:
    """The vectors of an adapter.

    Attributes:
        vectors: one of :data:`VECTORS` -> layer -> (units,), float64; only what the adapter has.
        left_out: adapted modules that are not among these, such as cross-attention.
    """

    vectors: Mapping[str, Mapping[str, Tensor]]
    left_out: int

    @property
    def layers(self) -> list[str]:
        """The layers that hold any of the vectors, in the model's order."""
        return list(dict.fromkeys(layer for own in self.vectors.values() for layer in own))


def read_learned(run: Run) -> Learned:
    """Reads the adapter of a run of method ``hadamard``.

    Raises:
        UserError: its files cannot be read, or the model's layers are not known by role.
    """
    model = run.after(merged=False)
    adapted = {name for name, module in model.named_modules() if isinstance(module, (HadamardLinear, HadamardNorm))}
    vectors: dict[str, dict[str, Tensor]] = {}
    for vector, (role, kind, container) in VECTORS.items():
        for site in sites(model, role):
            module = model.get_submodule(site.name)
            if not isinstance(module, kind):
                continue
            adapted.discard(site.name)
            if ADAPTER in getattr(module, container):
                vectors.setdefault(vector, {})[site.layer] = getattr(module, container)[ADAPTER].detach().cpu().double()
    return Learned(vectors, len(adapted))


def change(vector: str, value: Tensor) -> Tensor:
    """Returns what training has done to a vector: W - 1, and the others as they are."""
    return value - STARTS.get(vector, 0.0)


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Returns the cosine similarity of two vectors (units,); None if one of them is 0."""
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else None


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Returns Pearson's correlation of two vectors (units,); None if one of them is constant."""
    return cosine(a - a.mean(), b - b.mean())
