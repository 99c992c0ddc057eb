"""``python -m harness.compare``: its flags, and the matrix that they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from hadamard_core.search_space import Choices, LogUniform
from harness import cli
from harness.cli import Switch
from harness.compare.plan import Plan, PlannedRow, of_file, of_names
from harness.config import RunConfig, validate
from harness.errors import UserError
from harness.sweep import trial
from harness.sweep.search import Sampler, Search, own_storage
from harness.sweep.space import SEED, Space, build

PROG = "python -m harness.compare"
RATE = "train.learning_rate"
OWN = (
    "--seeds",
    "--budget",
    "--trial-seeds",
    "--search",
    "--sampler",
    "--sampler-seed",
    "--storage",
    "--study",
    "--workers",
    "--pack",
)
"""Flags that have to be the same for all cells: another budget or other seeds would not compare."""


@dataclass(frozen=True)
class CompareCommand:
    """Trains every method on every task with every seed, tuned with the same budget, and shows them side by side.

    What is there already is kept: the same command goes on after an interruption, and joins others that work on the
    same matrix. With `--budget N` each method gets N trials on each task, judged by a held-out part of the training
    set, before its best settings are trained with all seeds and scored; without, the recipe's settings are. All flags
    of harness.run say what is the same in all cells; a plan file gives rows and tasks flags of their own.
    """

    nameless: ClassVar[tuple[str, ...]] = ()

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    methods: tuple[str, ...] = ()
    """The methods, with commas or spaces between them; of a plan file the rows to keep, with hyphens for what is in a
    name beside letters and numbers."""
    tasks: tuple[str, ...] = ()
    """The tasks, with commas or spaces between them; of a plan file those to keep."""
    plan: Path | None = None
    """A file with rows, tasks and flags, in place of --methods and --tasks."""
    seeds: tuple[str, ...] = ("1..3",)
    """Seeds of the runs that are scored: 1..5, or a list. The first one is that of the trials, too."""
    budget: int = 0
    """Trials of each method on each task; 0 takes the settings as they are."""
    trial_seeds: int = 1
    """Make each trial with so many seeds, the first of --seeds: settings are judged by the mean over them."""
    search: Literal["learning-rate", "declared"] = "learning-rate"
    """What the trials search: the learning rate alone, as many values for one method as for another, or all that a
    method declares."""
    sampler: Sampler | None = None
    """How values are drawn; grid for learning rates (the middles of --budget equal parts of the method's range, on a
    logarithmic scale) and tpe for declared spaces if not given."""
    sampler_seed: int = 0
    """What is drawn depends on it, where it is drawn."""
    storage: str | None = None
    """Where trials and runs are shared: sqlite:///PATH, journal:FILE, postgresql://..., grpc://HOST:PORT; a SQLite file
    in the matrix's folder if not given."""
    study: str = ""
    """What the names of all studies start with, where several matrices share a storage."""
    workers: int = 1
    """Processes that work at the same time on this machine."""
    pack: int = 1
    """Train so many trials of a method together in each process, where the method can."""
    dry_run: Switch = False
    """Print the plan, what is there and how long the rest may take, and stop."""
    debug: Switch = False
    """Keep tracebacks and the libraries' warnings."""


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        row: its row in the plan.
        task: the task's name.
        search: its trials; without slots where nothing is tuned. Its space has seeds where trials have several.
        config: of the runs that are scored, with the first seed, but for what is searched.
        seeds: of these runs.
        directory: where their folders go.
    """

    row: PlannedRow
    task: str
    search: Search
    config: RunConfig
    seeds: tuple[int, ...]
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.task} {self.row.name}"

    @property
    def space(self) -> Space:
        """What is searched."""
        return Space({key: domain for key, domain in self.search.space.parameters.items() if key != SEED})

    @property
    def trial_seeds(self) -> tuple[int, ...]:
        """The seeds that each of its settings is tried with."""
        domain = self.search.space.parameters.get(SEED)
        return domain.values if isinstance(domain, Choices) else self.seeds[:1]

    @property
    def file(self) -> str:
        """What the names of its files begin with."""
        return f"{self.task}-{self.row.folder}"


@dataclass(frozen=True)
class Matrix:
    """What a command line means.

    Attributes:
        command: the flags that all cells share.
        plan: where it comes from.
        cells: task by task.
        directory: where its files go.
    """

    command: CompareCommand
    plan: Plan
    cells: tuple[Cell, ...]
    directory: Path


def parse(argv: Sequence[str]) -> Matrix:
    """Returns the matrix of a command line; nothing is read but recipes and the plan. ``--help`` prints and exits.

    Raises:
        UserError: an unknown name or flag, a value that a flag does not take, or settings that cannot be used.
    """
    if any(token in ("-h", "--help") for token in argv):
        cli.parse(["--help"], CompareCommand, PROG)
    for flag, instead in (("--method", "--methods"), ("--task", "--tasks"), ("--seed", "--seeds")):
        if cli.value_of(argv, flag) is not None:
            raise UserError(f"{flag}: a matrix has several, so that the flag is {instead}")
    methods, tasks = (_names(cli.value_of(argv, flag)) for flag in ("--methods", "--tasks"))
    file = cli.value_of(argv, "--plan")
    preset = cli.value_of(argv, "--preset") or RunConfig.preset
    plan = of_file(Path(file), methods, tasks) if file else of_names(methods, tasks, preset)
    for place, flags in plan.own_flags():
        if own := [flag for flag in OWN if cli.value_of(flags, flag) is not None]:
            raise UserError(f"{file}: {place}: {own[0]} is the same for all rows and tasks: move it to `flags`")
    pairs = [(row, task) for task in plan.tasks for row in plan.rows]
    commands = [_command(row, task, plan, argv) for row, task in pairs]
    first = commands[0][0]
    _check(first)
    directory = first.config.output_dir or Path("runs") / "compare" / plan.name
    cells = tuple(_cell(*pair, *found, directory) for pair, found in zip(pairs, commands, strict=True))
    return Matrix(first, plan, cells, directory)


def _command(row: PlannedRow, task: str, plan: Plan, argv: Sequence[str]) -> tuple[CompareCommand, Mapping, Collection]:
    """Returns a cell's command line as parsed, its ``--space`` flags, and the keys that other flags give a value."""
    flags = cli.last_of_each([*plan.flags_of(task, row), *argv])
    try:
        rest, space = cli.split_groups(["--method", row.method, "--task", task, *flags], "--space.")
        command = cli.parse(rest, CompareCommand, PROG)
    except UserError as error:
        raise UserError(f"{task} {row.name}: {error}") from error
    return command, space, cli.given_keys(rest, command.config)


def _cell(
    row: PlannedRow,
    task: str,
    command: CompareCommand,
    given: Mapping[str, Sequence[str]],
    fixed: Collection[str],
    directory: Path,
) -> Cell:
    """Returns a cell.

    Raises:
        UserError: naming it: its settings cannot be used.
    """
    seeds = read_seeds(command.seeds)
    config = replace(command.config, output_dir=None, seed=seeds[0])
    sampler = command.sampler or ("grid" if command.search == "learning-rate" else "tpe")
    try:
        trials = trial.for_trials(config) if command.budget else config
        validate(trials)
        space = _space(command, config, given, fixed, sampler) if command.budget else Space({})
        if command.budget and command.trial_seeds > 1:
            space = _with_seeds(space, seeds, command.trial_seeds, sampler)
        # without trials a rule only says which of the scores is the task's own
        rules = tuple(config.task_settings.rules.values())
        rule = rules[0] if rules and not command.budget else trial.rule_of(trials)
    except UserError as error:
        raise UserError(f"{task} {row.name}: {error}") from error
    search = Search(
        storage=command.storage or own_storage(directory),
        study=f"{command.study}{task}-{row.folder}",
        slots=command.budget * command.trial_seeds,
        config=trials,
        space=space,
        rule=rule,
        objectives=("quality",),
        sampler=sampler,
        pruner="none",
        sampler_seed=command.sampler_seed,
        beat_seconds=15.0,
        grace_seconds=120.0,
    )
    return Cell(row, task, search, config, seeds, directory / "runs" / f"{task}-{row.folder}")


def _space(
    command: CompareCommand,
    config: RunConfig,
    given: Mapping[str, Sequence[str]],
    fixed: Collection[str],
    sampler: str,
) -> Space:
    """Returns what a cell's trials search.

    Raises:
        UserError: there is nothing to search, or a list has not as many values as there are trials.
    """
    if command.search == "declared":
        space = build(config, given, fixed)
        if sampler == "grid" and len(space.grid()) != command.budget:
            raise UserError(f"--sampler grid has {len(space.grid())} combinations and --budget is {command.budget}")
        return space
    if RATE in fixed:
        raise UserError(
            "--train.learning-rate fixes what --budget would search: leave it out, or give --budget 0 and choose the "
            "rates of all methods by hand"
        )
    declared = getattr(config.method_settings, "search_space", {})
    space = build(config, given, {*fixed, *(key for key in declared if key != RATE)})
    if others := [key for key in space.parameters if key != RATE]:
        raise UserError(f"--space.{others[0]}: --search learning-rate searches nothing else: give --search declared")
    rates = space.parameters[RATE]
    if sampler != "grid":
        return space
    if isinstance(rates, LogUniform):
        rates = Choices(middles(rates, command.budget))
    if not isinstance(rates, Choices) or len(rates.values) != command.budget:
        raise UserError(f"--space.learning-rate has not {command.budget} values, the --budget of every method")
    return Space({RATE: rates})


def _with_seeds(space: Space, seeds: Sequence[int], count: int, sampler: str) -> Space:
    """Returns a space with each combination of values once for each of the first seeds.

    Raises:
        UserError: there are not so many seeds, or values are not those of a grid.
    """
    if count > len(seeds):
        raise UserError(f"--trial-seeds {count}: --seeds has {len(seeds)}, the first of which the trials would have")
    if sampler != "grid":
        raise UserError(f"--trial-seeds {count}: only a grid tries each value with several seeds: give --sampler grid")
    return Space({**space.parameters, SEED: Choices(tuple(seeds[:count]))})


def middles(domain: LogUniform, parts: int) -> tuple[float, ...]:
    """Returns the middles of equal parts of a range on its logarithmic scale, to two digits."""
    low, high = math.log(domain.low), math.log(domain.high)
    return tuple(float(f"{math.exp(low + (high - low) * (part + 0.5) / parts):.2g}") for part in range(parts))


def read_seeds(words: Sequence[str]) -> tuple[int, ...]:
    """Returns the seeds that ``1..5``, ``1 2 3`` or ``1,2,3`` mean.

    Raises:
        UserError: something is no seed, or one is there twice.
    """
    seeds: list[int] = []
    for word in _names(" ".join(words)):
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", word)
        last = int(found[2] or found[1]) if found else 0
        if found is None or last >= 2**32 or last < int(found[1]) or last - int(found[1]) >= 1000:
            raise UserError(f"--seeds {word}: give whole numbers, or the first and the last one as in 1..5")
        seeds += range(int(found[1]), last + 1)
    if not seeds:
        raise UserError("--seeds without a value: it takes one seed or several")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UserError(f"--seeds names {twice[0]} twice: give each seed once")
    return tuple(seeds)


def _check(command: CompareCommand) -> None:
    """Refuses values of the matrix's own flags.

    Raises:
        UserError: naming the flag.
    """
    for flag, count, least in (
        ("--budget", command.budget, 0),
        ("--trial-seeds", command.trial_seeds, 1),
        ("--workers", command.workers, 1),
        ("--pack", command.pack, 1),
    ):
        if count < least:
            raise UserError(f"{flag} is {count}: it must be at least {least}")
    if not 0 <= command.sampler_seed < 2**32:
        raise UserError(f"--sampler-seed is {command.sampler_seed}: it must be between 0 and 4294967295")


def _names(text: str | None) -> list[str]:
    """Returns the names in a text, with commas or spaces between them."""
    return [name for name in re.split(r"[,\s]+", text or "") if name]
