"""Learned values by layer: they are those on disk, and similarity is of what training has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.analysis.adapter_values import STARTS, Learned, change, correlation, cosine, read_learned
from benchmarks.analysis.adapters import similarity_rows
from benchmarks.analysis.runs import read_run

LAYER = "base_model.model.bert.encoder.layer.{}.attention.output."
ON_DISK = {
    "W": LAYER + "dense.hadamard_weight",
    "b": LAYER + "dense.hadamard_bias",
    "attention norm weight": LAYER + "LayerNorm.hadamard_norm_weight",
    "attention norm bias": LAYER + "LayerNorm.hadamard_norm_bias",
}


@pytest.fixture
def table(analyse, read_csv):
    """Runs the command; returns what it printed and the rows of both CSV files, the second None if it is not there."""

    def run(*paths: Path) -> tuple[str, list[dict], list[dict] | None]:
        code, out, err = analyse("adapters", *paths, "--output-dir", "out")
        assert code == 0, err
        similarity = Path("out/similarity.csv")
        return out, read_csv(Path("out/adapters.csv")), read_csv(similarity) if similarity.exists() else None

    return run


def test_values_are_those_on_disk(trained, table):
    path = trained("hadamard")
    saved = load_file(path / "adapter" / "adapter_model.safetensors")
    out, rows, similarity = table(path)
    assert similarity is None
    assert "similarity needs two runs" in out
    assert len(rows) == 2 * len(ON_DISK)
    for row in rows:
        value = saved[ON_DISK[row["vector"]].format(row["layer"])].double()
        assert float(row["mean"]) == pytest.approx(float(value.mean()))
        assert float(row["std"]) == pytest.approx(float(value.std(unbiased=False)))
        assert (float(row["min"]), float(row["max"])) == (float(value.min()), float(value.max()))
        start = 1 if row["vector"] == "W" else 0
        assert float(row["importance"]) == pytest.approx(float((value - start).norm()))
        assert float(row["importance"]) > 0
        assert f"{float(row['importance']):.3f}" in out
    assert "plotly" in Path("out/adapters.html").read_text()


def test_similarity_is_of_the_changes_and_of_w_itself(trained, table):
    paths = [trained("hadamard"), trained("hadamard", "rte")]
    out, _, rows = table(*paths)
    saved = [load_file(path / "adapter" / "adapter_model.safetensors") for path in paths]
    assert len(rows) == 2 * len(ON_DISK)
    for row in rows:
        assert (row["run"], row["other"]) == ("mrpc", "rte")
        a, b = (each[ON_DISK[row["vector"]].format(row["layer"])].double() for each in saved)
        own = torch.cosine_similarity(a, b, dim=0)
        assert float(row["cosine_value"]) == pytest.approx(float(own))
        if row["vector"] == "W":
            changed = torch.cosine_similarity(a - 1, b - 1, dim=0)
            assert float(row["cosine_change"]) == pytest.approx(float(changed))
            assert float(row["cosine_value"]) > 0.9
            assert abs(float(row["cosine_change"])) < 0.9
        else:
            assert row["cosine_change"] == row["cosine_value"]
    assert "cosine similarity of W - 1" in out
    assert "cosine similarity of W itself, near 1 whatever was learned" in out


def test_runs_with_other_layers_are_compared_in_those_that_they_share(trained, table):
    some = trained("hadamard", "rte", "--method.layers", "1", "--method.norm", "both")
    out, values, rows = table(trained("hadamard"), some)
    assert {row["layer"] for row in rows} == {"1"}
    assert {row["vector"] for row in rows} == set(ON_DISK)  # the other has no norm of the feed-forward
    assert {row["layer"] for row in values if row["run"] == "rte"} == {"1"}
    assert {row["vector"] for row in values if row["run"] == "rte"} > set(ON_DISK)
    assert "mrpc and rte are compared in the layers that they share: 1" in out


def test_runs_that_share_no_layer(trained, table):
    paths = [trained("hadamard", "mrpc", "--method.layers", "0"), trained("hadamard", "rte", "--method.layers", "1")]
    out, values, rows = table(*paths)
    assert rows is None
    assert len(values) == 2 * len(ON_DISK)
    assert "mrpc and rte share no adapted layer" in out


def test_a_matrix_of_three(trained, table):
    out, _, rows = table(trained("hadamard"), trained("hadamard", "rte"), trained("hadamard", "cola"))

    def mean(run: str, other: str) -> str:
        pair = [row for row in rows if (row["vector"], row["run"], row["other"]) == ("b", run, other)]
        assert [row["layer"] for row in pair] == ["0", "1"]
        return f"{sum(float(row['cosine_change']) for row in pair) / 2:.3f}"

    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("cosine similarity of b"))
    assert [line.split() for line in lines[start + 1 : start + 5]] == [
        ["mrpc", "rte", "cola"],
        ["mrpc", mean("mrpc", "rte"), mean("mrpc", "cola")],
        ["rte", mean("mrpc", "rte"), mean("rte", "cola")],
        ["cola", mean("mrpc", "cola"), mean("rte", "cola")],
    ]


def test_a_decoder_with_norms_without_bias(trained, table):
    _, rows, _ = table(trained("hadamard", kind="llama"))
    assert {row["vector"] for row in rows} == {"W", "b", "attention norm weight"}


def test_cosines():
    a, b = torch.tensor([1.0, 2.0, -3.0]).double(), torch.tensor([2.0, 0.0, 1.0]).double()
    assert cosine(a, b) == pytest.approx(-1 / (14 * 5) ** 0.5)
    assert cosine(a, -2 * a) == pytest.approx(-1)
    assert cosine(a, 0 * a) is None
    assert correlation(a, 3 * a + 5) == pytest.approx(1)
    assert correlation(a, torch.full_like(a, 7.0)) is None


def test_vectors_that_have_not_moved_have_no_similarity():
    still = Learned({name: {"0": torch.full((4,), STARTS.get(name, 0.0)).double()} for name in ("W", "b")}, 0)
    rows = similarity_rows({"one": still, "two": still})
    assert [row["cosine_change"] for row in rows] == [None, None]
    assert rows[0]["cosine_value"] == pytest.approx(1)
    assert change("W", still.vectors["W"]["0"]).norm() == 0


def test_modules_that_are_no_attention_output_are_counted(trained):
    names = ("--method.target-modules", "query", "attention.output.dense", "--method.norm", "none")
    learned = read_learned(read_run(trained("hadamard", "mrpc", *names)))
    assert learned.left_out == 2
    assert learned.layers == ["0", "1"]


class TestBadInput:
    def test_in_words(self, refused, trained, tmp_path):
        refused("no run is given", "adapters")
        refused("give the directory of a finished run", "adapters", tmp_path)
        refused("this needs one of --method hadamard", "adapters", trained("full"))

    def test_other_base_models(self, refused, trained):
        refused("on the same weights", "adapters", trained("hadamard"), trained("hadamard", kind="llama"))

    def test_other_positions(self, refused, trained):
        other = trained("hadamard", "rte", "--method.position", "projection")
        refused("their W and b act on other things", "adapters", trained("hadamard"), other)
