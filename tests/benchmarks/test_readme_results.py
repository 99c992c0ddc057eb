"""The tables of committed results in READMEs: up to date, and made of what the folders hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import readme_results
from benchmarks.readme_results import ROOT
from harness.errors import UserError

E2E = ROOT / "benchmarks" / "results" / "e2e-smollm2"


@pytest.mark.parametrize("path", readme_results.READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_readmes_show_the_committed_results(path):
    text = path.read_text("utf-8")
    assert readme_results.PLACE.search(text)
    assert readme_results.renewed(text) == text, "python -m benchmarks.readme_results writes it anew"


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder of results that may be changed, as a README of its root names it."""
    (tmp_path / "found").mkdir()
    for path in E2E.glob("*-seed?.json"):
        shutil.copy(path, tmp_path / "found")
    return tmp_path


def shown(root: Path) -> str:
    return readme_results.renewed("before\n<!-- results: found -->\nold\n<!-- end -->\nafter\n", root)


def test_a_number_that_changes_changes_the_table(copy):
    before = shown(copy)
    assert before.startswith("before\n<!-- results: found -->\n")
    assert before.endswith("<!-- end -->\nafter\n")
    assert "\nold\n" not in before
    path = copy / "found" / "e2e-hut-seed0.json"
    found = json.loads(path.read_text("utf-8"))
    found["evaluations"]["last"]["metrics"]["bleu"] = 0.1234
    path.write_text(json.dumps(found))
    assert shown(copy) != before


def test_tables_state_split_seeds_and_selection(copy):
    first = shown(copy).splitlines()[2]
    for words in ("test split", "seeds 0 1 2", "selected by", "48 examples", "60 steps of 8", "4 trials"):
        assert words in first


def test_what_cannot_be_shown_is_refused(copy):
    (copy / "found" / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json"):
        shown(copy)
