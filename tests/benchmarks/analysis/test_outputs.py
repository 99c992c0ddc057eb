"""Norms of self-attention outputs: those of hooks on the model itself, whatever the batches and their padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.analysis.attention_outputs import SampleSettings, attention_outputs, load_sample, sites
from benchmarks.analysis.outputs import norms
from benchmarks.analysis.runs import read_run
from benchmarks.glue.task import logits
from harness.workload import collate, lengths

KEYS = ("norm_before", "norm_after", "norm_change", "relative_change")


def one_by_one(model, modules: dict[str, str], sample, position: str) -> dict[str, list[torch.Tensor]]:
    """Returns layer -> the output of each example by itself, without padding, as hooks on named modules see it."""
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in modules}
    for layer, name in modules.items():

        def hook(module, given, output, layer=layer):
            found[layer].append((given[0] if position == "context" else output)[0].double())

        model.get_submodule(name).register_forward_hook(hook)
    for feature in sample.features:
        with torch.no_grad():
            logits(model, collate(sample.task, sample.tokenizer, [feature], torch.device("cpu")))
    return found


@pytest.mark.parametrize("position", ["context", "projection"])
@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("bert", "bert.encoder.layer.{}.attention.output.dense"),
        ("gpt2", "transformer.h.{}.attn.c_proj"),
        ("llama", "model.layers.{}.self_attn.o_proj"),
    ],
)
def test_norms_are_those_of_direct_hooks_on_single_examples(kind, module, position, trained):
    run = read_run(trained("full", kind=kind))
    sample = load_sample(run, SampleSettings())
    assert len(set(lengths(sample.features))) > 1  # so that batches are padded
    modules = {str(layer): module.format(layer) for layer in range(2)}
    before = one_by_one(run.before(), modules, sample, position)
    after = one_by_one(run.after(), modules, sample, position)
    found = norms(run, sample, position, batch_size=5)
    assert list(found) == ["0", "1"]
    for layer, each in found.items():
        x, y = torch.cat(before[layer]), torch.cat(after[layer])
        assert len(x) == sample.tokens
        assert each.before == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-5)
        assert each.after == pytest.approx(float(y.norm(dim=1).mean()), rel=1e-5)
        assert each.change == pytest.approx(float((y - x).norm(dim=1).mean()), rel=1e-4)
        assert each.relative_change == pytest.approx(each.change / each.before)
        assert each.change > 0


def test_padding_is_left_out_and_changes_nothing(trained):
    run = read_run(trained("full"))
    sample = load_sample(run, SampleSettings())
    model = run.before()
    short = min(sample.features, key=lambda feature: len(feature["input_ids"]))
    long = max(sample.features, key=lambda feature: len(feature["input_ids"]))
    tokens = len(short["input_ids"])
    outputs = []
    for features in ([short], [short, long]):
        batch = collate(sample.task, sample.tokenizer, features, torch.device("cpu"))
        is_token = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        is_token[0, :tokens] = True
        outputs.append(attention_outputs(model, batch, is_token, "context"))
    for layer, alone in outputs[0].items():
        assert alone.shape == (tokens, 16)
        torch.testing.assert_close(outputs[1][layer], alone, rtol=1e-5, atol=1e-5)  # fp32, other sums
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_table_and_files_for_several_tasks(trained, analyse, read_csv, tmp_path):
    runs = [trained("full"), trained("full", "rte")]
    code, out, err = analyse("outputs", *runs, "--examples", 8, "--output-dir", tmp_path / "out")
    assert code == 0, err
    rows = read_csv(tmp_path / "out" / "outputs.csv")
    assert [(row["run"], row["layer"]) for row in rows] == [("mrpc", "0"), ("mrpc", "1"), ("rte", "0"), ("rte", "1")]
    assert {row["examples"] for row in rows} == {"8"}
    for row in rows:
        assert all(float(row[key]) > 0 for key in KEYS)
        assert float(row["norm_change"]) <= float(row["norm_before"]) + float(row["norm_after"])
        assert f"{float(row['norm_change']):.4f}" in out
    assert "validation split, 8 examples" in out
    assert "1 seed (0)" in out
    assert "plotly" in (tmp_path / "out" / "outputs.html").read_text()


def test_runs_on_one_task_are_told_apart_by_seed(trained, analyse, read_csv):
    code, _, err = analyse("outputs", trained("full"), trained("full", "mrpc", "--seed", "1"), "--output-dir", "out")
    assert code == 0, err
    rows = read_csv(Path("out/outputs.csv"))
    assert [row["run"] for row in rows[::2]] == ["mrpc seed 0", "mrpc seed 1"]


def test_validation_of_mnli_is_its_matched_part(trained, analyse, read_csv):
    code, _, err = analyse("outputs", trained("full", "mnli"), "--output-dir", "out")
    assert code == 0, err
    assert {row["split"] for row in read_csv(Path("out/outputs.csv"))} == {"validation_matched"}


def test_another_folder_of_data(trained, glue_folder, analyse, read_csv, refused):
    run, data = trained("full"), glue_folder("mrpc", train=24, validation=20)
    code, _, err = analyse("outputs", run, "--data-dir", data, "--output-dir", "out")
    assert code == 0, err
    assert {row["examples"] for row in read_csv(Path("out/outputs.csv"))} == {"20"}
    refused("nowhere", "outputs", run, "--data-dir", "nowhere")


def test_a_run_whose_checkpoint_has_another_head_is_read(trained, analyse):
    run = trained("full", "mrpc", "--new-head", labels=("no", "yes", "maybe"))
    code, _, err = analyse("outputs", run, "--output-dir", "out")
    assert code == 0, err


def test_sites_of_an_encoder_decoder_leave_cross_attention_out():
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=9,
        d_model=8,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    found = sites(transformers.BartModel(config))
    assert [site.layer for site in found] == ["encoder 0", "encoder 1", "decoder 0"]
    assert all(site.name.endswith("self_attn.out_proj") for site in found)


class TestBadInput:
    def test_no_run(self, refused):
        refused("no run is given", "outputs")

    def test_a_folder_that_is_no_run(self, refused, tmp_path):
        refused("give the directory of a finished run", "outputs", tmp_path)

    def test_a_run_of_another_method(self, refused, trained):
        refused("this needs one of --method full", "outputs", trained("hadamard"))

    def test_other_base_models(self, refused, trained):
        refused(
            "an analysis compares runs on the same weights", "outputs", trained("full"), trained("full", kind="gpt2")
        )

    def test_the_same_run_twice(self, refused, trained):
        refused("is given twice", "outputs", trained("full"), trained("full"))

    def test_a_split_that_is_not_there(self, refused, trained):
        refused("has no such split (known: train, held_out, validation)", "outputs", trained("full"), "--split", "test")

    @pytest.mark.parametrize("flag", ["--examples", "--batch-size"])
    def test_nothing_to_compute(self, flag, refused, trained):
        refused(f"{flag} is 0", "outputs", trained("full"), flag, 0)

    def test_a_run_that_has_diverged(self, refused, trained, tmp_path):
        path = tmp_path / "broken"
        (path / "adapter").mkdir(parents=True)
        good = trained("full")
        for name in ("result.json", "config.toml"):
            (path / name).write_text((good / name).read_text())
        tensors = load_file(good / "adapter" / "model.safetensors")
        tensors["bert.encoder.layer.1.attention.self.value.bias"][3] = float("nan")
        save_file(tensors, path / "adapter" / "model.safetensors", metadata={"format": "pt"})
        refused("layer 1 are not finite", "outputs", path)
