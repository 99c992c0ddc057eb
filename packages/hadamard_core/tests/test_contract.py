"""The method that the README writes in a few lines keeps every promise of a peft method."""

import re
import sys
import types
from pathlib import Path

from hadamard_core.testing import MethodContract

README = Path(__file__).parents[1] / "README.md"

# A module of its own, as it would be in a package: torch.compile looks functions up by their module.
example = sys.modules["readme_example"] = types.ModuleType("readme_example")
section = README.read_text(encoding="utf-8").partition("## A method of your own")[2]
exec(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), vars(example))


class TestShift(MethodContract):
    config_class = example.ShiftConfig
