"""Sorts runs into boards and rows, and says what each comes to.

See :mod:`harness.report.identity` for what makes runs comparable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config import flatten
from harness.errors import UserError
from harness.registry import closest
from harness.report import costs as cost_files
from harness.report.checks import PARAMETERS
from harness.report.identity import as_key, row_settings, scored_on, shared_data
from harness.report.model import Board, Costs, Difference, Row, RunEntry, Statistic
from harness.report.reading import Found, Run
from harness.report.statistics import compare, describe

WAYS = ("held_out", "published", "last")
"""Ways of selection in the order in which they are shown."""
HELD_OUT = "held_out"
Runs = Mapping[int, Run]


def build(found: Found, reference: str | None) -> tuple[list[Board], list[RunEntry]]:
    """Returns the boards, and the runs that they were made from.

    Args:
        reference: the label of the row that others are compared with; if None, the best one of each board, among
            those with several seeds if there are any.

    Raises:
        UserError: no board has a row of that label.
    """
    grouped: dict[str, dict[str, dict[int, Run]]] = {}
    for (board, row, seed), run in found.runs.items():
        grouped.setdefault(board, {}).setdefault(row, {})[seed] = run
    boards: list[Board] = []
    entries: list[RunEntry] = []
    ordered = sorted(grouped.values(), key=lambda rows: _place(_first(next(iter(rows.values()))).result))
    names = name_boards([_first(next(iter(rows.values()))).result for rows in ordered])
    for rows, name in zip(ordered, names, strict=True):
        identifier = f"board-{len(boards) + 1}"
        board, its = _board(identifier, name, list(rows.values()), found.costs, reference, len(entries))
        boards.append(board)
        entries += its
    labels = list(dict.fromkeys(row.label for board in boards for row in board.rows))
    if reference is not None and reference not in labels:
        raise UserError(
            f"--reference {reference}: no row has that label{closest(reference, labels)} (known: {'; '.join(labels)})"
        )
    return boards, entries


def _place(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return result["task"]["name"], result["model"]["name"], as_key(result["data"])


def _first(runs: Runs) -> Run:
    return runs[min(runs)]


def _board(
    identifier: str,
    name: str,
    groups: Sequence[Runs],
    costs: Mapping[str, Costs],
    reference: str | None,
    made: int,
) -> tuple[Board, list[RunEntry]]:
    """Returns a board and its runs.

    Args:
        groups: the runs of each row by seed.
        made: how many runs the boards before have.
    """
    results = [run.result for runs in groups for run in runs.values()]
    present = {which: entry["selected_by"] for result in results for which, entry in result["evaluations"].items()}
    ways = sorted(present, key=lambda which: (WAYS.index(which) if which in WAYS else len(WAYS), which))
    scores = [entry["metrics"] for result in results for entry in result["evaluations"].values()]
    metrics = list(dict.fromkeys(name for score in scores for name in score))
    metric = judged_by(results, metrics)
    labels = label_rows([row_settings(_first(runs).result) for runs in groups])
    rows: list[Row] = []
    entries: list[RunEntry] = []
    for (label, settings), runs in zip(labels, groups, strict=True):
        row_id, its = f"{identifier}-row-{len(rows) + 1}", []
        for seed, run in sorted(runs.items()):
            its.append(_entry(f"run-{made + len(entries) + len(its) + 1}", identifier, row_id, seed, run))
        rows.append(_row(row_id, label, settings, runs, [entry.id for entry in its], costs))
        entries += its

    def merit(row: Row) -> float:
        statistic = row.quality.get(ways[0], {}).get(metric)
        return float("-inf") if statistic is None else statistic.mean

    rows.sort(key=lambda row: (-merit(row), row.label))
    several = [row for row in rows if len(row.runs) > 1]  # with one seed, no difference could be told from noise
    chosen = next((row for row in rows if row.label == reference), (several or rows)[0])
    first = results[0]
    split, examples = scored_on(first)
    board = Board(
        id=identifier,
        name=name,
        task=first["task"]["name"],
        version=first["task"]["version"],
        model=first["model"]["name"],
        weights=first["model"]["sha256"],
        setting=setting_in_words(first),
        split=split,
        examples=examples,
        selections={which: present[which] for which in ways},
        metrics=metrics,
        metric=metric,
        seeds=sorted({result["seed"] for result in results}),
        rows=rows,
        reference=chosen.id,
        differences=_differences(rows, chosen, ways, metric),
        notes=_notes(rows, groups, results, chosen.label if reference not in (None, chosen.label) else None),
    )
    return board, entries


def _entry(identifier: str, board: str, row: str, seed: int, run: Run) -> RunEntry:
    result = run.result
    return RunEntry(
        id=identifier,
        file=run.file,
        board=board,
        row=row,
        method=result["method"]["name"],
        task=result["task"]["name"],
        seed=seed,
        result=result,
        predictions=run.predictions,
    )


def judged_by(results: Iterable[Mapping[str, Any]], reported: Sequence[str]) -> str:
    """Returns the metric that a task is judged by, more of which is better; empty if none but losses was computed.

    It is the one that selects parameters, or the first that is reported.
    """
    chosen = [
        entry["selection"]["metric"]
        for result in results
        for entry in result["evaluations"].values()
        if entry.get("selection")
    ]
    candidates = [*(name for name in chosen if name in reported), *reported]
    return next((name for name in candidates if not name.startswith("loss")), "")


def _row(
    identifier: str,
    label: str,
    settings: Mapping[str, str],
    runs: Runs,
    entries: Sequence[str],
    costs: Mapping[str, Costs],
) -> Row:
    results = {seed: run.result for seed, run in runs.items()}
    first = _first(runs).result
    trained = first.get("stages") or [first["train"]]
    sized = [seed for seed in sorted(results) if results[seed].get("checkpoint_bytes") is not None]
    losses = {seed: loss for seed, result in results.items() if (loss := held_out_loss(result)) is not None}
    return Row(
        id=identifier,
        method=first["method"]["name"],
        label=label,
        settings=settings,
        learning_rate=first["config"]["train"]["learning_rate"],
        steps=sum(stage.get("steps", 0) for stage in trained),
        batch_size=first["train"]["batch_size"],
        runs=entries,
        parameters={name: first["parameters"][name] for name in PARAMETERS},
        quality=_quality(results),
        held_out_loss=describe(losses) if losses else None,
        costs=cost_files.of_run(costs, results[sized[0]] if sized else first),
        tuning=next((run.tuning for _, run in sorted(runs.items()) if run.tuning is not None), None),
    )


def _quality(results: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Statistic]]:
    values: dict[str, dict[str, dict[int, float]]] = {}
    for seed, result in results.items():
        for which, entry in result["evaluations"].items():
            for name, value in entry["metrics"].items():
                values.setdefault(which, {}).setdefault(name, {})[seed] = value
    return {which: {name: describe(by_seed) for name, by_seed in metrics.items()} for which, metrics in values.items()}


def held_out_loss(result: Mapping[str, Any]) -> float | None:
    """Returns the lowest loss on the held-out part in a run's last stage, None if none was measured."""
    measured = [point.get(HELD_OUT, {}).get("loss") for point in result["train"].get("measurements", ())]
    return min((loss for loss in measured if loss is not None), default=None)


def _differences(rows: Sequence[Row], reference: Row, ways: Sequence[str], metric: str) -> list[Difference]:
    found = []
    for which in ways:
        theirs = reference.quality.get(which, {}).get(metric)
        for row in rows:
            ours = row.quality.get(which, {}).get(metric)
            if row is not reference and ours is not None and theirs is not None:
                found.append(compare(row.id, reference.id, which, metric, ours.values, theirs.values))
    return found


def label_rows(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """Returns label and settings of each row: the method, with what not all rows of the same method have.

    Args:
        trees: the rows' configurations.
    """
    flat = [flatten(tree) for tree in trees]
    written = [{key: as_key(value) for key, value in own.items()} for own in flat]
    rows_of = Counter(own["method"] for own in flat)
    having = Counter((keys["method"], key, value) for keys in written for key, value in keys.items())
    found = []
    for own, keys in zip(flat, written, strict=True):
        differ = [key for key in own if having[keys["method"], key, keys[key]] < rows_of[own["method"]]]
        found.append({_dotted(key): in_words(own[key]) for key in differ})
    shared = Counter(_short(name) for name in {name for settings in found for name in settings})
    labels: Counter[str] = Counter()
    rows = []
    for own, settings in zip(flat, found, strict=True):
        told = [f"{_short(name) if shared[_short(name)] == 1 else name} {value}" for name, value in settings.items()]
        label = ", ".join([own["method"], *told])
        labels[label] += 1
        rows.append((label if labels[label] == 1 else f"{label} ({labels[label]})", settings))
    return rows


def _dotted(key: str) -> str:
    """Returns a configuration's key as people give it: ``method.r``, ``stage1.learning_rate``."""
    section, dot, name = key.partition(".")
    return f"method.{name}" if section == "method_settings" and dot else key.removeprefix("stages.")


def _short(name: str) -> str:
    return name.removeprefix("method.").removeprefix("train.")


def in_words(value: Any) -> str:
    """Returns a setting's value as it stands in a label."""
    if isinstance(value, list):
        return "+".join(map(in_words, value))
    return format(value, "g") if isinstance(value, float) else str(value)


def setting_in_words(result: Mapping[str, Any]) -> str:
    """Returns what the runs of a board have in common, beside task, weights and split."""
    parts = [", ".join(_named(shared_data(result))), f"start: {_start(result)}"]
    if settings := result["config"].get("task_settings"):
        parts.append("task settings: " + ", ".join(_named(settings)))
    return "; ".join(parts)


def _start(result: Mapping[str, Any]) -> str:
    start = result["init_from"]
    return "the model as it comes" if start is None else ", ".join(_named(start))


def name_boards(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what boards are called: task and model, and as few facts as tell those of the same task and model apart.

    Args:
        results: one of each board.
    """
    names = [f"{result['task']['name']} · {result['model']['name']}" for result in results]
    facts = [_facts(result) for result in results]
    for key in dict.fromkeys(key for own in facts for key in own):
        for name, alike in _alike(names).items():
            values = {facts[at].get(key) for at in alike}
            if len(values) > 1:
                for at in alike:
                    names[at] = f"{name}, {facts[at].get(key, f'no {_spaced(key)}')}"
    for name, alike in _alike(names).items():
        for number, at in enumerate(alike, start=1):
            names[at] = f"{name} ({number})"
    return names


def _alike(names: Sequence[str]) -> dict[str, list[int]]:
    """Returns names that are there more than once, with their places."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        places.setdefault(name, []).append(at)
    return {name: found for name, found in places.items() if len(found) > 1}


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns what may tell boards of one task and model apart, what tells most first, each with its name."""
    split, examples = scored_on(result)
    data = shared_data(result)
    counts = {name: data.pop(name) for name in [*data] if type(data[name]) is int}
    tree = {
        **counts,
        "split": split,
        "scored": examples,
        "start": _start(result),
        **data,
        **result["config"].get("task_settings", {}),
        "version": result["task"]["version"],
        "weights": result["model"]["sha256"][:12],
    }
    return {key: _told(key, value) for key, value in flatten(tree).items()}


def _named(tree: Mapping[str, Any]) -> list[str]:
    return [_told(key, value) for key, value in flatten(tree).items() if key != "sha256"]


def _told(key: str, value: Any) -> str:
    return f"{_spaced(key)} {format(value, ',') if type(value) is int else in_words(value)}"


def _spaced(key: str) -> str:
    return key.replace("_", " ").replace(".", " ")


def _notes(
    rows: Sequence[Row], groups: Sequence[Runs], results: Sequence[Mapping[str, Any]], without: str | None
) -> list[str]:
    """Returns what a reader has to know.

    Args:
        without: label of the row that is the reference since the one that was asked for is not on the board.
    """
    warnings = dict.fromkeys(text for result in results for text in result["data"].get("warnings", ()))
    notes = [f"data: {text}" for text in warnings]
    trained = Counter((row.steps, row.batch_size) for row in rows)
    if len(trained) > 1:
        told = "; ".join(f"{count} of {steps:,} x {batch}" for (steps, batch), count in sorted(trained.items()))
        notes.append(f"rows differ in how long they were trained (rows of steps x batch size: {told})")
    if len({tuple(sorted(runs)) for runs in groups}) > 1:
        notes.append("rows differ in their seeds; a difference is taken over the seeds that both rows have")
    several = sorted(method for method, count in Counter(row.method for row in rows).items() if count > 1)
    if several:
        notes.append(
            f"several rows of {', '.join(several)}: whoever takes the best one by its score selects on the scored split"
        )
    for runs in groups:
        counts = {as_key(run.result["parameters"]) for run in runs.values()}
        if len(counts) > 1:
            name = _first(runs).result["method"]["name"]
            notes.append(f"the parameters of {name} differ between seeds; those of seed {min(runs)} are shown")
    for which in {which for result in results for which in result["evaluations"]}:
        rules = {each["evaluations"][which]["selected_by"] for each in results if which in each["evaluations"]}
        if len(rules) > 1:
            notes.append(f"the runs' {which} was selected in different ways: {'; '.join(sorted(rules))}")
    if without is not None:
        notes.append(f"the row to be compared with is not on this board, so {without} takes its place")
    return notes
