"""What stands on one board and in one row, what it is compared with, and what it costs."""

from __future__ import annotations

import pytest

from harness.errors import UserError


def number_of_boards(write, report, *results) -> int:
    for number, result in enumerate(results):
        write(f"{number}.json", result)
    found = report()
    assert not found.skipped
    return len(found.boards)


COMPARABLE = {
    "folder": lambda run: run["config"].update(output_dir="elsewhere", data={"dir": "there"}),
    "origin of the data": lambda run: run["data"].update(origin="folder b", warnings=["a row is missing"]),
    "name of the model": lambda run: run["model"].update(name="copies/tiny"),
    "batch size": lambda run: run["train"].update(batch_size=16, steps=3),
}
APART = {
    "version": lambda run: run["task"].update(version=4),
    "weights": lambda run: run["model"].update(sha256="beef"),
    "start": lambda run: run.update(init_from={"task": "other", "sha256": "aa"}),
    "data": lambda run: run["data"].update(train_examples=49),
    "task settings": lambda run: run["config"].update(task_settings={"max_length": 9}),
    "split": lambda run: [entry.update(split="test") for entry in run["evaluations"].values()],
    "examples": lambda run: [entry.update(examples=91) for entry in run["evaluations"].values()],
}


@pytest.mark.parametrize("change", COMPARABLE.values(), ids=COMPARABLE)
def test_runs_that_compare_stand_on_one_board(write, report, result, change):
    other = result("hut")
    change(other)
    assert number_of_boards(write, report, result(), other) == 1


@pytest.mark.parametrize("change", APART.values(), ids=APART)
def test_runs_that_do_not_compare_stand_apart(write, report, result, change):
    other = result("hut")
    change(other)
    assert number_of_boards(write, report, result(), other) == 2


def test_runs_of_a_row_differ_in_the_seed_alone(write, report, result):
    moved = result(seed=2, held_out=0.75)
    moved["config"].update(output_dir="elsewhere", eval_batch_size=3, description="words", preset="another")
    write("a.json", result(seed=1, held_out=0.25))
    write("b.json", moved)
    write("c.json", result(seed=3, rate=0.1))
    (board,) = report().boards
    by_label = {row.label: dict(row.quality["held_out"]["accuracy"].values) for row in board.rows}
    assert by_label == {"lora, learning_rate 0.001": {1: 0.25, 2: 0.75}, "lora, learning_rate 0.1": {3: 0.5}}


def test_boards_of_one_task_and_model_are_named_by_what_tells_them_apart(write, report, result):
    longer, test_set, tuned = result(), result(), result()
    other, cut, started, again = (result(task="b") for _ in range(4))
    longer["data"]["train_examples"] = tuned["data"]["train_examples"] = 5000
    for entry in test_set["evaluations"].values():
        entry["split"] = "test"
    tuned["init_from"] = {"method": "full", "sha256": "1" * 64}
    cut["config"]["task_settings"]["max_length"] = 6
    started["init_from"] = {"method": "full", "sha256": "1" * 64}
    again["init_from"] = {"method": "full", "sha256": "2" * 64}
    runs = (result(), longer, test_set, tuned, other, cut, started, again, result(task="alone"))
    for number, run in enumerate(runs):
        write(f"{number}.json", run)
    assert sorted(board.name for board in report().boards) == [
        "alone · tiny",
        "b · tiny, start method full (1)",
        "b · tiny, start method full (2)",
        "b · tiny, start the model as it comes, max length 6",
        "b · tiny, start the model as it comes, max length 8",
        "toy · tiny, train examples 5,000, start method full",
        "toy · tiny, train examples 5,000, start the model as it comes",
        "toy · tiny, train examples 50, split test",
        "toy · tiny, train examples 50, split validation",
    ]


def test_a_label_names_what_rows_of_one_method_differ_in(write, report, result):
    write("a.json", result("hut", settings={"r": 8, "roles": ["query", "value"], "scale": True}))
    write("b.json", result("hut", settings={"r": 16, "roles": ["query"], "scale": True}))
    write("c.json", result("lora", settings={"r": 2}))
    (board,) = report().boards
    assert {row.label: dict(row.settings) for row in board.rows} == {
        "hut, r 8, roles query+value": {"method.r": "8", "method.roles": "query+value"},
        "hut, r 16, roles query": {"method.r": "16", "method.roles": "query"},
        "lora": {},
    }


def test_a_setting_of_method_and_training_keeps_its_section_and_labels_are_never_the_same(write, report, result):
    runs = [result(settings={"dropout": value}) for value in (1, "1", 2)]
    runs[2]["config"]["train"]["dropout"] = 3
    for number, run in enumerate(runs):
        write(f"{number}.json", run)
    labels = sorted(row.label for row in report().boards[0].rows)
    assert labels == [
        "lora, method.dropout 1",
        "lora, method.dropout 1 (2)",
        "lora, method.dropout 2, train.dropout 3",
    ]


def test_rows_are_sorted_by_the_held_out_selection_and_compared_with_the_best_that_has_several_seeds(
    write, report, result
):
    for seed in (1, 2):
        write(f"hut-{seed}.json", result("hut", seed, held_out=0.5, published=0.9))
        write(f"lora-{seed}.json", result("lora", seed, held_out=0.6, published=0.1))
    write("lucky.json", result("lucky", held_out=0.7))
    (board,) = report().boards
    assert list(board.selections) == ["held_out", "published"]
    assert [row.label for row in board.rows] == ["lucky", "lora", "hut"]
    labels = {row.id: row.label for row in board.rows}
    assert labels[board.reference] == "lora"
    found = {(labels[each.row], each.which): each for each in board.differences}
    assert found.keys() == {(row, which) for row in ("lucky", "hut") for which in ("held_out", "published")}
    assert found["hut", "held_out"].mean == pytest.approx(-0.1)
    assert not found["hut", "held_out"].within_noise
    assert found["lucky", "held_out"].low is None


def test_the_reference_can_be_chosen_by_its_label(write, report, result):
    write("a.json", result("hut", held_out=0.1))
    write("b.json", result("lora", held_out=0.9))
    write("c.json", result("lora", held_out=0.9, task="other"))
    first, other = sorted(report("hut").boards, key=lambda board: board.task, reverse=True)
    assert [row.label for row in first.rows if row.id == first.reference] == ["hut"]
    assert any("takes its place" in note for note in other.notes)
    with pytest.raises(UserError, match=r"--reference ht: .* did you mean hut\? \(known: lora; hut\)"):
        report("ht")


def test_the_metric_is_the_one_that_selects_and_never_a_loss(write, report, result):
    by_loss = result(task="b")
    for entry in by_loss["evaluations"].values():
        entry["selection"]["metric"] = "loss"
    nothing = result(task="c")
    for entry in nothing["evaluations"].values():
        entry["metrics"] = {"loss": 0.5}
    for number, run in enumerate((result(task="a"), by_loss, nothing)):
        write(f"{number}.json", run)
    assert [board.metric for board in report().boards] == ["accuracy", "f1", ""]


def test_rows_that_trained_otherwise_and_seeds_that_differ_are_noted(write, report, result):
    longer = result("hut", seed=2)
    longer["train"]["steps"] = 1000
    longer["data"]["warnings"] = ["train has one row less"]
    write("a.json", result())
    write("b.json", longer)
    notes = " ".join(report().boards[0].notes)
    assert "1 of 9 x 4; 1 of 1,000 x 4" in notes
    assert "differ in their seeds" in notes
    assert "train has one row less" in notes


def test_steps_of_all_stages_count(write, report, result):
    staged = result()
    staged["stages"] = [{"stage": "one", "skipped": "no head"}, {"stage": "two", "steps": 5}, staged["train"]]
    write("a.json", staged)
    assert report().boards[0].rows[0].steps == 14


def test_the_lowest_held_out_loss_is_that_of_any_measurement(write, report, result):
    run = result()
    run["train"]["measurements"] = [{"step": at, "held_out": {"loss": loss}} for at, loss in ((1, 0.5), (2, 0.75))]
    run["train"]["measurements"].append({"step": 3, "held_out": {"loss": None}})
    write("a.json", run)
    assert report().boards[0].rows[0].held_out_loss.mean == 0.5


def make_costs(*entries, sha256="f00d" * 16):
    empty = dict.fromkeys(("step", "step_memory_bytes", "flops_formula", "flops_counted", "merged_forward"))
    return {
        "kind": "hadamard-bench costs",
        "schema_version": 1,
        "model": {"name": "tiny", "sha256": sha256},
        "conditions": "on a machine",
        "entries": [{"checkpoint_bytes": None, **empty, **entry} for entry in entries],
    }


def test_costs_join_by_weights_method_and_settings(write, report, result):
    ratio = {"median": 1.5, "low": 1.25, "high": 2.0}
    write("hut.json", result("hut", settings={"r": 8}))
    write("lora.json", {**result("lora"), "checkpoint_bytes": 11})
    entries = [
        {"method": "hut", "method_settings": {"r": 16}, "flops_counted": 1},
        {"method": "hut", "method_settings": {"r": 8}, "flops_counted": 2, "step": ratio, "notes": ["slow"]},
        {"method": "lora", "method_settings": {}, "checkpoint_bytes": 99, "step_memory_bytes": 3},
    ]
    write("costs.json", make_costs(*entries))
    write("other.json", make_costs({"method": "hut", "method_settings": {"r": 8}, "flops_counted": 4}, sha256="beef"))
    found = report()
    assert not found.skipped
    costs = {row.method: row.costs for row in found.boards[0].rows}
    assert (costs["hut"].flops_counted, costs["hut"].step.median, costs["hut"].notes) == (2, 1.5, ("slow",))
    assert (costs["lora"].checkpoint_bytes, costs["lora"].step_memory_bytes) == (11, 3)
    assert costs["lora"].conditions == "on a machine"


@pytest.mark.parametrize(
    ("costs", "reason"),
    [
        (make_costs({"method": "hut", "method_settings": {}, "step": {"median": 1.0, "low": 1.0}}), "step.high"),
        (make_costs({"method": "hut", "method_settings": {}, "flops_counted": "many"}), "flops_counted"),
        (make_costs({"method": "hut", "method_settings": {}}, {"method": "hut", "method_settings": {}}), "too"),
        ({**make_costs(), "schema_version": 2}, "schema version"),
    ],
)
def test_broken_costs_are_named(write, report, result, costs, reason):
    write("costs.json", costs)
    write("run.json", result())
    (skipped,) = report().skipped
    assert reason in skipped.reason


def test_costs_that_two_files_have_are_not_mixed(write, report, result):
    for name, count in (("a.json", 1), ("b.json", 2)):
        write(name, make_costs({"method": "lora", "method_settings": {}, "flops_counted": count}))
    write("run.json", result())
    found = report()
    assert found.boards[0].rows[0].costs.flops_counted == 1
    assert [skipped.file.endswith("b.json") for skipped in found.skipped] == [True]


def test_averages_are_seed_by_seed_over_the_tasks_that_have_the_label(write, report, result):
    scores = {("a", 1): 0.25, ("a", 2): 0.5, ("b", 1): 0.75, ("b", 2): 0.5, ("b", 3): 1.0}
    for (task, seed), score in scores.items():
        write(f"lora-{task}-{seed}.json", result("lora", seed, score, task=task))
    write("hut.json", result("hut", task="a"))
    write("apart.json", result("head", task="c"))
    found = report()
    assert {(average.label, average.which) for average in found.averages} == {
        ("lora", "held_out"),
        ("lora", "published"),
    }
    assert dict(found.averages[0].quality.values) == {1: 0.5, 2: 0.5}
    assert [board.task for board in found.boards if board.id in found.averages[0].boards] == ["a", "b"]


def test_a_task_with_two_boards_and_a_model_with_one_task_have_no_average(write, report, result):
    for number, examples in enumerate((10, 20)):
        run = result(task="a")
        run["data"]["train_examples"] = examples
        write(f"{number}.json", run)
    write("b.json", result(task="b"))
    assert report().averages == []
