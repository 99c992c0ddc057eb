"""Checkpoints: what is trained, the optimiser's state and the run's history, in one safetensors file.

``checkpoint/last.safetensors`` is written beside its place, flushed to the disk and renamed, so a kill at any moment
leaves the old one or the new one. It names the files that hold the parameters which the task's rules select
(``best-STEP.safetensors``), written before it and deleted once no rule selects them any more. Random numbers need no
place in it: data order and dropout are functions of seed and step (:mod:`harness.order`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.errors import UserError, one_line

FORMAT = "hadamard-bench checkpoint 1"
LAST = "last.safetensors"


@dataclass
class History:
    """How far training has come, and what it has seen.

    Attributes:
        step: optimiser steps done.
        targets: target tokens (or labels) whose loss was taken.
        seconds: time spent in training and its evaluations.
        losses: ``{"step", "loss", "learning_rate"}``, loss as the mean over the targets since the entry before.
        open_loss: sum of losses and number of targets since the last entry.
        measurements: ``{"step", SPLIT: {METRIC: value}}``; the value of a metric that is not finite is None.
        best: rule -> ``{"step", "value"}``, the measurement that it selects.
    """

    step: int = 0
    targets: int = 0
    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)
    open_loss: tuple[float, int] = (0.0, 0)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointStore:
    """The ``checkpoint`` folder of a run.

    Attributes:
        identity: what must be the same when a run goes on, such as the base model's fingerprint; words -> value.
    """

    folder: Path
    identity: Mapping[str, str]

    def exists(self) -> bool:
        return self.folder.exists()

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: History,
        of_method: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Writes the state after ``history.step`` steps.

        Args:
            of_method: what the method needs besides to go on.
        """
        parameters = trained_parameters(model)
        tensors = {f"model.{name}": parameter for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"method.{key}": value for key, value in of_method.items()}
        if any(entry["step"] == history.step for entry in history.best.values()):
            best = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
            self._write(self._best_file(history.step), best, history)
        self._write(LAST, tensors, history)
        keep = {LAST, *(self._best_file(entry["step"]) for entry in history.best.values())}
        for path in self.folder.iterdir():
            if path.name not in keep and path.is_file():
                path.unlink()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[History, dict[str, Tensor]]:
        """Reads the last state into model and optimiser.

        Returns:
            the history, and what the method needs besides.

        Raises:
            UserError: the folder is empty, or its file is truncated or belongs to something else.
        """
        path = self.folder / LAST
        if not path.is_file():
            if not self.folder.is_dir():
                state = "is a file"
            else:
                state = f"has no {LAST}" if any(self.folder.iterdir()) else "is empty"
            raise UserError(f"the checkpoint folder {self.folder} {state}: --overwrite starts the run afresh")
        tensors, history = self._read(path)
        parameters = trained_parameters(model)
        self._fill(path, parameters, tensors)
        state = {
            index: {
                key.split(".")[1]: tensor
                for key, tensor in tensors.items()
                if key.startswith("optimizer.") and key.split(".", 2)[2] == name
            }
            for index, name in enumerate(_in_optimizer_order(parameters, optimizer))
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        of_method = {key.removeprefix("method."): t for key, t in tensors.items() if key.startswith("method.")}
        return history, of_method

    def restore_best(self, model: nn.Module, history: History, rule: str) -> None:
        """Reads the parameters that a rule selects into the model."""
        path = self.folder / self._best_file(history.best[rule]["step"])
        self._fill(path, trained_parameters(model), self._read(path)[0])

    def delete(self) -> None:
        """Removes the folder, at the end of a run."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @staticmethod
    def _best_file(step: int) -> str:
        return f"best-{step:08d}.safetensors"

    def _write(self, name: str, tensors: Mapping[str, Tensor], history: History) -> None:
        state = {"history": asdict(history), "identity": dict(self.identity)}
        first = not self.folder.exists()
        folder = self.folder.with_name(f".{self.folder.name}.new") if first else self.folder
        if first and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        beside = folder / f".{name}.new"
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(on_cpu, beside, metadata={"format": FORMAT, "state": json.dumps(state)})
        _flush(beside)
        beside.replace(folder / name)
        if first:
            folder.rename(self.folder)
        _flush(self.folder)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], History]:
        again = "--overwrite starts the run afresh"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"the checkpoint {path} is damaged ({one_line(error)}): {again}") from error
        state = json.loads(metadata["state"]) if metadata.get("format") == FORMAT else {"history": {}}
        if state["history"].keys() != {entry.name for entry in fields(History)}:
            raise UserError(f"the checkpoint {path} was not written by this version of harness.run: {again}")
        for word, value in self.identity.items():
            if state["identity"].get(word) != value:
                raise UserError(
                    f"--resume: the {word} was {state['identity'].get(word)} when {path} was written "
                    f"and is {value} now: restore it, or {again}"
                )
        return tensors, History(**{**state["history"], "open_loss": tuple(state["history"]["open_loss"])})

    def _fill(self, path: Path, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
        shapes = {f"model.{name}": tuple(parameter.shape) for name, parameter in parameters.items()}
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key.startswith("model.")}
        if shapes != found:
            odd = min(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
            raise UserError(
                f"the checkpoint {path} is of another model: {odd.removeprefix('model.')} is "
                f"{found.get(odd, 'missing')} there and {shapes.get(odd, 'not trained')} here; --overwrite starts the "
                "run afresh"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"model.{name}"])


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns name -> parameter for all that require a gradient."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _in_optimizer_order(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Iterable[str]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
