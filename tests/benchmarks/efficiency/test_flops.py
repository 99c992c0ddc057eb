"""The formulas give what the HUT paper prints in its Table 2."""

import pytest

from benchmarks.efficiency.flops import hut_flops, lora_flops
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
    assert linear_flops(512, 1024, 8) + linear_flops(512, 8, 768) == 2 * 512 * 8 * (1024 + 768)
