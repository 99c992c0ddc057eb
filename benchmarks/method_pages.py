"""The generated parts of ``docs/methods``: ``python -m benchmarks.method_pages`` writes them anew.

A method has a page there, written by hand but for its facts and settings, which stand between two comments; the index
has tables of all methods, made the same way. What methods can do is checked on tiny models as the tables are made.
Whatever stands between other comments, or outside of any, is left alone.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks.published import parameters
from harness import catalogue, registry
from harness.capabilities import PROMISES, TASKS, check, supports
from harness.errors import UserError, run_command
from harness.sweep import domains

ROOT = Path(__file__).parents[1]
FOLDER = Path("docs/methods")
PART = "python -m benchmarks.method_pages"
"""What the comment before a page's generated part says."""
WIDTH = 128

Table = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Settings:
    """Writes the generated parts of the pages in docs/methods anew, and the README's table of capabilities."""

    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write nothing; exit with 1 and name the pages that are not current."""


@functools.cache
def methods() -> dict[str, type[Any]]:
    """Returns the methods of this repository's distributions, by name."""
    entries = registry.entries("method").items()
    return {
        name: registry.load("method", name)
        for name, entry in entries
        if entry.dist is not None and entry.dist.name.startswith("hadamard-")
    }


def page_of(name: str) -> Path:
    """Returns a method's page, from the repository's root."""
    return FOLDER / f"{name}.md"


def rendered(root: Path = ROOT) -> dict[Path, str]:
    """Returns what the pages are with their generated parts anew, by path from the root.

    The README is among them if it has a place for the table of capabilities.

    Raises:
        UserError: a method has no page, or a page has no place for what is generated.
    """
    parts = {page_of(name): {PART: page_part(name)} for name in methods()}
    parts[FOLDER / "README.md"] = {
        "index": index(),
        "capabilities": capability_table(),
        "reasons": reasons(),
        "papers": parameters.table(),
    }
    found = {}
    for path, contents in parts.items():
        if not (root / path).exists():
            raise UserError(f"there is no {path}: write it, with the comments of the other pages around what is made")
        text = (root / path).read_text(encoding="utf-8")
        for part, content in contents.items():
            changed = replaced(text, part, content)
            if changed is None:
                raise UserError(f"{path} has no lines {_begin(part)} and {_END}: put them where that part belongs")
            text = changed
        found[path] = text
    readme = (root / "README.md").read_text(encoding="utf-8")
    changed = replaced(readme, "capabilities", capability_table(f"{FOLDER}/"))
    return found if changed is None else {**found, Path("README.md"): changed}


_END = "<!-- end -->"


def _begin(part: str) -> str:
    return f"<!-- generated: {part} -->"


def replaced(text: str, part: str, content: str) -> str | None:
    """Returns a text with another content between the comments of a part; None if the text has no such comments."""
    before, begin, rest = text.partition(_begin(part))
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n\n{content}\n\n{end}{after}" if begin and end else None


def table(rows: Table) -> str:
    """Returns rows as a Markdown table, the first one as its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def as_cell(text: str) -> str:
    """Returns a line of a docstring, or any words, as a cell."""
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")


def page_part(name: str) -> str:
    """Returns the generated part of a method's page: its facts, then its settings."""
    method_class = methods()[name]
    method = method_class()
    rows = [("", ""), ("paper", _with_links(method.paper)), ("acts on", as_cell(catalogue.acts_on(method)))]
    rows += [(f"trains on {architecture}", trained(name, architecture)) for architecture in catalogue.ARCHITECTURES]
    rows += [("merges", "yes" if catalogue.merges(method) else "no")]
    rows += [(f"trains in `{stage.name}`", as_cell(stage.trains)) for stage in getattr(method, "stages", ())]
    rows += [(f"not for the {kind}", as_cell(why)) for kind in TASKS if (why := supports(method, kind))]
    for promise in PROMISES:
        if why := getattr(method, "cannot", {}).get(promise):
            heading = f"[{PROMISES[promise].heading}](README.md#what-holds)"
            rows.append((f"does not hold{_but(name, promise)}: {heading}", as_cell(why)))
    rows += [
        (f"a sweep searches `{key}`", domains.words(domain).replace(" | ", ", "))
        for key, domain in method.search_space.items()
    ]
    return "\n\n".join([table(rows), settings_table(method_class)])


def _but(name: str, promise: str) -> str:
    """Returns on which kind of model a promise holds all the same, where it does not on the others."""
    found = in_words(checked(name)[promise])
    return f" (but on the {found})" if found in TASKS else ""


def _with_links(paper: str) -> str:
    return re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", as_cell(paper))


@functools.cache
def trained(name: str, architecture: str) -> str:
    """Returns what a method trains on an architecture, without the head, in words."""
    try:
        counts = catalogue.counted(methods()[name](), architecture)
    except ValueError:
        return "-"
    return f"{counts.adapter:,}" + (f" + {counts.norm:,} in norms" if counts.norm else "")


def settings_table(method_class: type[Any]) -> str:
    """Returns a method's flags with their defaults and docstrings; those that several methods share come last."""
    hints, words = typing.get_type_hints(method_class), docstrings(method_class)
    rows = [("flag", "default", "what it says")]
    for entry in sorted(fields(method_class), key=lambda entry: entry.kw_only):
        hint, name = hints[entry.name], entry.name.replace("_", "-")
        flag = f"`--method.{name}`" + (f", `--method.no-{name}`" if hint is bool else "")
        rows.append((flag, _default(entry.default, hint), as_cell(words.get(entry.name, ""))))
    return table(rows) if len(rows) > 1 else "It has no settings."


def _default(value: Any, hint: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    words = "`" + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) + "`"
    others = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return words + (f" (or {', '.join(f'`{other}`' for other in others if other != value)})" if others else "")


def docstrings(settings_class: type[Any]) -> dict[str, str]:
    """Returns the docstring below each field of a dataclass and of those that it inherits from."""
    found = {}
    for owner in reversed(settings_class.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for entry, below in pairwise(body):
            if isinstance(entry, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(entry.target, ast.Name):
                found[entry.target.id] = ast.literal_eval(below.value)
    return found


def index() -> str:
    """Returns the table of all methods."""
    rows = [("method", "what it does", "acts on", *catalogue.ARCHITECTURES, "merges")]
    for name, method_class in methods().items():
        method = method_class()
        about = (inspect.getdoc(method_class) or "").partition("\n")[0]
        counts = [trained(name, architecture) for architecture in catalogue.ARCHITECTURES]
        merges = "yes" if catalogue.merges(method) else "no"
        rows.append((f"[{name}]({name}.md)", as_cell(about), as_cell(catalogue.acts_on(method)), *counts, merges))
    return table(rows)


@functools.cache
def checked(name: str) -> dict[str, dict[str, bool | None]]:
    """Returns which promises a method keeps, by promise and kind of model; None where it is not for that kind."""
    method = methods()[name]()
    kinds = {kind: not supports(method, kind) for kind in TASKS}
    return {
        promise: {kind: not check(method, kind, promise) if supported else None for kind, supported in kinds.items()}
        for promise in PROMISES
    }


def in_words(holds: Mapping[str, bool | None]) -> str:
    """Returns a cell of the table of capabilities: whether a promise holds, by kind of model."""
    words = {True: "yes", False: "no", None: "-"}
    if None in holds.values():
        return " / ".join(words[found] for found in holds.values())
    kinds = [kind for kind, found in holds.items() if found]
    return kinds[0] if len(kinds) == 1 < len(holds) else words[bool(kinds)]


def capability_table(folder: str = "") -> str:
    """Returns which promises each method keeps, as Markdown; all are checked on tiny models, in about a minute.

    Args:
        folder: what leads from the page with the table to the methods' pages, with a slash at its end.
    """
    rows = [("", *(promise.heading for promise in PROMISES.values()))]
    for name in methods():
        cells = [in_words(checked(name)[promise]) for promise in PROMISES]
        rows.append((f"[{name}]({folder}{name}.md)", *cells))
    return table(rows)


def reasons() -> str:
    """Returns what each promise says, and the methods that cannot keep it by their nature, with the reason."""
    lines = []
    for name, promise in PROMISES.items():
        lines.append(f"* **{promise.heading}**: {promise.words}.")
        by_reason: dict[str, list[str]] = {}
        for method, method_class in methods().items():
            if name in (cannot := getattr(method_class, "cannot", {})):
                by_reason.setdefault(cannot[name], []).append(f"`{method}`{_but(method, name)}")
        lines += [f"  * not {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
    return "\n".join(_wrapped(lines))


def _wrapped(items: Iterable[str]) -> list[str]:
    """Returns items of a list with lines that are not too long."""
    lines = []
    for item in items:
        indent = " " * (len(item) - len(item.lstrip()) + 2)
        words = " ".join(item.split())
        lines += textwrap.wrap(
            words,
            WIDTH,
            initial_indent=indent[2:],
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def main(argv: Sequence[str]) -> int:
    settings = tyro.cli(Settings, args=argv, prog=PART)
    print(f"checking {len(methods())} methods on tiny models, which takes about a minute", file=sys.stderr)
    texts = rendered(ROOT)
    stale = [path for path, text in texts.items() if (ROOT / path).read_text(encoding="utf-8") != text]
    for path in stale:
        if settings.check:
            print(f"{path} is not current: run {PART}")
        else:
            (ROOT / path).write_text(texts[path], encoding="utf-8")
            print(f"wrote {path}")
    return int(settings.check and bool(stale))


if __name__ == "__main__":
    sys.exit(run_command(main))
