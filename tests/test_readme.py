"""What the README tells a user to type exists."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from harness.sweep import command

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("packages/*/README.md"),
    ROOT / "benchmarks/README.md",
    *ROOT.glob("benchmarks/*/README.md"),
    *ROOT.glob("docs/*.md"),
]


def mentioned(pattern):
    return sorted({match for document in DOCUMENTS for match in re.findall(pattern, document.read_text("utf-8"))})


@pytest.mark.parametrize("target", mentioned(r"(?m)(?:`|^)make ([a-z0-9]+)\b"))
def test_make_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("module", mentioned(r"python -m ((?:harness|benchmarks)[a-z0-9_.]*)"))
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package")
def test_commands_explain_themselves(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not exit_.value.code
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    "line", [line for line in mentioned(r"(?m)^python -m harness\.sweep (--.*)") if "$" not in line]
)
def test_sweeps_can_be_made_as_they_are_written(line):
    argv = shlex.split(line, comments=True)
    given, space = command.parse(argv)
    assert given.show or command.make(given, space, argv).search.slots


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / link).exists(), link
