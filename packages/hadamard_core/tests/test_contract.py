"""The method that the README writes in a few lines keeps every promise of a peft method."""

import re
from pathlib import Path

from hadamard_core.testing import MethodContract

README = Path(__file__).parents[1] / "README.md"
example: dict = {"__name__": __name__}
exec(re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1), example)


class TestShift(MethodContract):
    config_class = example["ShiftConfig"]
