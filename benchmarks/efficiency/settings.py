"""What the commands of this folder share on their command lines, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import tyro

from harness.errors import UserError, one_line
from harness.registry import closest
from harness.run import quieten_libraries

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Settings:
    """What every measurement has."""

    dtype: Dtype = "float32"
    """Data type of the frozen weights and of the activations; trained vectors are fp32, as peft keeps them."""
    device: str | None = None
    """Device of PyTorch; the GPU where there is one, else the CPU, if not given."""
    threads: int | None = None
    """Threads of PyTorch; its default if not given."""
    turns: int = 25
    """Measured turns; in each, every row has its own."""
    steps: int = 3
    """Timed steps of a row in a turn, one after the other; their median counts."""
    seed: int = 0
    """Seed of weights and inputs."""
    json: Path | None = None
    """File to write the result to, with machine, versions, settings and all ratios."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class ModelSettings(Settings):
    """What a measurement of whole models has."""

    model_config: str = "roberta-large"
    """A shape by its name, the path of a config.json (or of its folder), or a model type of transformers; weights are
    random."""
    override: tuple[str, ...] = ()
    """Fields of the model's configuration, as KEY=VALUE: hidden_size=512."""
    layers: int | None = 4
    """Number of layers, of either stack in an encoder-decoder model; None takes the configuration's."""
    batch_size: int = 8
    """Sequences in a batch."""
    length: int = 128
    """Tokens in a sequence."""
    only: tuple[str, ...] = ()
    """Rows to measure, by their short names; all if not given. What the ratios refer to is always measured."""
    compile: Switch = False
    """Run each model through torch.compile."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def parse(settings_class: type[AnySettings], command: str, argv: Sequence[str]) -> AnySettings:
    """Returns the settings of a command line, after what they say about the process has been done.

    Raises:
        UserError: a value is out of range, or names a device or folder that is not there.
    """
    settings = tyro.cli(settings_class, args=argv, prog=f"python -m benchmarks.efficiency.{command}")
    for name in ("turns", "steps", "threads", "layers", "batch_size", "length"):
        value = getattr(settings, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give at least 1")
    check_output("--json", settings.json)
    _check_device(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    quieten_libraries()
    return settings


def _check_device(settings: Settings) -> None:
    try:
        device = settings.torch_device
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error).partition(". ")[0]
        raise UserError(f"--device {settings.device}: {reason}; give cpu, or cuda where there is a GPU") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {settings.device}: only a CPU and CUDA can be timed here; give cpu or cuda")


def check_output(flag: str, path: Path | None) -> None:
    """Refuses a file that could not be written after a long measurement."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"{flag} {path}: give a file in a folder that exists")


def chosen(only: Iterable[str], known: Sequence[str], always: str) -> list[str]:
    """Returns the rows to measure, in their usual order.

    Raises:
        UserError: a name that is not known.
    """
    only = list(only)
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no such row{closest(name, known)}; choose from {', '.join(known)}")
    return [name for name in known if not only or name in only or name == always]
