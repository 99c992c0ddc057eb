"""How the cost of a step grows with the rank, with the tokens, and with the adapters in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import PeftModel
from torch import nn

from benchmarks.efficiency.models import Batch, compiled, share_weights
from benchmarks.efficiency.report import table
from benchmarks.efficiency.settings import ModelSettings
from benchmarks.efficiency.timing import Ratio, Turn, interleave, median_seconds, paired
from benchmarks.efficiency.variants import FLOOR, RANKED, VARIANTS, adapt, add_noise, make

RANKS = (1, 8, 64)
ADAPTERS = (1, 2, 4, 8)
OVER_TOKENS = ("hut", "hut-weight", "hut-activation", "lora", "peft-lora")


@dataclass(frozen=True)
class Entry:
    """One measurement.

    Attributes:
        what: what grows.
        name: the row's short name.
        value: its rank, its tokens, or its adapters.
        over: what the ratio refers to.
        seconds: median of a step.
        ratio: of the step's time to that of what it refers to.
    """

    what: str
    name: str
    value: str
    over: str
    seconds: float
    ratio: Ratio


def measure(settings: ModelSettings, base: nn.Module) -> list[Entry]:
    """Returns all measurements of the rows that were asked for; each kind is interleaved for itself."""
    asked = settings.only or tuple(VARIANTS)
    ranked = [name for name in RANKED if name in asked]
    return [
        *_over_ranks(settings, base, ranked),
        *_over_tokens(settings, base, [name for name in OVER_TOKENS if name in asked]),
        *_over_adapters(settings, base, ranked),
    ]


def _over_ranks(settings: ModelSettings, base: nn.Module, names: Sequence[str]) -> list[Entry]:
    models = {
        f"{name} {r}": adapt(RANKED[name](r), share_weights(base), settings.seed, name) for name in names for r in RANKS
    }
    batch = Batch(base, settings.batch_size, settings.length, settings.seed)
    turns = _turns(settings, {key: (model, batch, {}) for key, model in models.items()})
    return [
        _entry(turns, "rank", name, f"r = {r}", f"{name} {r}", f"{name} {RANKS[0]}", f"r = {RANKS[0]}")
        for name in names
        for r in RANKS
    ]


def _over_tokens(settings: ModelSettings, base: nn.Module, names: Sequence[str]) -> list[Entry]:
    if not names:
        return []
    size, length = settings.batch_size, settings.length
    sizes = dict.fromkeys([(1, max(1, length // 8)), (1, length), (size, length), (4 * size, length)])
    models = {name: make(name, base, settings.seed) for name in (FLOOR, *names)}
    batches = {(count, tokens): Batch(base, count, tokens, settings.seed) for count, tokens in sizes}
    runs = {f"{name} {each}": (model, batch, {}) for each, batch in batches.items() for name, model in models.items()}
    turns = _turns(settings, runs)
    return [
        _entry(turns, "tokens", name, f"{each[0]} x {each[1]}", f"{name} {each}", f"{FLOOR} {each}", FLOOR)
        for name in names
        for each in sizes
    ]


def _over_adapters(settings: ModelSettings, base: nn.Module, names: Sequence[str]) -> list[Entry]:
    counts = [count for count in ADAPTERS if count <= settings.batch_size]
    batch = Batch(base, settings.batch_size, settings.length, settings.seed)
    runs = {}
    for name in names:
        model = _with_adapters(name, base, settings.seed, counts[-1])
        adapters = list(model.peft_config)
        for count in counts:
            of_samples = [adapters[sample % count] for sample in range(settings.batch_size)]
            runs[f"{name} {count}"] = (model, batch, {"adapter_names": of_samples})
    turns = _turns(settings, runs)
    return [
        _entry(turns, "adapters", name, f"{count} in a batch", f"{name} {count}", f"{name} {counts[0]}", "1 in a batch")
        for name in names
        for count in counts
    ]


def _with_adapters(name: str, base: nn.Module, seed: int, count: int) -> PeftModel:
    """A model with several adapters that all train, in evaluation mode because peft's LoRA refuses to mix in training.

    Without dropout, the modes compute the same.
    """
    model = adapt(VARIANTS[name].build, share_weights(base), seed, name)
    for number in range(1, count):
        model.add_adapter(f"adapter{number}", model.peft_config["default"])
    model.set_requires_grad(list(model.peft_config))
    add_noise(model, seed)
    return model.eval()


def _turns(settings: ModelSettings, runs: dict[str, tuple[nn.Module, Batch, dict]]) -> list[Turn]:
    embeddings = {key: model.get_input_embeddings() for key, (model, _, _) in runs.items()}
    models = {key: model for key, (model, _, _) in runs.items()}
    called = compiled(models) if settings.compile else models
    losses = {key: batch.loss(called[key], embeddings[key], **more) for key, (_, batch, more) in runs.items()}
    steps: dict[str, Callable[[], None]] = {key: lambda loss=loss: loss().backward() for key, loss in losses.items()}
    return interleave(steps, settings.turns, settings.torch_device, lambda key: models[key].zero_grad(), settings.steps)


def _entry(turns: Sequence[Turn], what: str, name: str, value: str, key: str, reference: str, over: str) -> Entry:
    return Entry(what, name, value, over, median_seconds(turns, key), paired(turns, key, reference))


def show(entries: Sequence[Entry]) -> str:
    """Returns the table."""
    lines = [
        [f"{entry.what}: {entry.name}", entry.value, f"{1e3 * entry.seconds:.1f}", entry.ratio.text, entry.over]
        for entry in entries
    ]
    return table(["growth with", "value", "ms", "ratio [95 %]", "over"], lines)
