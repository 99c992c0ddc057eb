"""Quality against the number of adapted layers, and which layers are redundant (Chen et al. 2023, figure 4).

The layers that are kept come in four orders: all but one; from below, so that those next to the output stay; from
above, so that those next to the embeddings stay; by importance, the layer that changed least left out and the rest
trained again, and so on. A set of layers that several orders ask for is trained once.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plotly.graph_objects import Figure
from plotly.subplots import make_subplots
from safetensors.torch import load_file

from benchmarks.analysis import output, series
from benchmarks.analysis.series import Outcome, Series, SeriesSettings, Variant
from benchmarks.efficiency.report import table
from harness.errors import UserError

Order = Literal["single", "below", "above", "importance"]
Layers = tuple[int, ...]

ABOUT: dict[str, str] = {
    "single": "all but one",
    "below": "dropped from below",
    "above": "dropped from above",
    "importance": "least important dropped",
}

# where training starts; what it has changed since is what a layer has learned
STARTS = {"hadamard_weight": 1.0, "hadamard_bias": 0.0, "hadamard_norm_weight": 0.0, "hadamard_norm_bias": 0.0}


@dataclass(frozen=True)
class Settings(SeriesSettings):
    """Trains a method in fewer and fewer layers: quality by number of layers, and which layers are redundant."""

    method: str = "hadamard"
    """The method, one that has --method.layers; the order importance is for hadamard alone."""
    orders: tuple[Order, ...] = ("single", "below", "above", "importance")
    """Which layers are left out: single, each alone; below and above, from the one or the other end; importance, those
    that training changed least, again and again."""
    counts: tuple[int, ...] | None = None
    """How many layers are kept, of all numbers that there are, to save time; all layers are trained in any case."""


@dataclass(frozen=True)
class Removal:
    """What it costs to leave out one layer.

    Attributes:
        layer: its number.
        costs: how much worse the held-out selection value is than that of all layers, by seed; None without a value.
    """

    layer: int
    costs: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """The mean over seeds."""
        return series.spread(self.costs)["mean"]

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for one seed."""
        found = series.present(self.costs)
        return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None

    @property
    def redundant(self) -> bool:
        """Whether the cost is at most its standard error; with one seed, at most nothing."""
        return self.mean is not None and self.mean <= (self.error or 0.0)


@dataclass(frozen=True)
class Study:
    """All that was trained.

    Attributes:
        series: the runs.
        known: the layers that there are.
        sets: the layers kept, and which orders ask for that.
        outcomes: what each set gave.
        ranking: of each set on the way by importance, the importance of its layers, a mean over seeds.
    """

    series: Series
    known: Layers
    sets: Mapping[Layers, Sequence[Order]]
    outcomes: Mapping[Layers, Outcome]
    ranking: Mapping[Layers, Mapping[int, float]]

    @property
    def reference(self) -> Outcome:
        """All layers."""
        return self.outcomes[self.known]

    def sorted(self) -> list[tuple[Layers, Outcome]]:
        """The sets, the largest first."""
        return sorted(self.outcomes.items(), key=lambda item: (-len(item[0]), item[0]))

    def removals(self) -> list[Removal]:
        """What each layer costs that was left out alone."""
        sign = 1.0 if self.series.rule.higher_is_better else -1.0
        found = []
        for layer in self.known:
            rest = tuple(other for other in self.known if other != layer)
            if "single" in self.sets.get(rest, ()):
                pairs = series.differences(self.reference.selection, self.outcomes[rest].selection)
                found.append(Removal(layer, tuple(None if cost is None else sign * cost for cost in pairs)))
        return found


def parse(argv: Sequence[str]) -> Settings:
    """Returns the settings, with the harness's flags behind ``--``."""
    return series.parse_settings(Settings, "layers", argv)


def main(settings: Settings) -> None:
    """Trains what is missing, writes ``layers.csv``, ``.json`` and ``.html``, and prints the table.

    Raises:
        UserError: the settings cannot be used, or a run fails.
    """
    if "importance" in settings.orders and settings.method != "hadamard":
        raise UserError(
            f"--orders importance needs W, b and norms of --method hadamard, not {settings.method}: give "
            "--orders single below above"
        )
    if not settings.orders:
        raise UserError(f"--orders without a value: give some of {', '.join(ABOUT)}")
    runs = series.open_series(
        settings, settings.method, f"layers-{settings.task}-{settings.method}", ["--method.layers"]
    )
    known = tuple(runs.layers())
    sets = plan(settings.orders, known, settings.counts)
    if settings.dry_run:
        print(plan_in_words(runs, settings, known, sets))
        return
    output.prepare(runs.directory)
    print(plan_in_words(runs, settings, known, sets), file=sys.stderr)
    with series.resumable():
        study = train(runs, settings, known, sets)
    series.require_same(list(study.outcomes.values()))
    write(study)
    print(report(study))


def kept(known: Layers, counts: Sequence[int] | None) -> list[int]:
    """Returns the numbers of layers to train, the greatest first; all layers are always among them.

    Raises:
        UserError: there are not so many layers, or none would be left.
    """
    for count in counts or ():
        if not 1 <= count <= len(known):
            raise UserError(f"--counts has {count}: the model has {len(known)} layers, so give numbers from 1 to that")
    return sorted({len(known), *(range(1, len(known)) if counts is None else counts)}, reverse=True)


def plan(orders: Sequence[Order], known: Layers, counts: Sequence[int] | None) -> dict[Layers, list[Order]]:
    """Returns the sets of layers to train, each with the orders that ask for it; importance has only its first.

    Args:
        orders: which of them.
        known: the numbers of all layers, in order.
        counts: the numbers of layers to keep; all if None.
    """
    wanted = kept(known, counts)
    sets: dict[Layers, list[Order]] = {known: []}
    for order in orders:
        for layers in ordered(order, known):
            if len(layers) in wanted and order not in sets.setdefault(layers, []):
                sets[layers].append(order)
    return sets


def ordered(order: Order, known: Layers) -> list[Layers]:
    """Returns the sets of layers of an order; of importance those that need no training to be known."""
    if order == "single":
        return [tuple(other for other in known if other != layer) for layer in known if len(known) > 1]
    if order == "below":
        return [known[dropped:] for dropped in range(len(known))]
    if order == "above":
        return [known[: len(known) - dropped] for dropped in range(len(known))]
    return [known]


def variant(layers: Layers) -> Variant:
    """Returns what trains these layers."""
    numbers = [str(layer) for layer in layers]
    return Variant(f"layers-{'-'.join(numbers)}", f"layers {series.in_words(layers)}", ("--method.layers", *numbers))


def plan_in_words(runs: Series, settings: Settings, known: Layers, sets: Mapping[Layers, Sequence[Order]]) -> str:
    """Returns which sets of layers are to be trained, for which orders, and how many runs are missing."""
    seeds = len(settings.seeds)
    missing = runs.unfinished([variant(layers) for layers in sets])
    lines = [f"{series.in_words(layers)}: {', '.join(orders) or 'the reference'}" for layers, orders in sets.items()]
    lines.append(f"{len(sets)} sets of layers, {len(sets) * seeds} runs, {missing} of them to be made")
    if "importance" in settings.orders:
        # with one layer less, every set is one of single's
        steps = [
            n for n in kept(known, settings.counts)[1:] if not ("single" in settings.orders and n == len(known) - 1)
        ]
        lines.append(
            f"importance: at most {len(steps)} more sets, {len(steps) * seeds} runs, which depend on what is learned"
        )
    return "\n".join(lines)


def train(runs: Series, settings: Settings, known: Layers, planned: Mapping[Layers, Sequence[Order]]) -> Study:
    """Trains the planned sets of layers, and those that importance leads to."""
    sets = {layers: list(orders) for layers, orders in planned.items()}
    outcomes = {layers: runs.outcome(variant(layers)) for layers in sets}
    ranking: dict[Layers, dict[int, float]] = {}
    if "importance" in settings.orders:
        layers = known
        for count in kept(known, settings.counts)[1:]:
            ranking[layers] = mean_importance(outcomes[layers])
            layers = most_important(ranking[layers], count)
            sets.setdefault(layers, []).append("importance")
            if layers not in outcomes:
                outcomes[layers] = runs.outcome(variant(layers))
    return Study(runs, known, sets, outcomes, ranking)


def mean_importance(outcome: Outcome) -> dict[int, float]:
    """Returns the importance of each layer, a mean over the seeds."""
    found = [
        importance(adapter_file(directory, results["config"]["score"]))
        for directory, results in zip(outcome.directories, outcome.results, strict=True)
    ]
    return {layer: statistics.fmean(each[layer] for each in found) for layer in found[0]}


def adapter_file(directory: Path, score: Sequence[str]) -> Path:
    """Returns where a run keeps the parameters that held-out examples selected."""
    folder = "adapter" if score[0] == series.HELD_OUT else f"adapter-{series.HELD_OUT}"
    return directory / folder / "adapter_model.safetensors"


def importance(path: Path) -> dict[int, float]:
    """Returns how much training has changed each layer: the norm of W - 1, b and the norms' changes, all together.

    Args:
        path: an ``adapter_model.safetensors`` of a Hadamard adapter.

    Raises:
        UserError: it holds no Hadamard adapter.
    """
    squares: dict[int, float] = {}
    for name, tensor in load_file(path).items():
        start, layer = STARTS.get(name.rpartition(".")[2]), re.search(r"\.(\d+)\.", name)
        if start is not None and layer is not None:
            number = int(layer[1])
            squares[number] = squares.get(number, 0.0) + float((tensor.double() - start).square().sum())
    if not squares:
        raise UserError(f"{path} holds no Hadamard adapter: delete the run, and start the analysis again")
    return {layer: math.sqrt(squares[layer]) for layer in sorted(squares)}


def most_important(ranking: Mapping[int, float], count: int) -> Layers:
    """Returns this many layers; of equally important ones those next to the output."""
    return tuple(sorted(sorted(ranking, key=lambda layer: (ranking[layer], layer), reverse=True)[:count]))


def write(study: Study) -> None:
    """Writes data and plot."""
    directory = study.series.directory
    entries, rows = [], []
    for layers, outcome in study.sorted():
        about = {"number_of_layers": len(layers), "layers": series.in_words(layers)}
        rows += [{**about, "orders": " ".join(study.sets[layers]), **row} for row in outcome.rows(directory)]
        importances = {"importance": study.ranking[layers]} if layers in study.ranking else {}
        entries.append(
            {"layers": list(layers), "orders": list(study.sets[layers]), **importances, **outcome.summary(directory)}
        )
    removals: list[dict[str, Any]] = [
        {
            "layer": each.layer,
            "costs": list(each.costs),
            "mean": each.mean,
            "standard_error": each.error,
            "redundant": each.redundant,
        }
        for each in study.removals()
    ]
    about = series.conditions(study.series, [study.reference])
    output.write_csv(directory / "layers.csv", rows)
    output.write_json(directory / "layers.json", {"conditions": about, "sets": entries, "removals": removals})
    output.write_plot(directory / "layers.html", draw(study))


def draw(study: Study) -> Figure:
    """Returns quality against the number of layers, a line an order, and beside it what each layer's removal costs."""
    removals = study.removals()
    metric = study.series.rule.metric
    titles = ("quality by number of adapted layers", "cost of removing one layer alone")
    figure = make_subplots(1, 2 if removals else 1, subplot_titles=titles[: 2 if removals else 1])
    for order, about in ABOUT.items():
        found = [(layers, outcome) for layers, outcome in study.sorted() if order in study.sets[layers]]
        spreads = [series.spread(outcome.quality) for _, outcome in found]
        if found:
            figure.add_scatter(
                x=[len(layers) for layers, _ in found],
                y=[each["mean"] for each in spreads],
                error_y={"type": "data", "array": [each["std"] for each in spreads]},
                text=[f"layers {series.in_words(layers)}" for layers, _ in found],
                mode="markers" if order == "single" else "lines+markers",
                name=about,
                row=1,
                col=1,
            )
    everything = series.spread(study.reference.quality)["mean"]
    if everything is not None:
        figure.add_hline(y=everything, line_dash="dot", annotation_text="all layers", row=1, col=1)
    figure.update_xaxes(title_text="adapted layers", dtick=1, row=1, col=1)
    figure.update_yaxes(title_text=f"{metric}, held-out column", row=1, col=1)
    if removals:
        figure.add_bar(
            x=[each.layer for each in removals],
            y=[each.mean for each in removals],
            error_y={"type": "data", "array": [each.error for each in removals]},
            name="cost (standard error)",
            row=1,
            col=2,
        )
        figure.update_xaxes(title_text="layer left out", dtick=1, row=1, col=2)
        figure.update_yaxes(title_text=f"loss of {metric} on held-out examples", row=1, col=2)
    text = "<br>".join(series.conditions(study.series, [study.reference]))
    figure.update_layout(title={"text": text, "font": {"size": 11}}, margin_t=150)
    return figure


def report(study: Study) -> str:
    """Returns the table, and which layers are redundant."""
    headers = ["layers", "number", "orders", "adapter + norm", "selection", "held-out", "published"]
    rows = [
        [
            series.in_words(layers),
            str(len(layers)),
            " ".join(study.sets[layers]) or "-",
            f"{outcome.parameters['adapter'] + outcome.parameters['norm']:,}",
            *(series.shown(values) for values in (outcome.selection, outcome.quality, outcome.published)),
        ]
        for layers, outcome in study.sorted()
    ]
    lines = [*series.conditions(study.series, [study.reference]), "", table(headers, rows), ""]
    return "\n".join([*lines, *redundancy(study), "", f"files: {study.series.directory}"])


def redundancy(study: Study) -> list[str]:
    """Returns which layers are redundant, with the cost of each one's removal."""
    removals = study.removals()
    if not removals:
        return [
            "which layers are redundant is not known: it takes --orders single, and all layers but one among --counts"
        ]
    costs = [
        [str(each.layer), series.shown(each.costs, "+"), "-" if each.error is None else f"{each.error:.4f}"]
        for each in removals
    ]
    found = [each.layer for each in removals if each.redundant]
    several = len(study.series.settings.seeds) > 1
    bound = "no more than its standard error over seeds" if several else "nothing"
    noise = "" if several else "; with one seed the noise is unknown, so this may be chance"
    return [
        "cost of leaving out one layer alone: selection with all layers less selection without it, seed by seed",
        table(["layer", "cost", "standard error"], costs),
        f"redundant, since leaving out each alone costs {bound}: {series.in_words(found) or 'none'}{noise}",
    ]
