"""A sweep as one HTML file that opens without a network: what the table says, and Optuna's plots of the study."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna import visualization
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from harness.errors import UserError, one_line
from harness.rundir import write_text
from harness.sweep import findings, show, words
from harness.sweep.slots import filled_trials

COLOURS = "Viridis"
GREY = "#bbbbbb"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: 0.15em 0.8em; text-align: right; border-bottom: 1px solid #ddd }
tr.best { background: #e8f3e8 }
"""

Target = Callable[[FrozenTrial], float] | None


@dataclass(frozen=True)
class Plot:
    """A section of the page.

    Attributes:
        reason: why there is no figure, as the end of a sentence.
    """

    title: str
    figure: go.Figure | None = None
    reason: str = ""
    note: str = ""


def write(study: Study, path: Path) -> None:
    """Writes the page of a study, about 5 MB, most of it plotly's script.

    Raises:
        UserError: the study was not made by a sweep of ours, or the file cannot be written.
    """
    text = render(show.summary(study), findings.numbered_by_slot(study, filled_trials(study)))
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"the page {path} cannot be written: {one_line(error)}; choose another place") from error


def render(summary: Mapping[str, Any], counted: Study) -> str:
    """Returns the page.

    Args:
        summary: what :func:`harness.sweep.show.summary` returned.
        counted: the same sweep's trials that count, as :func:`harness.sweep.findings.numbered_by_slot` returns them.
    """
    first, *conditions = words.conditions(summary)
    title = html.escape(first)
    sections = [_section(plot, f"plot-{number}") for number, plot in enumerate(plots(summary, counted))]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>',
            f"<script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>",
            *_paragraphs(conditions),
            *_table(summary),
            *_paragraphs(words.failures(summary)),
            *_paragraphs(words.conclusions(summary)),
            *sections,
            "</body></html>\n",
        ]
    )


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    return [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]


def _table(summary: Mapping[str, Any]) -> list[str]:
    best = {summary["best"], *(summary["pareto_front"] or ())}
    header, rows = words.columns(summary)
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    for entry, row in zip(words.ranked(summary), rows, strict=True):
        mark = ' class="best"' if entry["slot"] in best else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return ['<div class="wide"><table>', *lines, "</table></div>"] if rows else []


def _section(plot: Plot, identifier: str) -> str:
    heading = f"<h2>{html.escape(plot.title)}</h2>"
    if plot.figure is None:
        return f"{heading}\n<p>left out: {html.escape(plot.reason)}</p>"
    plot.figure.update_layout(template="plotly_white", title=None, margin_t=30)
    note = f"<p>{html.escape(plot.note)}</p>" if plot.note else ""
    drawn = plot.figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=identifier, config={"displaylogo": False}
    )
    return f'{heading}\n{note}<div class="wide">{drawn}</div>'


def plots(summary: Mapping[str, Any], counted: Study) -> list[Plot]:
    """Returns all plots of a page, those that this study has no data for with the reason."""
    objectives = [objective["name"] for objective in summary["objectives"]]
    several = len(objectives) > 1
    found = [_pareto_front(objectives, summary["trials"]["complete"], counted)] if several else []
    for index, (name, importance) in enumerate(zip(objectives, summary["importance"], strict=True)):
        ending = f": {name}" if several else ""
        target = _value_of(index) if several else None
        found += [
            _history(f"Optimisation history{ending}", counted, name, target),
            _slices(f"Value against each parameter{ending}", counted, name, target),
            _importances(f"Importance of parameters{ending}", counted, importance, _value_of(index)),
        ]
    return [*found, _reported(objectives, counted), _losses(objectives[0], counted)]


def _value_of(index: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[index]


def _complete(counted: Study) -> list[FrozenTrial]:
    return counted.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _pareto_front(objectives: Sequence[str], complete: int, counted: Study) -> Plot:
    title = "Pareto front"
    if len(objectives) > 3:
        return Plot(title, reason=f"there are {len(objectives)} objectives, and a plot shows up to 3")
    if not complete:
        return Plot(title, reason="no trial is complete")
    return Plot(title, visualization.plot_pareto_front(counted, target_names=list(objectives)))


def _history(title: str, counted: Study, name: str, target: Target) -> Plot:
    if not _complete(counted):
        return Plot(title, reason="no trial is complete")
    return Plot(title, visualization.plot_optimization_history(counted, target=target, target_name=name))


def _slices(title: str, counted: Study, name: str, target: Target) -> Plot:
    if not any(trial.params for trial in _complete(counted)):
        return Plot(title, reason="no complete trial has a parameter")
    return Plot(title, visualization.plot_slice(counted, target=target, target_name=name))


def _importances(title: str, counted: Study, importance: Mapping[str, Any], target: Target) -> Plot:
    if importance["shares"] is None:
        return Plot(title, reason=importance["reason"])
    figure = visualization.plot_param_importances(
        findings.ready_for_importance(counted),
        evaluator=findings.evaluator(),
        params=list(importance["shares"]),
        target=target,
        target_name=importance["objective"],
    )
    note = f"fANOVA over {importance['trials']} complete trials, in the scale that each parameter is searched on"
    return Plot(title, figure, note=note)


def _reported(objectives: Sequence[str], counted: Study) -> Plot:
    title = "Values during training"
    if len(objectives) > 1:
        return Plot(title, reason="trials with several objectives report no value before their end")
    trials = counted.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if not any(trial.intermediate_values for trial in trials):
        return Plot(title, reason="no trial reported a value before its end")
    figure = visualization.plot_intermediate_values(counted)
    return Plot(title, figure.update_layout(xaxis_title="optimiser step", yaxis_title=objectives[0]))


def _losses(objective: str, counted: Study) -> Plot:
    title = "Training loss"
    trials = [trial for trial in counted.get_trials(deepcopy=False) if trial.user_attrs.get("curve")]
    if not trials:
        return Plot(title, reason="no trial recorded its training loss")
    # A pruned trial has a value as well, the last that it reported, which does not compare with those of complete ones.
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and math.isfinite(trial.values[0])]
    values = {trial.number: trial.values[0] for trial in complete}
    figure = go.Figure([_curve(trial, values) for trial in trials])
    if values:
        figure.add_trace(_colour_bar(objective, list(values.values())))
    figure.update_layout(xaxis_title="optimiser step", yaxis_title="mean training loss", showlegend=False)
    return Plot(title, figure, note="Complete trials in the colour of their value, the others in grey.")


def _curve(trial: FrozenTrial, values: Mapping[int, float]) -> go.Scatter:
    steps, losses = zip(*trial.user_attrs["curve"], strict=True)
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    share = (values[trial.number] - low) / (high - low) if trial.number in values and high > low else 0.5
    colour = sample_colorscale(COLOURS, share)[0] if trial.number in values else GREY
    params = "<br>".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()
    )
    value = f"{values[trial.number]:.4g}" if trial.number in values else show.state_in_words(trial)
    return go.Scatter(
        x=steps,
        y=losses,
        mode="lines+markers" if len(steps) == 1 else "lines",
        line_color=colour,
        name=f"trial {trial.number} ({value})",
        hovertext=params,
    )


def _colour_bar(objective: str, values: list[float]) -> go.Scatter:
    """Returns a trace without points that shows which colour is which value."""
    marker = {"color": values, "colorscale": COLOURS, "showscale": True, "colorbar": {"title": objective}}
    return go.Scatter(x=[None] * len(values), y=[None] * len(values), mode="markers", marker=marker, hoverinfo="none")
