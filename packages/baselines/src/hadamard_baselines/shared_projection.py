"""One ``x A^T`` for the layers that get the same input and have the same A, as VeRA's query and value."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn.functional import linear

from hadamard_core.functional.operators import working_dtype


class SharedProjection:
    """Remembers the latest projection, as long as its input is alive and unchanged.

    Layers share within a block, the module whose children they are, and each takes a projection once. A layer that
    comes again is in another forward pass, or in the same one computed anew by gradient checkpointing; because blocks
    are not cut by checkpointing, what is computed anew finds what it found at first.

    Nothing is kept alive for this: the projection goes when its input does, with the backward pass through it, or with
    the next one. It has no state worth copying or storing.
    """

    def __init__(self) -> None:
        self._latest: _Entry | None = None

    def __reduce__(self) -> tuple:
        return SharedProjection, ()

    def __deepcopy__(self, memo: dict) -> SharedProjection:
        return SharedProjection()

    def get(self, x: Tensor, matrix: Tensor, block: str, layer: object, differentiable: bool) -> Tensor | None:
        """Returns ``x A^T`` in the dtype of ``x`` (autocast's under autocast), or None where sharing is not safe.

        Args:
            x: (..., in_features).
            matrix: (r, at least in_features); A is its first in_features columns. Has no gradient.
            block: the block of the layer.
            layer: who asks.
            differentiable: whether the gradient of the result is to flow to ``x``.
        """
        if torch.is_inference_mode_enabled() or x.is_inference() or matrix.is_inference():
            return None  # Such tensors have no versions, so that a change in place would go unseen.
        differentiable = differentiable and x.requires_grad and torch.is_grad_enabled()
        if differentiable and x.is_leaf:
            return None  # The graph of the projection would keep x alive, and x the projection.
        dtype = working_dtype(x)
        key = (block, differentiable, dtype, x._version, matrix._version)
        latest = self._latest
        if latest is not None:
            projection = latest.projection
            if (
                projection is not None
                and latest.x() is x
                and latest.matrix is matrix
                and latest.key == key
                and id(layer) not in latest.layers
            ):
                latest.layers.add(id(layer))
                return projection
            self._latest = latest = None  # Its memory is free before the next is computed.
        down = matrix if matrix.shape[1] == x.shape[-1] else matrix[:, : x.shape[-1]]
        with torch.set_grad_enabled(differentiable):
            projection = linear(x.to(dtype), down.to(dtype))
        self._latest = _Entry(x, matrix, key, layer, projection)
        return projection


class _Entry:
    __slots__ = ("__weakref__", "key", "layers", "matrix", "projection", "x")

    def __init__(self, x: Tensor, matrix: Tensor, key: tuple, layer: object, projection: Tensor) -> None:
        own = weakref.ref(self)

        def release(_: object) -> None:
            entry = own()
            if entry is not None:
                entry.projection = entry.matrix = None

        self.x = weakref.ref(x, release)
        self.matrix: Tensor | None = matrix
        self.key = key
        self.layers = {id(layer)}
        self.projection: Tensor | None = projection
        if projection.requires_grad:
            # A graph is good for one backward pass.
            projection.register_hook(release)
