"""Which of W, b and norm have to be trained: all seven choices of them, and each alone in each layer alone.

Chen et al. 2023, figure 5, which looks at the three modules of the Hadamard adapter layer by layer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

import tyro
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from benchmarks.analysis import output, series
from benchmarks.analysis.series import Outcome, Series, SeriesSettings, Variant
from benchmarks.efficiency.report import table

METHOD = "hadamard"
MODULES = ("weight", "bias", "norm")
LABELS = {"weight": "W", "bias": "b", "norm": "norm"}

OWN_FLAGS = (
    "--method.weight",
    "--method.no-weight",
    "--method.bias",
    "--method.no-bias",
    "--method.norm",
    "--method.layers",
)


@dataclass(frozen=True)
class Settings(SeriesSettings):
    """Trains the Hadamard adapter with each choice of W, b and norm: which of them matter, and in which layers."""

    norm: Literal["attention", "output", "both"] = "attention"
    """Which norms of a layer are meant: that of the attention's block, of the feed-forward's, or both."""
    per_layer: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train each module alone in each layer alone, too: three more runs a layer and seed."""


@dataclass(frozen=True)
class Choice:
    """What is trained.

    Attributes:
        modules: some of ``weight``, ``bias`` and ``norm``.
        layer: the only layer that is adapted; all if None.
    """

    modules: tuple[str, ...]
    layer: int | None = None

    @property
    def label(self) -> str:
        return " + ".join(LABELS[module] for module in self.modules)

    @property
    def layers(self) -> str:
        return "all" if self.layer is None else str(self.layer)


SUBSETS = tuple(Choice(chosen) for size in (3, 2, 1) for chosen in combinations(MODULES, size))
EVERYTHING = SUBSETS[0]

Outcomes = Mapping[Choice, Outcome]


def parse(argv: Sequence[str]) -> Settings:
    """Returns the settings, with the harness's flags behind ``--``."""
    return series.parse_settings(Settings, "modules", argv)


def main(settings: Settings) -> None:
    """Trains what is missing, writes ``modules.csv``, ``.json`` and ``.html``, and prints the table.

    Raises:
        UserError: the settings cannot be used, or a run fails.
    """
    runs = series.open_series(settings, METHOD, f"modules-{settings.task}", OWN_FLAGS)
    choices = plan(runs.layers() if settings.per_layer else [])
    variants = {choice: variant(choice, settings.norm) for choice in choices}
    words = plan_in_words(runs, variants)
    if settings.dry_run:
        print(words)
        return
    output.prepare(runs.directory)
    print(words, file=sys.stderr)
    with series.resumable():
        outcomes = {choice: runs.outcome(each) for choice, each in variants.items()}
    series.require_same(list(outcomes.values()))
    write(runs, outcomes)
    print(report(runs, outcomes))


def plan(layers: Sequence[int]) -> list[Choice]:
    """Returns what to train: the seven choices over all layers, then each module alone in each of these layers."""
    return [*SUBSETS, *(Choice((module,), layer) for module in MODULES for layer in layers)]


def variant(choice: Choice, norm: str) -> Variant:
    """Returns what trains a choice of modules; ``norm`` says which norms are meant."""
    where = () if choice.layer is None else ("--method.layers", str(choice.layer))
    place = "all layers" if choice.layer is None else f"layer {choice.layer}"
    return Variant(
        "-".join(choice.modules) + ("" if choice.layer is None else f"-layer{choice.layer}"),
        f"{choice.label} in {place}",
        (
            *(f"--method.{'' if module in choice.modules else 'no-'}{module}" for module in ("weight", "bias")),
            *("--method.norm", norm if "norm" in choice.modules else "none"),
            *where,
        ),
    )


def plan_in_words(runs: Series, variants: Mapping[Choice, Variant]) -> str:
    """Returns what is to be trained, and how many runs are missing."""
    count = len(variants) * len(runs.settings.seeds)
    missing = runs.unfinished(list(variants.values()))
    lines = [each.words for each in variants.values()]
    return "\n".join([*lines, f"{len(variants)} choices, {count} runs, {missing} of them to be made"])


def gain(outcomes: Outcomes, choice: Choice) -> list[float | None]:
    """Returns the held-out quality of a choice less that of all three modules in all layers, seed by seed."""
    return series.differences(outcomes[choice].quality, outcomes[EVERYTHING].quality)


def write(runs: Series, outcomes: Outcomes) -> None:
    """Writes data and plot."""
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for choice, outcome in outcomes.items():
        about = {"modules": " ".join(choice.modules), "layers": choice.layers}
        rows += [{**about, **row} for row in outcome.rows(runs.directory)]
        difference = {"difference_from_all_three": series.spread(gain(outcomes, choice))}
        entries.append(
            {
                "modules": list(choice.modules),
                "layer": choice.layer,
                **difference,
                **outcome.summary(runs.directory),
            }
        )
    about = series.conditions(runs, list(outcomes.values()))
    output.write_csv(runs.directory / "modules.csv", rows)
    output.write_json(runs.directory / "modules.json", {"conditions": about, "choices": entries})
    output.write_plot(runs.directory / "modules.html", draw(runs, outcomes))


def draw(runs: Series, outcomes: Outcomes) -> Figure:
    """Returns bars of the seven choices and, where single layers were trained, a heat map of module and layer."""
    layers = sorted({choice.layer for choice in outcomes if choice.layer is not None})
    titles = ("trained in all layers", "trained alone in one layer")
    figure = make_subplots(1, 2 if layers else 1, subplot_titles=titles[: 2 if layers else 1])
    spreads = {choice.label: series.spread(outcomes[choice].quality) for choice in SUBSETS}
    figure.add_bar(
        x=list(spreads),
        y=[each["mean"] for each in spreads.values()],
        error_y={"type": "data", "array": [each["std"] for each in spreads.values()]},
        showlegend=False,
        row=1,
        col=1,
    )
    metric = f"{runs.rule.metric}, held-out column"
    figure.update_yaxes(title_text=metric, row=1, col=1)
    if layers:
        means = [
            [series.spread(outcomes[Choice((module,), layer)].quality)["mean"] for layer in layers]
            for module in MODULES
        ]
        figure.add_heatmap(
            x=layers,
            y=[LABELS[module] for module in MODULES],
            z=means,
            texttemplate="%{z:.3f}",
            colorbar_title_text=metric,
            row=1,
            col=2,
        )
        figure.update_xaxes(title_text="layer", dtick=1, row=1, col=2)
    text = "<br>".join(series.conditions(runs, list(outcomes.values())))
    figure.update_layout(title={"text": text, "font": {"size": 11}}, margin_t=150)
    return figure


def report(runs: Series, outcomes: Outcomes) -> str:
    """Returns the table."""
    seeds = [f"seed {seed}" for seed in runs.settings.seeds] if len(runs.settings.seeds) > 1 else []
    headers = ["modules", "layers", "adapter", "norm", "selection", "held-out", *seeds, "difference", "published"]
    rows = []
    for choice, outcome in outcomes.items():
        counts = outcome.parameters
        each = [series.shown([value]) for value in outcome.quality] if seeds else []
        rows.append(
            [
                choice.label,
                choice.layers,
                f"{counts['adapter']:,}",
                f"{counts['norm']:,}",
                series.shown(outcome.selection),
                series.shown(outcome.quality),
                *each,
                "" if choice == EVERYTHING else series.shown(gain(outcomes, choice), "+"),
                series.shown(outcome.published),
            ]
        )
    about = "difference: held-out quality less that of W + b + norm in all layers, seed by seed"
    norm = f"norm: that of --norm {runs.settings.norm}"
    lines = [*series.conditions(runs, list(outcomes.values())), norm, about, "", table(headers, rows)]
    return "\n".join([*lines, "", f"files: {runs.directory}"])
