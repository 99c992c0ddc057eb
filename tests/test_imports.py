"""Who may import whom: methods know neither each other nor the harness, and the harness names no method and no task."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SOURCES = {
    "hadamard_core": ROOT / "packages/hadamard_core/src/hadamard_core",
    "hadamard_adapter": ROOT / "packages/hadamard_adapter/src/hadamard_adapter",
    "hadamard_baselines": ROOT / "packages/baselines/src/hadamard_baselines",
    "hut": ROOT / "packages/hut/src/hut",
    "harness": ROOT / "harness",
    "benchmarks": ROOT / "benchmarks",
}
MAY_IMPORT = {
    "hadamard_core": set(),
    "hadamard_adapter": {"hadamard_core"},
    "hadamard_baselines": {"hadamard_core"},
    "hut": {"hadamard_core"},
    "harness": {"hadamard_core"},
    "benchmarks": {"hadamard_adapter", "hadamard_baselines", "hadamard_core", "harness", "hut"},
}


def imported_packages(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", SOURCES)
def test_import_direction(package):
    files = sorted(SOURCES[package].rglob("*.py"))
    assert files
    for file in files:
        foreign = imported_packages(file) & SOURCES.keys() - MAY_IMPORT[package] - {package}
        assert not foreign, f"{file.relative_to(ROOT)} imports {', '.join(foreign)}"


def test_every_package_has_a_rule():
    found = {path.name for path in ROOT.glob("packages/*/src/*") if (path / "__init__.py").exists()}
    found |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == SOURCES.keys() == MAY_IMPORT.keys()


def test_tasks_name_no_method():
    """Costs and analyses are of certain methods; everything else finds them by entry points."""
    named = {
        file.relative_to(ROOT).parts[1]
        for file in SOURCES["benchmarks"].rglob("*.py")
        if imported_packages(file) & {"hadamard_adapter", "hadamard_baselines", "hut"}
    }
    assert named <= {"analysis", "efficiency"}
