"""What a matrix consists of: plans, the order of flags, equal budgets, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hadamard_core.search_space import Choices, LogUniform
from harness.compare import command, plan
from harness.compare.command import middles, read_seeds
from harness.errors import UserError

PLAN = """
description = "two ways"
flags = "--train.batch-size 2 --seeds 3..4 --budget 2"

[tasks]
toy-classes = "--data.train-limit 16 --train.warmup-steps 1"

[rows]
"HUT, r 1" = "hut --method.r 1 --train.warmup-steps 2"
lora = "lora"

[cells]
"toy-classes HUT, r 1" = "--train.weight-decay 0.5"
"toy-classes lora" = "--train.warmup-steps 3 --train.batch-size 2"
"""


@pytest.fixture
def written(tmp_path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(PLAN)
    return path


def test_the_last_of_file_task_row_cell_and_command_line_holds(written, flags):
    found = command.parse(flags("--plan", str(written), "--train.batch-size", "8"))
    hut, lora = found.cells
    assert (hut.name, lora.name, hut.file) == ("toy-classes HUT, r 1", "toy-classes lora", "toy-classes-HUT-r-1")
    assert hut.config.train.batch_size == lora.config.train.batch_size == 8
    assert (hut.config.train.warmup_steps, lora.config.train.warmup_steps) == (2, 3)
    assert (hut.config.train.weight_decay, lora.config.train.weight_decay) == (0.5, 0.0)
    assert hut.config.data.train_limit == 16
    assert hut.config.method_settings.r == 1
    assert hut.seeds == (3, 4)
    assert hut.config.seed == 3


def test_names_choose_rows_of_a_plan(written, flags):
    found = command.parse(flags("--plan", str(written), "--methods", "lora"))
    assert [cell.row.name for cell in found.cells] == ["lora"]
    # a comma or space in a name would end it
    found = command.parse(flags("--plan", str(written), "--methods", "lora,HUT-r-1"))
    assert [cell.row.name for cell in found.cells] == ["HUT, r 1", "lora"]
    with pytest.raises(UserError, match=r"did you mean HUT-r-1\? \(known: HUT-r-1, lora\)"):
        command.parse(flags("--plan", str(written), "--methods", "HUT-r-2"))


def test_every_method_has_as_many_values_of_its_learning_rate_and_nothing_else_is_searched(flags):
    cells = command.parse(flags("--methods", "hut lora full", "--budget", "3")).cells
    ranges = {"hut": (1e-4, 1e-1), "lora": (1e-4, 1e-2), "full": (1e-5, 1e-3)}
    for cell in cells:
        assert list(cell.search.space.parameters) == ["train.learning_rate"]
        rates = cell.search.space.parameters["train.learning_rate"]
        assert isinstance(rates, Choices)
        assert cell.search.slots == len(rates.values) == 3
        assert cell.search.config.task_settings == cells[0].search.config.task_settings
        low, high = ranges[cell.row.method]
        assert all(low < rate < high for rate in rates.values)


def test_declared_spaces_are_searched_on_demand(flags):
    (cell,) = command.parse(flags("--methods", "hut", "--search", "declared", "--budget", "5")).cells
    assert set(cell.search.space.parameters) == {"train.learning_rate", "method.r"}
    assert (cell.search.sampler, cell.search.slots) == ("tpe", 5)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_middles_are_as_far_from_one_another_as_twice_from_the_ends(parts):
    rates = middles(LogUniform(1e-5, 1e-1), parts)
    places = [math.log10(rate) + 5 for rate in rates]
    # two digits are within 5 % of a number
    assert places == pytest.approx([4 / parts * (part + 0.5) for part in range(parts)], abs=math.log10(1.05))


@pytest.mark.parametrize(
    ("words", "seeds"),
    [(["1..3"], (1, 2, 3)), (["4", "2"], (4, 2)), (["1,5..6"], (1, 5, 6)), (["7"], (7,))],
)
def test_seeds_are_ranges_and_lists(words, seeds):
    assert read_seeds(words) == seeds


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--methods", "hut,lorra"], "did you mean lora"),
        (["--tasks", "cloa"], "did you mean cola"),
        (["--methods", "hut,hut"], "--methods names hut twice"),
        (["--method", "hut"], "the flag is --methods"),
        (["--seed", "1"], "the flag is --seeds"),
        (["--seeds", "3..1"], "--seeds 3..1"),
        (["--seeds", "1", "1"], "names 1 twice"),
        (["--seeds", "many"], "--seeds many"),
        (["--budget", "-1"], "--budget is -1"),
        (["--workers", "0"], "--workers is 0"),
        (["--pack", "0"], "--pack is 0"),
        (["--trial-seeds", "0"], "--trial-seeds is 0"),
        (["--trial-seeds", "3"], "--trial-seeds 3: --seeds has 2"),
        (["--trial-seeds", "2", "--search", "declared"], "give --sampler grid"),
        (["--train.learning-rate", "1e-3"], "--train.learning-rate fixes what --budget would search"),
        (["--space.learning-rate", "1e-3", "1e-2", "3e-2"], "has not 2 values"),
        (["--space.train.weight-decay", "0", "1"], "give --search declared"),
        (["--sampler", "grid", "--search", "declared"], "grid"),
        (["--train.epochz", "1"], "toy-classes hut: unknown flag --train.epochz"),
        (["--method.r", "0"], "toy-classes hut"),
        (["--plan", "none.toml"], "none.toml"),
        (["--dry-run", "yes"], "--dry-run"),
    ],
)
def test_bad_flags_are_refused_in_a_sentence(flags, more, told):
    with pytest.raises(UserError) as refused:
        command.parse(flags(*more))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no table [tasks]"),
        ("[tasks]\ntoy-classes = ''", "no table [rows]"),
        ("[tasks]\ntoy-classes = ''\n[rows]\nhut = ''", "must begin with a method's name"),
        ("[tasks]\ntoy-classes = ''\n[rows]\nhut = 3", "must be a text"),
        ("[tasks]\ntoy-classes = ''\n[rows]\nhut = \"hut 'x\"", "cannot be split"),
        ("[tasks]\ntoy-classes = ''\n[rows]\nhut = 'hutt'", "hutt"),
        ("[tasks]\ntoyclasses = ''\n[rows]\nhut = 'hut'", "toyclasses"),
        ("[tasks]\ntoy-classes = '--seed 1'\n[rows]\nhut = 'hut'", "--seed"),
        ("[tasks]\ntoy-classes = ''\n[rows]\nhut = 'hut --seeds 1'", "--seeds is the same for all rows"),
        ("[tasks]\ntoy-classes = ''\n[rows]\n'a b' = 'hut'\n'a-b' = 'lora'", "rename one"),
        ("[tasks]\ntoy-classes = ''\n[rows]\nhut = 'hut'\n[cells]\nhut = ''", 'as in "toy-classes hut"'),
        (
            "[tasks]\ntoy-classes = ''\n[rows]\nhut = 'hut'\n[cells]\n'toy-classes hut' = '--seeds 1'",
            "same for all rows",
        ),
        ("flag = ''\n[tasks]\ntoy-classes = ''\n[rows]\nhut = 'hut'", "flag is no key"),
        ("flags = 3\n[tasks]\ntoy-classes = ''\n[rows]\nhut = 'hut'", "flags must be a text"),
    ],
)
def test_bad_plans_are_refused_in_a_sentence(tmp_path, flags, text, told):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        command.parse(flags("--plan", str(path)))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_that_a_plan_does_not_have_are_refused(written):
    with pytest.raises(UserError, match="did you mean lora"):
        plan.of_file(written, ["loraa"])
