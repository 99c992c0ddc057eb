"""What is in the page: all that the report says, nothing that runs, and not too much of it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from harness.report import document, failures, page

LIMIT = 8_000_000
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>&\u2028"


class Parts(HTMLParser):
    """What a browser finds: scripts with their attributes and texts, the policy and the title."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.policy, self.title, self._inside = [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        attributes = dict(attrs)
        if tag == "script":
            self.scripts.append([attributes, ""])
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data
        if self._inside == "title":
            self.title += data


@pytest.fixture
def written(tmp_path):
    """Returns the parts of a report's page, and its document."""

    def write(report, title="A report"):
        path = tmp_path / "page.html"
        page.write(report, path, title)
        parts = Parts(path.read_text(encoding="utf-8"))
        return parts, json.loads(parts.scripts[0][1])

    return write


class TestPage:
    def test_holds_what_the_report_says(self, report, written):
        made = report()
        _, found = written(made)
        assert [board["id"] for board in found["boards"]] == [board.id for board in made.boards]
        quality = found["boards"][1]["rows"][2]["quality"]["published"]["accuracy"]
        expected = made.boards[1].rows[2].quality["published"]["accuracy"]
        assert quality["mean"] == pytest.approx(expected.mean, rel=1e-5)
        assert quality["values"] == {str(seed): pytest.approx(value) for seed, value in expected.values.items()}
        assert [(run["id"], run["seed"], run["file"]) for run in found["runs"]] == [
            (run.id, run.seed, run.file) for run in made.runs
        ]
        assert found["published"][0]["rows"][0]["cells"]["Toy"]["correct"] == 72.9
        assert found["skipped"] == [{"file": "notes.json", "reason": "it is no result"}]

    def test_is_the_same_for_the_same_report(self, report, tmp_path):
        for name in "ab":
            page.write(report(), tmp_path / name, "A report")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_hostile_names_are_data(self, report, written):
        parts, found = written(report(labels=(HOSTILE, "beta")), title=HOSTILE)
        assert [attributes for attributes, _ in parts.scripts] == [{"type": "application/json", "id": "report"}, {}, {}]
        assert found["boards"][0]["rows"][0]["label"] == HOSTILE
        assert parts.title == found["title"] == HOSTILE

    def test_policy_lets_its_two_scripts_run_and_nothing_be_loaded(self, report, written):
        parts, _ = written(report())
        rules = dict(rule.split(" ", 1) for rule in parts.policy.split("; "))
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in parts.scripts[1:]]
        assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
        assert rules["default-src"] == "'none'"
        assert not {"connect-src", "font-src", "frame-src", "object-src"} & rules.keys()

    def test_1000_runs_stay_small(self, report, tmp_path):
        predictions = tmp_path / "predictions.jsonl"
        line = {"split": "validation", "label": 1, "prediction": 0, "logits": [0.123456789, -0.987654321]}
        predictions.write_text("".join(json.dumps({**line, "idx": idx}) + "\n" for idx in range(300)))
        labels = [f"method {at}" for at in range(100)]
        made = report(labels=labels, boards=5, predictions=str(predictions), points=200)
        assert len(made.runs) >= 1000
        page.write(made, tmp_path / "page.html", "A report")
        assert (tmp_path / "page.html").stat().st_size < LIMIT
        found = json.loads(Parts((tmp_path / "page.html").read_text()).scripts[0][1])
        assert len(found["runs"]) == len(found["predictions"]) == len(made.runs)
        shown = [len(each["records"]) for each in found["predictions"].values()]
        assert min(shown) >= 1
        assert max(shown) - min(shown) <= 2  # all have about the same share of the room

    def test_imports_nothing_heavy(self):
        heavy = ["accelerate", "optuna", "pandas", "torch", "transformers"]
        code = f"import sys, harness.report.page; print([name for name in {heavy} if name in sys.modules])"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"


class TestDocument:
    @pytest.mark.parametrize("value", [0.10884959823188922, 0.5248499912, -0.0315499876])
    def test_shortened_numbers_have_the_same_four_decimals(self, value):
        assert f"{document.plain(value):.4f}" == f"{value:.4f}"

    def test_what_runs_share_is_stored_once(self, report):
        found = json.loads(document.build(report(), "A report", 10**6))
        assert len({run["environment"] for run in found["runs"]}) == 1
        assert len({run["config"]["train"] for run in found["runs"]}) == 1
        assert found["pool"][found["runs"][0]["config"]["train"]] == {"learning_rate": 0.01, "batch_size": 4}

    @pytest.mark.parametrize("points", [1, 7, 40, 41, 999])
    def test_curves_are_thinned_up_to_their_last_point(self, report, points):
        found = json.loads(document.build(report(points=points), "A report", 10**6))
        (stage,) = found["runs"][0]["stages"]
        steps, losses = stage["loss"]
        assert len(steps) == len(losses) == min(points, document.POINTS)
        assert steps == sorted(set(steps))
        assert steps[-1] == points
        assert losses == sorted(losses, reverse=True)  # as the losses before they were averaged
        steps, _ = stage["measured"]["held_out.accuracy"]
        assert len(steps) <= document.POINTS
        assert steps[-1] == max(range(1, points + 1, 5))

    def test_a_loss_that_is_not_known_is_no_point(self, report):
        made = report()
        made.runs[0].result["train"]["loss_curve"] = [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
        found = json.loads(document.build(made, "A report", 10**6))
        assert found["runs"][0]["stages"][0]["loss"] == [[2], [0.5]]

    def test_predictions_get_the_room_that_is_left(self, report, tmp_path):
        path = tmp_path / "predictions.jsonl"
        lines = [json.dumps({"label": "a", "prediction": "b" * 60, "idx": at}) for at in range(40)]
        path.write_text("\n".join(lines))
        made = report(boards=1, predictions=str(path))
        least = len(document.build(made, "A report", 0))
        for room in (least + 500, least + 5000):
            assert len(document.build(made, "A report", room)) <= room

    def test_long_texts_are_cut_and_say_so(self, report, tmp_path):
        path = tmp_path / "predictions.jsonl"
        record = {"prediction": "x" * 5000, "references": ["y"] * 50, "logits": [0.123456789, float("nan")]}
        path.write_text(json.dumps(record) + "\n")
        found = json.loads(document.build(report(boards=1, predictions=str(path)), "A report", 10**6))
        (shown,) = found["predictions"]["board-0-run-0-1"]["records"]
        assert shown["prediction"] == "x" * 400 + "…"
        assert shown["references"] == [*["y"] * 5, "… and 45 more"]
        assert shown["logits"] == [0.1235, "nan"]


class TestFailures:
    @pytest.fixture
    def read(self, tmp_path):
        def write_and_read(*records, most=10**6):
            path = tmp_path / "predictions.jsonl"
            path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in records))
            return failures.read(path, most)

        return write_and_read

    def test_wrong_labels_come_first(self, read):
        pairs = [(1, 1), (0, 1), (1, 1), (1, 0)]
        found = read(*({"idx": at, "label": a, "prediction": b} for at, (a, b) in enumerate(pairs)))
        assert [record["idx"] for record in found.records] == [1, 3, 0, 2]
        assert found.failed == [True, True, False, False]

    def test_largest_difference_comes_first(self, read):
        pairs = [(1.0, 1.1), (5.0, 1.0), (2, 4.5), (3.0, "much")]
        found = read(*({"idx": at, "label": a, "prediction": b} for at, (a, b) in enumerate(pairs)))
        assert [record["idx"] for record in found.records] == [3, 1, 2, 0]
        assert found.failed is None

    def test_lowest_score_comes_first(self, read):
        assert [record["score"] for record in read({"score": 0.5}, {"score": 0.1}, {"score": 0.9}).records] == [
            0.1,
            0.5,
            0.9,
        ]

    @pytest.mark.parametrize("name", failures.TEXTS)
    def test_texts_unlike_their_references_come_first(self, read, name):
        references = ["A pub near the river.", "A river pub."]
        texts = ["a river pub", "a cheap pub", "nothing of that"]
        found = read(*({name: text, "references": references} for text in texts))
        assert [record[name] for record in found.records] == texts[::-1]

    def test_others_keep_their_order(self, read):
        found = read({"answer": 2}, {"answer": 1})
        assert [record["answer"] for record in found.records] == [2, 1]
        assert "order" in found.order

    def test_broken_lines_are_counted_and_left_out(self, read):
        found = read({"score": 1}, "{", "[1]", '"text"', "[" * 100_000, "", {"score": 0})
        assert found.broken == 4
        assert [record["score"] for record in found.records] == [0, 1]

    def test_no_line_is_read_beyond_the_limit(self, read):
        found = read({"score": 1}, {"score": 0}, most=len('{"score": 1}\n') + 5)
        assert not found.complete
        assert (found.broken, [record["score"] for record in found.records]) == (0, [1])
