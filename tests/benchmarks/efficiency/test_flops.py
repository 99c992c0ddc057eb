"""The formulas give what the HUT paper prints in its Table 2, and what is counted is what they say."""

import json

import pytest

from benchmarks.efficiency.flops import NAMES, adapted_matrices, by_formula, hut_flops, lora_flops, low_rank_flops, main
from benchmarks.efficiency.models import build_frozen
from benchmarks.efficiency.settings import ModelSettings
from hadamard_core.accounting import linear_flops


def test_table_2():
    matrices = 48  # query and value of RoBERTa-large's 24 layers
    assert matrices * hut_flops(0, 1024, 1024, r=8) == 202_113_024
    assert matrices * lora_flops(0, 1024, 1024, r=8) == 855_638_016


@pytest.mark.parametrize("tokens", [0, 128])
def test_the_papers_difference(tokens):
    d, r = 1024, 8
    assert lora_flops(tokens, d, d, r) - hut_flops(tokens, d, d, r) == 2 * r * d**2 - 3 * d**2 - 2 * r * d


def test_lora_as_people_run_it():
    assert low_rank_flops(512, 1024, 768, 8) == 2 * 512 * 8 * (1024 + 768)


def test_matrices_of_a_fused_projection():
    sizes = ("n_embd=32", "n_head=2", "vocab_size=50", "bos_token_id=0", "eos_token_id=0")
    base = build_frozen(ModelSettings(model_config="gpt2", override=sizes, layers=1, length=4, device="cpu"))
    assert adapted_matrices(base) == [(32, 32)] * 2


def test_counted_is_what_the_formulas_say(tiny, run, tmp_path):
    path = tmp_path / "flops.json"
    code, out, _ = run(main, [*tiny, "--json", str(path)])
    assert code == 0
    assert "HUT 0.202, LoRA 0.856 GFLOPs" in out
    rows = json.loads(path.read_text())["rows"]
    assert tuple(rows) == NAMES
    floor, tokens, matrices = rows["floor"], 4 * 8, [(32, 32)] * 2
    for name in ("hut-weight", "hut-activation"):  # all of HUT's own work is elementwise
        assert (rows[name]["forward"], rows[name]["backward"]) == (floor["forward"], floor["backward"])
    # the full gradient of each weight
    full = sum(linear_flops(tokens, *matrix) for matrix in matrices)
    assert rows["hut-autograd"]["backward"] - floor["backward"] == full
    for name in ("lora", "peft-lora", "peft-vera"):
        assert rows[name]["forward"] - floor["forward"] == by_formula(name, tokens, matrices)[1]
    # gradients of x and of both factors
    for name in ("lora", "peft-lora"):
        assert rows[name]["backward"] - floor["backward"] == 2 * by_formula(name, tokens, matrices)[1]
    assert rows["vera"]["forward"] <= rows["peft-vera"]["forward"] + linear_flops(32, 32, 256) * 2
