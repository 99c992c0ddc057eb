"""The page of a sweep: one file that needs no network, with what the table says and plots of what counts."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from harness.errors import UserError
from harness.sweep import findings, page, show, words
from harness.sweep.slots import filled_trials

SPACE = {
    "train.learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "method.r": CategoricalDistribution([1, 8]),
}
NAME = "cola <script>alert('&')</script>"
HISTORY, SLICES, IMPORTANCE, REPORTED, LOSSES, PARETO = (
    "Optimisation history",
    "Value against each parameter",
    "Importance of parameters",
    "Values during training",
    "Training loss",
    "Pareto front",
)
ONE = (HISTORY, SLICES, IMPORTANCE)


def trial(slot, *values, state=TrialState.COMPLETE, reported=None, **attrs):
    params = {"train.learning_rate": 1e-3 * (1 + slot % 5), "method.r": (1, 8)[slot % 2]}
    attrs = {"slot": slot, "owner": "somebody", "seconds": 1.0, "steps": 20, **attrs}
    return create_trial(
        state=state,
        values=values or None,
        params=params,
        distributions=SPACE,
        intermediate_values=reported or {},
        user_attrs=attrs,
    )


def study_of(trials, **objectives):
    study = optuna.create_study(study_name=NAME, directions=list(objectives.values()))
    study.set_user_attr("identity", {"method": "hut", "task": "cola"})
    study.set_user_attr("objectives", list(objectives))
    study.add_trials(trials)
    return study


@pytest.fixture
def single():
    """Six slots: four complete, one diverged, one pruned; a lost and a spare attempt besides; slot 5 is not filled."""
    values = (0.1, 0.3, 0.2, 0.4)
    curves = [[[10, 0.7], [20, 0.7 - value]] for value in values]
    return study_of(
        [
            trial(0, state=TrialState.FAIL),
            *(trial(i, value, reported={10: value / 2}, curve=curves[i]) for i, value in enumerate(values)),
            trial(1, 0.9, curve=[[10, 0.0]]),
            trial(4, state=TrialState.PRUNED, failure="the loss is <nan>", curve=[[10, math.nan]]),
            trial(6, state=TrialState.PRUNED, reported={10: 0.05}, curve=[[10, 0.69]]),
        ],
        held_out_accuracy="maximize",
    )


@pytest.fixture
def double():
    """Three complete trials, the third of which the second dominates."""
    values = [(0.1, 100.0), (0.3, 200.0), (0.2, 300.0)]
    failed = trial(3, state=TrialState.FAIL, failure="out of memory")
    trials = [trial(slot, *pair) for slot, pair in enumerate(values)]
    return study_of([*trials, failed], held_out_accuracy="maximize", parameters="minimize")


def plots_of(study):
    plots = page.plots(show.summary(study), findings.numbered_by_slot(study, filled_trials(study)))
    return {plot.title: plot for plot in plots}


class Document(HTMLParser):
    """The tags of a page with their attributes, its text outside of scripts, and its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.scripts = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


def test_the_page_is_one_file_that_needs_no_network(single, tmp_path):
    path = tmp_path / "sweep.html"
    path.write_text("an older page")
    page.write(single, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.html"]
    document = Document(path.read_text(encoding="utf-8"))
    assert document.open == []
    names = [tag for tag, _ in document.tags]
    assert not {"link", "img", "iframe", "a"} & set(names)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in document.tags)
    assert sum("plotly.js v" in script[:200] for script in document.scripts) == 1
    drawn = [script for script in document.scripts if "Plotly.newPlot(" in script[:2000]]
    assert len(document.scripts) == 1 + len(drawn)
    assert len(drawn) == sum(plot.figure is not None for plot in plots_of(single).values()) == 5


def test_names_and_reasons_are_text_not_tags(single, tmp_path):
    page.write(single, tmp_path / "sweep.html")
    document = Document((tmp_path / "sweep.html").read_text(encoding="utf-8"))
    assert f"sweep {NAME}" in document.text
    assert "diverged: trial 4: the loss is <nan>" in document.text
    assert not any("<script>" in script or "alert(" in script for script in document.scripts[1:])


def test_the_page_says_what_the_table_says(single, tmp_path):
    page.write(single, tmp_path / "sweep.html")
    text = " ".join(Document((tmp_path / "sweep.html").read_text(encoding="utf-8")).text.split())
    told = words.conditions(show.summary(single)) + words.conclusions(show.summary(single))
    assert len(told) == 9
    assert all(sentence in text for sentence in told)


def test_all_trials_are_in_the_page(tmp_path):
    page.write(study_of([trial(slot, slot / 100) for slot in range(45)], held_out_accuracy="maximize"), tmp_path / "a")
    document = Document((tmp_path / "a").read_text(encoding="utf-8"))
    rows = [attributes.get("class") for tag, attributes in document.tags if tag == "tr"]
    assert rows == [None, "best", *[None] * 44]


def test_plots_show_what_counts_under_the_number_of_its_slot(single):
    plots = plots_of(single)
    assert list(plots) == [HISTORY, SLICES, IMPORTANCE, REPORTED, LOSSES]
    values, best, *_ = plots[HISTORY].figure.data
    assert (values.x, values.y) == ((0, 1, 2, 3), (0.1, 0.3, 0.2, 0.4))
    assert best.y == (0.1, 0.3, 0.3, *[0.4] * 4)  # slots 3 to 6
    rank, rate = plots[SLICES].figure.data
    assert dict(zip(rate.x, rate.y, strict=True)) == {1e-3: 0.1, 2e-3: 0.3, 3e-3: 0.2, 4e-3: 0.4}
    assert dict(zip(rank.y, rank.x, strict=True)) == {0.1: "1", 0.3: "8", 0.2: "1", 0.4: "8"}
    reported = {trace.name: (trace.x, trace.y) for trace in plots[REPORTED].figure.data}
    assert reported["Trial6"] == ((10,), (0.05,))
    assert reported["Trial1"] == ((10,), (0.15,))
    assert len(reported) == 5


def test_the_importance_plot_has_the_numbers_of_the_table(single):
    (bars,) = plots_of(single)[IMPORTANCE].figure.data
    (entry,) = show.summary(single)["importance"]
    assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(entry["shares"])


def test_loss_curves_have_the_colour_of_their_value(single):
    *curves, bar = plots_of(single)[LOSSES].figure.data
    assert [curve.name.split(" (")[0] for curve in curves] == [f"trial {slot}" for slot in (0, 1, 2, 3, 4, 6)]
    colours = [curve.line.color for curve in curves]
    assert (colours[0], colours[3]) == ("rgb(68, 1, 84)", "rgb(253, 231, 37)")  # the ends of Viridis
    assert len({*colours[:4]}) == 4
    assert colours[4:] == [page.GREY] * 2
    assert curves[1].y == (0.7, 0.7 - 0.3)
    assert bar.marker.color == (0.1, 0.3, 0.2, 0.4)


def test_each_objective_has_its_plots(double, tmp_path):
    plots = plots_of(double)
    of_each = [f"{title}: {name}" for name in ("held_out_accuracy", "parameters") for title in ONE]
    assert list(plots) == [PARETO, *of_each, REPORTED, LOSSES]
    dominated, front = plots[PARETO].figure.data
    assert (dominated.x, dominated.y) == ((0.2,), (300.0,))
    assert sorted(zip(front.x, front.y, strict=True)) == [(0.1, 100.0), (0.3, 200.0)]
    assert plots[f"{HISTORY}: parameters"].figure.data[0].y == (100.0, 200.0, 300.0)
    assert plots[f"{IMPORTANCE}: parameters"].reason == "it takes 4 complete trials, and there are 3"
    assert plots[REPORTED].reason == "trials with several objectives report no value before their end"
    assert plots[LOSSES].reason == "no trial recorded its training loss"
    page.write(double, tmp_path / "sweep.html")
    text = Document((tmp_path / "sweep.html").read_text(encoding="utf-8")).text
    assert text.count("left out: it takes 4 complete trials, and there are 3") == 2


def test_importance_of_one_objective_among_two_is_its_own():
    values = [(slot % 2 + slot * 1e-3, 100.0 * slot) for slot in range(5)]
    study = study_of([trial(i, *pair) for i, pair in enumerate(values)], quality="maximize", parameters="minimize")
    plots = plots_of(study)
    for index, name in enumerate(("quality", "parameters")):
        (bars,) = plots[f"{IMPORTANCE}: {name}"].figure.data
        shares = show.summary(study)["importance"][index]["shares"]
        assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(shares)
    first, second = (max(entry["shares"], key=entry["shares"].get) for entry in show.summary(study)["importance"])
    assert (first, second) == ("method.r", "train.learning_rate")


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"], ["maximize"] * 4])
def test_a_sweep_without_complete_trials_has_a_page_of_reasons(directions, tmp_path):
    objectives = {f"objective {index}": direction for index, direction in enumerate(directions)}
    study = study_of([trial(0, state=TrialState.FAIL, failure="out of memory")], **objectives)
    assert all(plot.figure is None and plot.reason for plot in plots_of(study).values())
    page.write(study, tmp_path / "sweep.html")
    assert "left out: no trial is complete" in (tmp_path / "sweep.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_one_sentence(single, tmp_path):
    with pytest.raises(
        UserError, match=r"^the page .*missing.*sweep\.html cannot be written: .*; choose another place$"
    ):
        page.write(single, tmp_path / "missing" / "sweep.html")
