"""What the harness's training loop costs over a bare one: ``python -m benchmarks.efficiency.harness_throughput``.

The bare loop is what one would write by hand for one process: forward, backward, clipping, AdamW, over batches that are
already padded. The harness runs its own loop on the same model, the same batches in the same order and the same
optimiser, with its padding, sums over processes, checks for divergence and checkpoints. They run in turn, each as often
first as the other. A busy machine slows some steps of some turns, so each step counts with its median over the turns;
the figure is the sum of one loop's steps over that of the other's, preparation and checkpoints included. Both loops end
with the same parameters, which is checked: a loop that does less is no floor.
"""

from __future__ import annotations

import contextlib
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from accelerate import Accelerator
from torch import nn

from harness import recipes, stages
from harness.checkpoint import CheckpointStore, trained_parameters
from harness.config import RunConfig
from harness.console import Console
from harness.errors import run_command
from harness.order import step_seed
from harness.preparation import prepare
from harness.run import make_accelerator, quieten_libraries
from harness.training import Plan, StagePlan, make_optimizer, schedule, seed_everything, train
from harness.workload import Workload


@dataclass(frozen=True)
class Settings:
    """Measures the throughput of the harness's training loop over that of a bare PyTorch loop."""

    data_dir: Path | None = None
    """Folder with the task's data; its own copy, or the hub, if not given."""
    task: str = "cola"
    """A task of the harness."""
    preset: str = "quick"
    """The recipe that gives model, batch size and the rest."""
    model: str | None = None
    """A model in place of the recipe's."""
    method: str = "hut"
    """A method of the harness."""
    steps: int = 50
    """Optimiser steps of each loop in a turn."""
    turns: int = 10
    """Measured turns; in each, both loops run once."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one line of JSON."""


def cut_recipe(settings: Settings) -> RunConfig:
    """Returns the recipe's configuration, cut to the number of steps, without measurements on the way."""
    config = recipes.build(settings.method, settings.task, settings.preset)
    training = replace(config.train, max_steps=settings.steps, eval_every="never")
    data = replace(config.data, dir=settings.data_dir)
    return replace(config, model=settings.model or config.model, data=data, train=training)


def bare_loop(model: nn.Module, config: RunConfig, workload: Workload, plan: Plan, device: torch.device) -> list[float]:
    """Returns the seconds of each step, and of what follows the last, of the loop that one would write by hand."""
    options = config.train
    model.to(device)
    batches = [workload.batch(plan.order.batch(step), device) for step in range(plan.total)]
    trained = list(trained_parameters(model).values())
    optimizer = make_optimizer(model, options, device)
    model.train()
    watch = Stopwatch(device)
    for step, batch in enumerate(batches):
        seed_everything(step_seed(config.seed, step, 0))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(options, step, plan.total)
        losses, counts = workload.task.losses(model, batch, label_smoothing=options.label_smoothing)
        (losses.sum() / counts.sum()).backward()
        if options.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        watch.update()
    return watch.stop()


def harness_loop(model: nn.Module, workload: Workload, stage: StagePlan, accelerator: Accelerator) -> list[float]:
    """Returns the same of the harness's loop; preparation is in the first step, the last checkpoint in what follows."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "checkpoint", {})
        model.to(accelerator.device)
        watch = Stopwatch(accelerator.device)
        train(model, workload, stage, accelerator, store, WatchedConsole(False, watch))
        return watch.stop()


class Stopwatch:
    """Seconds between updates; it can stand for the progress bar of a training loop, which is updated at each step."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, []
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def update(self, n: float = 1) -> None:
        now = self._now()
        self._seconds.append(now - self._last)
        self._last = now

    def set_postfix_str(self, s: str) -> None:
        pass

    def stop(self) -> list[float]:
        """Returns all seconds, up to now."""
        self.update()
        return self._seconds


@dataclass(frozen=True)
class WatchedConsole(Console):
    """A silent console whose bar is a stopwatch."""

    watch: Stopwatch

    @contextlib.contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Stopwatch]:
        yield self.watch


def compare(settings: Settings) -> dict[str, float]:
    """Returns the seconds of both loops, each step its median over turns, and the ratio of their throughputs."""
    config = cut_recipe(settings)
    accelerator = make_accelerator(config)
    setup = prepare(config, accelerator, Console(speaks=True))
    model = stages.applied(config, setup.stages, setup.model, setup.modules_to_save)
    workload, stage = setup.workload, setup.stages[-1]
    turns: list[dict[str, list[float]]] = []
    for turn in range(settings.turns + 1):
        bare, ours = copy.deepcopy(model), copy.deepcopy(model)
        seconds: dict[str, list[float]] = {}
        for name in ("bare", "harness") if turn % 2 else ("harness", "bare"):
            if name == "bare":
                seconds[name] = bare_loop(bare, config, workload, setup.plan, accelerator.device)
            else:
                seconds[name] = harness_loop(ours, workload, stage, accelerator)
        theirs = trained_parameters(bare)
        for name, parameter in trained_parameters(ours).items():
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-3, atol=1e-4)
        accelerator.free_memory()
        if turn:  # the first one warms up
            turns.append(seconds)
    bare_seconds, harness_seconds = (
        sum(statistics.median(step) for step in zip(*(turn[name] for turn in turns), strict=True))
        for name in ("bare", "harness")
    )
    return {
        "bare_seconds": bare_seconds,
        "harness_seconds": harness_seconds,
        "throughput_ratio": bare_seconds / harness_seconds,
    }


def main(argv: Sequence[str]) -> int:
    settings = tyro.cli(Settings, args=argv, prog="python -m benchmarks.efficiency.harness_throughput")
    quieten_libraries()
    found = compare(settings)
    if settings.json:
        print(json.dumps({**found, "settings": {name: str(value) for name, value in vars(settings).items()}}))
        return 0
    print(
        f"{settings.method} on {settings.task}, preset {settings.preset}: {settings.steps} steps a loop, each step the "
        f"median of {settings.turns} interleaved turns, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"bare loop {found['bare_seconds']:.2f} s, harness {found['harness_seconds']:.2f} s; throughput of the harness "
        f"over the bare loop: {found['throughput_ratio']:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
