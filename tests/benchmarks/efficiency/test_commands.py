"""Each command prints its table, writes its JSON, and refuses bad input in a sentence."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

from benchmarks.efficiency import flops, inference, op, packed, plot, step
from benchmarks.efficiency.variants import VARIANTS
from harness.errors import UserError


@pytest.fixture
def stored(tmp_path):
    """The arguments that store a result, and a function that reads it after checking what all results have."""
    path = tmp_path / "result.json"

    def read(command: str) -> dict:
        found = json.loads(path.read_text())
        assert found["command"] == f"benchmarks.efficiency.{command}"
        assert found["machine"].keys() == {"cpu", "cores", "threads", "gpu"}
        assert found["machine"]["threads"] == 1
        assert {"python", "torch", "transformers", "peft", "triton"} == found["versions"].keys()
        assert found["settings"]["turns"] == 2
        assert found["settings"]["device"] == "cpu"
        return found

    return ["--json", str(path)], read


def test_step(tiny, run, stored):
    arguments, read = stored
    code, out, err = run(step.main, [*tiny, *arguments])
    assert (code, err) == (0, "")
    found = read("step")
    assert list(found["rows"]) == list(VARIANTS)
    for name, row in found["rows"].items():
        assert len(row["to_floor"]["values"]) == 2
        assert VARIANTS[name].label in out
        assert (row["trained"] > 0) == (row["checkpoint_bytes"] > 0) == (name != "floor")
    assert found["rows"]["floor"]["to_floor"]["values"] == [1.0, 1.0]
    assert found["rows"]["hut"]["trained"] == 2 * (8 * 64 + 64)  # r(d + k) + 2k of each matrix
    assert found["rows"]["lora"]["trained"] == found["rows"]["peft-lora"]["trained"] == 2 * 8 * 64
    saved = {name: row["bytes_over_floor"] for name, row in found["rows"].items()}
    assert saved["hut-weight"] == saved["hut-activation"] < saved["hut-autograd"]
    assert len(found["pairs"]) == len(step.PAIRS)
    assert "vera / peft-vera" in out
    assert "2 interleaved turns" in out
    assert "1 threads" in out


def test_a_checkpoint_is_what_save_pretrained_writes(tiny, run, stored):
    arguments, read = stored
    assert run(step.main, [*tiny, *arguments, "--only", "peft-ia3", "scale-shift"])[0] == 0
    rows = read("step")["rows"]
    assert list(rows) == ["floor", "scale-shift", "peft-ia3"]
    for row in rows.values():
        assert 0 <= row["checkpoint_bytes"] - 4 * row["trained"] < 600  # fp32, and the header of safetensors


def test_growth(tiny, run, stored):
    arguments, read = stored
    code, out, _ = run(step.main, [*tiny, *arguments, "--only", "hut", "peft-lora", "--growth"])
    assert code == 0
    entries = read("step")["growth"]
    by_kind: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for entry in entries:
        by_kind.setdefault((entry["what"], entry["name"]), []).append((entry["value"], entry["over"]))
    for name in ("hut", "peft-lora"):
        assert by_kind["rank", name] == [(f"r = {r}", "r = 1") for r in (1, 8, 64)]
        assert by_kind["tokens", name] == [(size, "floor") for size in ("1 x 1", "1 x 8", "4 x 8", "16 x 8")]
        assert by_kind["adapters", name] == [(f"{k} in a batch", "1 in a batch") for k in (1, 2, 4)]
    assert "growth with" in out


def test_packed(tiny, run, stored):
    arguments, read = stored
    code, out, err = run(packed.main, [*tiny, *arguments, "--pack", "1", "3", "--steps", "2"])
    assert (code, err) == (0, "")
    rows = read("packed")["rows"]
    assert [(row["method"], row["pack"]) for row in rows] == [(m, k) for m in ("hut", "hadamard") for k in (1, 3)]
    for row in rows:
        assert f"{row['method']}, {row['pack']} trials" in out
        assert len(row["throughput"]["values"]) == 2
        assert 0 <= row["difference"] < 1e-5  # the same training, in both ways


def test_plot(tiny, run, tmp_path):
    pytest.importorskip("plotly")
    path = tmp_path / "step.html"
    assert run(step.main, [*tiny, "--only", "hut", "--plot", str(path)])[0] == 0
    text = path.read_text()
    assert "MiB saved for backward over the floor" in text
    assert 'src="http' not in text  # it opens without a network


def test_a_plot_without_plotly_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs plotly"):
        plot.check(tmp_path / "step.html")


def test_a_fused_projection_is_said(run):
    sizes = ["--override", "n_embd=32", "n_head=2", "vocab_size=50", "bos_token_id=0", "eos_token_id=0"]
    options = ["--layers", "1", "--batch-size", "2", "--length", "4", "--turns", "1", "--only", "hut-autograd"]
    code, out, _ = run(step.main, ["--model-config", "gpt2", *sizes, *options, "--device", "cpu"])
    assert code == 0
    assert "Fused projections: HUT adapts the slices" in out


def test_op(run, stored):
    arguments, read = stored
    sizes = ["--tokens", "3", "40", "--features", "32", "--turns", "2", "--device", "cpu"]
    code, out, _ = run(op.main, [*sizes, *arguments])
    assert code == 0
    rows = read("op")["rows"]
    assert [(row["op"], row["tokens"]) for row in rows] == [(name, count) for count in (3, 40) for name in op.OPS]
    for row in rows:
        assert row["op"] in out
        assert row["output_error"] < 1e-5
        assert row["gradient_error"] < 1e-4


def test_op_in_16_bits(run, stored):
    arguments, read = stored
    options = ["--tokens", "16", "--features", "64", "--turns", "2", "--dtype", "bfloat16", "--device", "cpu"]
    assert run(op.main, [*options, *arguments])[0] == 0
    for row in read("op")["rows"]:
        assert 1e-4 < row["output_error"] < 3e-2  # 8 bits
        assert row["gradient_error"] < 3e-2


def test_inference(tiny, run, stored):
    arguments, read = stored
    code, out, _ = run(inference.main, [*tiny, *arguments, "--length", "1"])
    assert code == 0
    rows = read("inference")["rows"]
    merged = {f"{name}, merged" for name in inference.MERGED_NAMES}
    assert rows.keys() == {"base", "base, copied", *inference.NAMES} | merged
    assert all(row["label"] in out for row in rows.values())


def test_merging_leaves_the_shared_weights_alone(tiny):
    settings = inference.parse(inference.InferenceSettings, "inference", [*tiny, "--only", *inference.MERGED_NAMES])
    base = inference.build_frozen(settings)
    before = {name: p.clone() for name, p in base.named_parameters()}
    made = inference.models(settings, base)
    assert all(p.equal(before[name]) for name, p in base.named_parameters())
    batch = inference.Batch(base, 2, 4, seed=0)
    for name in inference.MERGED_NAMES:
        found, merged = (
            batch.outputs(made[each], made[each].get_input_embeddings()) for each in (name, name + inference.MERGED)
        )
        assert found.allclose(merged, rtol=1e-4, atol=1e-5)


MODEL_COMMANDS = {"step": step.main, "inference": inference.main, "flops": flops.main}


@pytest.mark.parametrize("command", MODEL_COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "peft-lorra"], "--only peft-lorra: no such row, did you mean peft-lora?"),
        (["--turns", "0"], "--turns is 0"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--device", "meta"], "--device meta"),
        (["--json", "nowhere/result.json"], "--json nowhere/result.json"),
        (["--model-config", "nowhere/config.json"], "no such file"),
    ],
)
def test_bad_input_is_one_sentence(command, arguments, said, tiny, run):
    code, out, err = run(MODEL_COMMANDS[command], [*tiny, *arguments])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (op.main, ["--tokens", "0"], "--tokens"),
        (op.main, ["--only", "lora"], "--only lora"),
        (step.main, ["--plot", "step.png"], "ends in .html"),
        (flops.main, ["--compile"], "--compile"),
    ],
)
def test_bad_input_of_one_command(main, arguments, said, run):
    code, out, err = run(main, [*arguments, "--device", "cpu"])
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package")
def test_as_a_program_it_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.efficiency.op", "--turns", "0"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("benchmarks.efficiency.op", run_name="__main__")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: --turns is 0: give at least 1\n"
