"""``python -m benchmarks.analysis COMMAND``: the analyses of the Hadamard adapter's paper, on runs of the harness.

Each command is a module of this folder with a ``Settings`` dataclass, whose fields are its flags, and a function
``main`` that takes one; where more than flags is to be read, a function ``parse`` makes the settings. It writes data
(CSV, JSON) and a plot (HTML) and prints a table.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

from harness.errors import UserError, run_command
from harness.registry import closest
from harness.run import quieten_libraries

COMMANDS = {
    "outputs": "norms of self-attention outputs by layer, before and after full fine-tuning (figure 1)",
    "fit": "element-wise functions fitted from the original outputs to the fine-tuned ones (figure 2)",
    "layers": "quality against the number of adapted layers, and which layers are redundant (figure 4)",
    "modules": "which of W, b and norm are trained, over all layers and in one (figure 5)",
    "adapters": "learned W and b by layer, and how alike they are across tasks",
    "closeness": "how close learned W and b come to the linear fit of full fine-tuning",
    "shared": "one W, b for several tasks, beside separate ones",
}


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands.

    Raises:
        UserError: there is no such command, or what it was given cannot be used.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {about}" for name, about in COMMANDS.items()]
        print("\n".join(["usage: python -m benchmarks.analysis COMMAND [--help]", "", *lines]))
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise UserError(f"{name}: there is no such analysis{closest(name, COMMANDS)} (known: {', '.join(COMMANDS)})")
    command = importlib.import_module(f"benchmarks.analysis.{name}")
    if hasattr(command, "parse"):
        settings = command.parse(argv[1:])
    else:
        settings = tyro.cli(command.Settings, args=list(argv[1:]), prog=f"python -m benchmarks.analysis {name}")
    quieten_libraries()
    command.main(settings)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
