"""What the page knows: a report as one JSON document, thinned so that a page of 1,000 runs stays small.

Numbers keep nine digits, so that the four decimals that the page shows are those of the tables in text; curves have 40
points of four digits. Settings, machines and signatures, which most runs have in common, are stored once in a *pool*
that runs refer to by position. Predictions get the room that is left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.report import failures
from harness.report.content import way
from harness.report.model import Report, RunEntry

POINTS = 40  # of a curve; it is drawn a few hundred pixels wide
MOST_PREDICTIONS = 50  # of a run
SCANNED_BYTES = 20_000_000  # of all files of predictions together, which takes about a second
LONG, SHORT = (400, 5), (100, 1)  # characters of a text and items of a list of texts, with room and without
ROOM_FOR_LONG = 20_000  # bytes of a run's predictions
OF_THE_RUN = ("seed", "output_dir", "description", "method", "task", "preset", "model")
"""Members of a configuration that the page shows elsewhere, or that differ from seed to seed."""


def to_json(value: Any) -> str:
    """Returns JSON in ASCII that may stand inside of an HTML element, whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def build(report: Report, title: str, room: int) -> str:
    """Returns the document as :func:`to_json` writes it.

    Args:
        room: bytes that it may have; predictions are left out until it fits.
    """
    pool = Pool()
    document = {
        "title": title,
        "ways": {which: way(which) for board in report.boards for which in board.selections},
        "boards": [plain(asdict(board)) for board in report.boards],
        "averages": [plain(asdict(average)) for average in report.averages],
        "published": plain([asdict(table) for table in report.published]),
        "skipped": [asdict(skipped) for skipped in report.skipped],
        "runs": [_run(entry, pool) for entry in report.runs],
        "pool": pool.values,
    }
    left = room - len(to_json(document))
    return to_json({**document, "predictions": _predictions(report.runs, left)})


@dataclass
class Pool:
    """Values that are stored once, however many runs have them."""

    values: list[Any] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, value: Any) -> int:
        """Returns where the value is stored."""
        value = plain(value)
        place = self.places.setdefault(json.dumps(value), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def plain(value: Any, digits: int = 9) -> Any:
    """Returns a tree for JSON with shorter numbers; one that is not finite becomes a text."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each, digits) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, digits) for each in value]
    return value


def _run(entry: RunEntry, pool: Pool) -> dict[str, Any]:
    result = entry.result
    config = {name: value for name, value in result.get("config", {}).items() if name not in OF_THE_RUN}
    parts = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    return {
        "id": entry.id,
        "file": entry.file,
        "board": entry.board,
        "row": entry.row,
        "method": entry.method,
        "task": entry.task,
        "seed": entry.seed,
        "config": {
            **{name: pool.place(value) for name, value in parts.items()},
            "": pool.place({name: value for name, value in config.items() if name not in parts}),
        },
        **{
            name: pool.place(result[name])
            for name in ("model", "init_from", "data", "parameters", "environment")
            if name in result
        },
        "about": pool.place({name: result[name] for name in ("preset", "description") if name in result}),
        "distributions": pool.place({name: result[name].get("distribution") for name in ("method", "task")}),
        "checkpoint_bytes": result.get("checkpoint_bytes"),
        "stages": [_stage(stage, pool) for stage in result.get("stages") or [result["train"]]],
        "evaluations": {which: _evaluation(found, pool) for which, found in result["evaluations"].items()},
    }


def _stage(stage: Mapping[str, Any], pool: Pool) -> dict[str, Any]:
    facts = {name: value for name, value in stage.items() if name not in ("loss_curve", "measurements")}
    own = {name: facts.pop(name) for name in ("final_loss", "seconds", "targets") if name in facts}
    return {
        "facts": pool.place(facts),
        "own": plain(own),
        "steps": stage.get("steps", 0),
        "loss": _averaged([(point["step"], point["loss"]) for point in stage.get("loss_curve", ())]),
        "measured": _measured(stage.get("measurements", ())),
    }


Points = Sequence[tuple[int, Any]]


def _averaged(points: Points) -> list[list[float]]:
    """Returns steps and means of so many parts of a curve; its last part ends at the last point."""
    known = [(step, loss) for step, loss in points if loss is not None]
    count = min(len(known), POINTS)
    parts = [known[at * len(known) // count : (at + 1) * len(known) // count] for at in range(count)]
    return [[part[-1][0] for part in parts], [_short(sum(y for _, y in part) / len(part)) for part in parts]]


def _measured(measurements: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Returns split and metric, with a dot in between -> steps and values; of many the last and others evenly."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in measurements:
        for split, metrics in point.items():
            if split != "step":
                for name, value in metrics.items():
                    if value is not None:
                        curves.setdefault(f"{split}.{name}", []).append((point["step"], value))
    thinned = {}
    for name, curve in curves.items():
        stride = max(math.ceil(len(curve) / POINTS), 1)
        kept = curve[::-1][::stride][::-1]
        thinned[name] = [[step for step, _ in kept], [_short(value) for _, value in kept]]
    return thinned


def _short(value: float) -> float:
    return plain(float(value), 4)


def _evaluation(found: Mapping[str, Any], pool: Pool) -> dict[str, Any]:
    common = ("selected_by", "split", "examples", "unavailable", "signatures")
    return {
        "common": pool.place({name: found[name] for name in common if name in found}),
        **plain({name: value for name, value in found.items() if name not in common}),
    }


def _predictions(runs: Sequence[RunEntry], room: int) -> dict[str, Any]:
    """Returns run -> what of its predictions the page holds, so that all have about the same share of the room."""
    files = {entry.id: Path(entry.predictions) for entry in runs if entry.predictions is not None}
    shown: dict[str, Any] = {}
    for name, path in files.items():
        share = room // (len(files) - len(shown))
        shown[name] = _of_run(failures.read(path, SCANNED_BYTES // len(files)), share)
        room -= len(name) + len(to_json(shown[name])) + len('"":,')
    return shown


def _of_run(found: failures.Predictions, share: int) -> dict[str, Any]:
    about = {
        "order": found.order,
        "read": len(found.records),
        "failed": None if found.failed is None else sum(found.failed),
        "broken": found.broken,
        "complete": found.complete,
    }
    text, items = LONG if share >= ROOM_FOR_LONG else SHORT
    share -= len(to_json(about)) + len(',"records":[]')
    records: list[Any] = []
    for record in found.records[:MOST_PREDICTIONS]:
        cut = _cut(record, text, items)
        share -= len(to_json(cut)) + 1
        if share < 0:
            break
        records.append(cut)
    return {**about, "records": records}


def _cut(value: Any, text: int, items: int, depth: int = 4) -> Any:
    """Returns a prediction with its long texts and lists cut, which they say, and what is nested deeply in words."""
    if isinstance(value, str):
        return value if len(value) <= text else f"{value[:text]}…"
    if isinstance(value, (dict, list)) and not depth:
        return _cut(json.dumps(value), text, items)
    if isinstance(value, dict):
        return {_cut(name, text, items): _cut(each, text, items, depth - 1) for name, each in value.items()}
    if isinstance(value, list):
        most = items if any(isinstance(each, str) for each in value) else 8
        kept = [_cut(each, text, items, depth - 1) for each in value[:most]]
        return [*kept, f"… and {len(value) - most} more"] if len(value) > most else kept
    return plain(value, 4)
