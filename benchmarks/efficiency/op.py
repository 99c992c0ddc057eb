"""What the ops cost alone: ``python -m benchmarks.efficiency.op``.

One projection of (features, features), forward and backward with the gradient of x and of what trains, against the
frozen projection with the gradient of x; ``scale_shift`` comes before such a projection. Ratios are medians of paired
ratios of interleaved turns. The errors are the largest ones relative to the largest value of the same tensor, of the
output and of any gradient, against the formula in plain PyTorch and float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.efficiency.report import conditions_of_times, table, write_json
from benchmarks.efficiency.settings import Settings, chosen, parse
from benchmarks.efficiency.timing import Ratio, interleave, median_seconds, paired
from benchmarks.efficiency.variants import LORA_RANK, VERA_RANK
from hadamard_core.functional import low_rank_linear, scale_shift, scaled_linear
from harness.errors import UserError, run_command

FLOOR = "frozen"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class OpSettings(Settings):
    """Measures the ops alone against a frozen projection."""

    tokens: tuple[int, ...] = (16, 256, 1024, 4096)
    """Numbers of tokens."""
    features: tuple[int, ...] = (1024,)
    """Numbers of input features, and as many output features."""
    only: tuple[str, ...] = ()
    """Rows to measure; all if not given. The frozen projection is always measured."""


@dataclass(frozen=True)
class Op:
    """A row.

    Attributes:
        trained: the tensors that train beside x.
        run: the op as it is here.
        formula: the same in plain PyTorch, any dtype.
    """

    trained: tuple[str, ...]
    run: Callable[[Tensors], Tensor]
    formula: Callable[[Tensors], Tensor]


def _scaled_linear(compute: str) -> Callable[[Tensors], Tensor]:
    def run(t: Tensors) -> Tensor:
        vectors = t["scale_in"], t["scale_out"], t["shift"]
        return scaled_linear(t["x"], t["weight"], t["bias"], *vectors, compute=compute)

    return run


def _hut_by_activation(t: Tensors) -> Tensor:
    return linear(t["x"] * t["scale_in"], t["weight"]) * t["scale_out"] + t["bias"] + t["shift"]


def _hut_by_weight(t: Tensors) -> Tensor:
    scaled = t["weight"] * torch.outer(t["scale_out"], t["scale_in"])
    return linear(t["x"], scaled.to(t["x"].dtype), (t["bias"] + t["shift"]).to(t["x"].dtype))


def _frozen(t: Tensors) -> Tensor:
    return linear(t["x"], t["weight"], t["bias"])


def _scale_shift(t: Tensors) -> Tensor:
    return linear(scale_shift(t["x"], t["scale_in"], t["shift_in"]), t["weight"], t["bias"])


def _scale_shift_formula(t: Tensors) -> Tensor:
    return linear(t["x"] * t["scale_in"] + t["shift_in"], t["weight"], t["bias"])


def _lora(t: Tensors) -> Tensor:
    return low_rank_linear(t["x"], t["weight"], t["bias"], t["lora_down"], t["lora_up"], 2.0)


def _lora_formula(t: Tensors) -> Tensor:
    return _frozen(t) + 2.0 * linear(linear(t["x"], t["lora_down"]), t["lora_up"])


def _vera(compute: str) -> Callable[[Tensors], Tensor]:
    def run(t: Tensors) -> Tensor:
        scales = {"scale_down": t["scale_down"], "scale_up": t["scale_up"]}
        inputs = t["x"], t["weight"], t["bias"], t["vera_down"], t["vera_up"]
        return low_rank_linear(*inputs, **scales, compute=compute)

    return run


def _vera_formula(t: Tensors) -> Tensor:
    update = linear(linear(t["x"], t["vera_down"]) * t["scale_down"], t["vera_up"]) * t["scale_up"]
    return _frozen(t) + update


_HUT = ("scale_in", "scale_out", "shift")
_VERA = ("scale_down", "scale_up")
OPS = {
    FLOOR: Op((), _frozen, _frozen),
    "scaled_linear:weight": Op(_HUT, _scaled_linear("weight"), _hut_by_activation),
    "scaled_linear:activation": Op(_HUT, _scaled_linear("activation"), _hut_by_activation),
    "scaled_weight:autograd": Op(_HUT, _hut_by_weight, _hut_by_activation),
    "scale_shift": Op(("scale_in", "shift_in"), _scale_shift, _scale_shift_formula),
    "low_rank_linear:lora": Op(("lora_down", "lora_up"), _lora, _lora_formula),
    "low_rank_linear:vera": Op(_VERA, _vera("low_rank"), _vera_formula),
    "low_rank_linear:vera-composed": Op(_VERA, _vera("compose"), _vera_formula),
}


@dataclass(frozen=True)
class Row:
    """What an op costs and how exact it is.

    Attributes:
        seconds: median of a forward and backward pass.
        to_floor: their ratio to the frozen projection's.
        output_error: largest error relative to the largest value.
        gradient_error: the same, the largest over all gradients.
        worst_gradient: which one that is.
    """

    op: str
    tokens: int
    features: int
    seconds: float
    to_floor: Ratio
    output_error: float
    gradient_error: float
    worst_gradient: str


def tensors(settings: OpSettings, tokens: int, features: int) -> dict[str, Tensor]:
    """Returns inputs, frozen weights and trained values of all ops; the latter fp32, as adapters are."""
    generator = torch.Generator().manual_seed(settings.seed)

    def draw(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    frozen = {
        "x": draw(tokens, features),
        "target": draw(tokens, features),
        "weight": draw(features, features, std=features**-0.5),
        "bias": draw(features, std=0.1),
    }
    trained = {
        "scale_in": draw(features, mean=1.0, std=0.1),
        "shift_in": draw(features, std=0.1),
        "scale_out": draw(features, mean=1.0, std=0.1),
        "shift": draw(features, std=0.1),
        "lora_down": draw(LORA_RANK, features, std=features**-0.5),
        "lora_up": draw(features, LORA_RANK, std=0.02),
        "vera_down": draw(VERA_RANK, features, std=features**-0.5),
        "vera_up": draw(features, VERA_RANK, std=VERA_RANK**-0.5),
        "scale_down": draw(VERA_RANK, mean=0.1, std=0.02),
        "scale_up": draw(features, std=0.1),
    }
    device = settings.torch_device
    cast = {name: tensor.to(device, settings.torch_dtype) for name, tensor in frozen.items()}
    return {**cast, **{name: tensor.to(device) for name, tensor in trained.items()}}


def measure(settings: OpSettings) -> list[Row]:
    """Returns the rows of all shapes; the ops of one shape are interleaved."""
    names = chosen(settings.only, list(OPS), FLOOR)
    rows = []
    for features in settings.features:
        for tokens in settings.tokens:
            given = tensors(settings, tokens, features)
            inputs = {name: _leaves(given, OPS[name].trained) for name in names}
            steps = {name: _step(OPS[name].run, inputs[name]) for name in names}
            turns = interleave(steps, settings.turns, settings.torch_device, _forgetter(inputs), settings.steps)
            for name in names:
                errors = _errors(OPS[name], inputs[name])
                row = Row(name, tokens, features, median_seconds(turns, name), paired(turns, name, FLOOR), *errors)
                rows.append(row)
    return rows


def _leaves(given: Tensors, trained: Sequence[str]) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_(name == "x" or name in trained) for name, t in given.items()}


def _step(run: Callable[[Tensors], Tensor], inputs: Tensors) -> Callable[[], Tensor]:
    def step() -> Tensor:
        result = run(inputs)
        result.backward(inputs["target"].to(result.dtype))
        return result

    return step


def _forgetter(inputs: Mapping[str, Tensors]) -> Callable[[str], None]:
    def forget(name: str) -> None:
        for tensor in inputs[name].values():
            tensor.grad = None

    return forget


def _errors(op: Op, inputs: Tensors) -> tuple[float, float, str]:
    result = _step(op.run, inputs)()
    exact = _leaves({name: tensor.detach().double() for name, tensor in inputs.items()}, op.trained)
    expected = _step(op.formula, exact)()
    gradients = {name: _error(inputs[name].grad, exact[name].grad) for name in ("x", *op.trained)}
    worst = max(gradients, key=gradients.get)
    return _error(result, expected), gradients[worst], worst


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def show(settings: OpSettings, rows: Sequence[Row]) -> str:
    """Returns the table."""
    lines = [
        [
            row.op,
            f"{row.tokens} x {row.features}",
            f"{1e3 * row.seconds:.2f}",
            row.to_floor.text,
            row.to_floor.quartiles_text,
            f"{row.output_error:.1e}",
            f"{row.gradient_error:.1e} ({row.worst_gradient})",
        ]
        for row in rows
    ]
    headers = ["op", "tokens x features", "ms", "to frozen [95 %]", "quartiles", "output error", "worst gradient error"]
    return f"{conditions_of_times(settings)}\n\n{table(headers, lines)}"


def main(argv: Sequence[str]) -> int:
    settings = parse(OpSettings, "op", argv)
    for name in ("tokens", "features"):
        if min(getattr(settings, name), default=0) < 1:
            raise UserError(f"--{name}: give numbers of at least 1")
    rows = measure(settings)
    print(show(settings, rows))
    write_json("op", settings, {"rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
