"""The methods' pages: each method has one, what is generated is current, and what is written by hand is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from benchmarks import method_pages
from harness.capabilities import PROMISES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / method_pages.FOLDER
PAGES = {path.stem: path for path in sorted(FOLDER.glob("*.md")) if path.name != "README.md"}


@pytest.fixture(scope="session")
def rendered():
    """The pages as they should be; what methods can do is checked for it, once."""
    return method_pages.rendered(ROOT)


def by_hand(text):
    """A page without what is generated."""
    return re.sub(r"<!-- generated: .*?<!-- end -->", "", text, flags=re.DOTALL)


def anchors(text):
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#+ (.*)", text)}


def test_every_method_has_a_page_and_every_page_a_method():
    assert PAGES.keys() == method_pages.methods().keys()


def test_generated_parts_are_current(rendered):
    stale = [str(path) for path, text in rendered.items() if (ROOT / path).read_text(encoding="utf-8") != text]
    assert stale == [], "run python -m benchmarks.method_pages"
    assert {method_pages.page_of(name) for name in PAGES} < rendered.keys()


@pytest.mark.parametrize("name", PAGES)
def test_pages_say_what_a_reader_needs(name):
    text = PAGES[name].read_text(encoding="utf-8")
    assert re.match(rf"# {name}: \S", text)
    assert len(text.splitlines()) <= 100
    sections = re.split(r"(?m)^## ", by_hand(text))
    assert "\n```\n" in sections[0], "it has no formula"
    titles = [section.partition("\n")[0] for section in sections[1:]]
    assert titles == ["Whose code, and what differs", "Cost", "When to use it, and when not", "Facts and settings"]
    assert all(len(section.split()) > 15 for section in sections[:-1])
    assert all(f"* {word}: " in sections[2] for word in ("Time", "Memory", "Inference"))
    assert re.search(r"\b[Nn]ot\b", sections[3].partition("\n")[2]), "it has no limits"


@pytest.mark.parametrize("path", [*PAGES.values(), FOLDER / "README.md"], ids=lambda path: path.stem)
def test_pages_are_written_well(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\d,\d{3}\b", by_hand(text)), "counts are generated"
    assert max(map(len, by_hand(text).splitlines())) <= method_pages.WIDTH
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        target = path.parent / link if link else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), anchor


def test_flags_that_pages_name_exist():
    for name, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        known = set(re.findall(r"`(--method\.[\w-]+)`", text.partition("<!-- generated:")[2]))
        assert set(re.findall(r"--method\.[\w-]+", by_hand(text))) <= known, name


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        ((True, True), "yes"),
        ((False, False), "no"),
        ((True, False), "encoder"),
        ((False, True), "decoder"),
        ((True, None), "yes / -"),
        ((None, False), "- / no"),
        ((None, None), "- / -"),
    ],
)
def test_words_of_the_capability_table(holds, words):
    assert method_pages.in_words(dict(zip(("encoder", "decoder"), holds, strict=True))) == words


def test_capability_table_has_every_method_and_promise(rendered):
    head, _, *rows = method_pages.capability_table("docs/methods/").splitlines()
    assert [cell.strip() for cell in head.split("|")[2:-1]] == [promise.heading for promise in PROMISES.values()]
    assert [re.match(r"\| \[(\w+)\]\(docs/methods/\1\.md\) ", row)[1] for row in rows] == [*PAGES]
    assert all(row.count("|") == head.count("|") for row in rows)


def test_settings_are_told_with_flags_defaults_and_docstrings():
    @dataclass(frozen=True, kw_only=True)
    class Base:
        layers: tuple[str, ...] | None = None
        """Which ``layers``."""

    @dataclass(frozen=True)
    class Own(Base):
        fast_way: bool = True
        """a | b"""
        kind: Literal["x", "y"] = "x"
        roles: tuple[str, ...] = ("query", "value")
        """Two
        lines."""

    globals().update(Base=Base, Own=Own)
    assert method_pages.settings_table(Own).splitlines()[2:] == [
        r"| `--method.fast-way`, `--method.no-fast-way` | yes | a \| b |",
        "| `--method.kind` | `x` (or `y`) |  |",
        "| `--method.roles` | `query value` | Two lines. |",
        "| `--method.layers` | not given | Which `layers`. |",
    ]


def test_what_stands_elsewhere_is_left_alone():
    text = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n<!-- generated: y -->\nz\n<!-- end -->\n"
    changed = method_pages.replaced(text, "x", "new")
    assert changed == text.replace("-->\nold\n", "-->\n\nnew\n\n")
    assert method_pages.replaced(changed, "x", "new") == changed
    assert method_pages.replaced(text, "other", "new") is None


def test_check_names_what_is_not_current_and_writes_nothing(tmp_path, monkeypatch, capsys):
    stale, current = tmp_path / "stale.md", tmp_path / "current.md"
    stale.write_text("old")
    current.write_text("same")
    monkeypatch.setattr(method_pages, "ROOT", tmp_path)
    texts = {Path("stale.md"): "new", Path("current.md"): "same"}
    monkeypatch.setattr(method_pages, "rendered", lambda root: texts)
    assert method_pages.main(["--check"]) == 1
    assert capsys.readouterr().out == "stale.md is not current: run python -m benchmarks.method_pages\n"
    assert stale.read_text() == "old"
    assert method_pages.main([]) == 0
    assert capsys.readouterr().out == "wrote stale.md\n"
    assert stale.read_text() == "new"
    assert method_pages.main(["--check"]) == 0
