"""Diff pruning: its gates and penalty, what it keeps, and its two stages from start to reloaded adapter."""

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.changes import changes_of
from hadamard_baselines.diff_pruning import (
    DiffPruningConfig,
    GatedChange,
    expected_nonzero,
    largest,
    relax,
)
from hadamard_baselines.methods.diff_pruning import DiffPruning
from hadamard_core.accounting import count_parameters
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, output

LAYERS_OF_LARGE = 24 * (12 * 1024**2 + 4 * 1024 + 4096 + 1024 + 4 * 1024)


class TestDiffPruning(MethodContract):
    config_class = DiffPruningConfig
    exempt: ClassVar[Mapping[str, str]] = {
        "test_file_holds_the_adapter_alone": "The file holds the positions of the values as well."
    }

    def config(self, case, variant=MappingProxyType({}), **fields):
        # Tiny models need a larger share; keys have biases without a gradient, because softmax ignores them.
        own = {"sparsity": 0.2}
        if not case.adapt and "target_modules" not in fields:
            own["roles"] = ["query", "value", "attention_norm", "ffn_input", "output_norm"]
        return super().config(case, {**own, **variant}, **fields)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return MODELS["bert"].inputs(torch.Generator().manual_seed(1))


def small(name="bert"):
    return MODELS[name].build().eval()


def train(model, method, x, labels, steps, rate=0.02):
    """A loop as the harness has it."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    method.begin_training(model, steps)
    losses = []
    for step in range(steps):
        loss = nn.functional.cross_entropy(output(model, x), labels)
        losses.append(loss.item())
        penalty = method.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step(model, step + 1)
        optimizer.zero_grad()
    return losses


# -- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
def test_gates_are_hard_concrete(structured):
    change = GatedChange(torch.zeros(200, 300), "weight", structured=structured, alpha_speed=10.0)
    alphas = {"element": 0.7, "group": 1.2}
    with torch.no_grad():
        for name, stored in change.gate_bias.items():
            stored.fill_(alphas[name] / 10)
        change.weight.copy_(torch.randn(200, 300))

    def reference(u, alpha):
        s = torch.sigmoid(u.log() - (1 - u).log() + alpha)
        return torch.clamp(s * 3.0 - 1.5, 0.0, 1.0)

    torch.manual_seed(3)
    expected = change.weight.detach().clone()
    for name, stored in change.gate_bias.items():
        expected *= reference(torch.rand_like(stored), alphas[name])
    torch.manual_seed(3)
    assert_close(change.train().change(), expected, atol=1e-5, rtol=1e-4)

    without_noise = math.prod(min(1.0, 3.0 / (1 + math.exp(-alphas[name])) - 1.5) for name in change.gate_bias)
    assert_close(change.eval().change(), change.weight * without_noise)
    assert torch.equal(change.change(), change.change())


def test_penalty_is_the_expected_number_of_open_gates():
    model = nn.ModuleDict({"a": nn.Linear(50, 40), "b": nn.Linear(30, 20, bias=False)})
    for structured in (True, False):
        relaxed = copy.deepcopy(model)
        relax(relaxed, ["a", "b"], structured, alpha_speed=5.0)
        with torch.no_grad():
            for _, _, change in changes_of(relaxed):
                for stored in change.gate_bias.values():
                    stored.copy_(0.2 * torch.randn_like(stored))
        closed = sum(
            torch.sigmoid(5 * change.gate_bias["element"]).sum()
            * (torch.sigmoid(5 * change.gate_bias["group"]) if structured else 1)
            for _, _, change in changes_of(relaxed)
        )
        assert_close(expected_nonzero(relaxed), closed)
        relaxed.train()
        drawn = [sum((change.gate() > 0).sum() for _, _, change in changes_of(relaxed)) for _ in range(400)]
        spread = torch.tensor(drawn).float().std() / math.sqrt(len(drawn))
        assert abs(torch.tensor(drawn).float().mean() - closed) < 4 * spread
    assert expected_nonzero(model) is None


def test_all_gates_are_open_at_the_start_and_nothing_differs(x):
    base = small()
    plain = output(base, x)
    method = DiffPruning(penalty_weight=0.5)
    model = method.enter("stage1", base, "SEQ_CLS", ["classifier"])
    assert torch.equal(output(model.eval(), x), plain)
    assert torch.equal(output(model.train().eval(), x), plain)
    values = sum(change.gate_bias["element"].numel() for _, _, change in changes_of(model))
    one = 1 / (1 + math.exp(-5))
    assert_close(method.penalty(model).item(), 0.5 * values * one * one, rtol=1e-5, atol=0.0)


def test_a_strong_penalty_closes_gates(x):
    base = small()
    labels = torch.tensor([0, 1, 2, 0])
    left = {}
    for weight in (0.0, 1e-2):
        method = DiffPruning(penalty_weight=weight, alpha_speed=20.0)
        model = method.enter("stage1", copy.deepcopy(base), "SEQ_CLS", ["classifier"])
        train(model, method, x, labels, 25)
        left[weight] = float(expected_nonzero(model))
    assert left[1e-2] < 0.5 * left[0.0]


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 1.0])
def test_keeps_exactly_the_largest_over_all_modules(sparsity):
    model = nn.ModuleDict({"a": nn.Linear(10, 8), "b": Conv1D(6, 9), "c": nn.LayerNorm(7)})
    relax(model, ["a", "b", "c"], alpha_speed=1.0)
    dense = {}
    with torch.no_grad():
        for name, parameter, change in changes_of(model):
            values = getattr(change, parameter)
            values.copy_(torch.randn_like(values) * (10 if name == "b" else 1))
            change.gate_bias["element"].normal_()
            delta = change.eval().change()
            dense[name, parameter] = (delta.T if name == "b" and delta.dim() == 2 else delta).flatten()
    found = largest(model, sparsity)
    every = torch.cat(list(dense.values())).abs()
    chosen = torch.cat([found[name][parameter].values for name, parameter in dense]).abs()
    assert len(chosen) == round(sparsity * len(every))
    assert torch.equal(chosen.sort().values, every.sort().values[-len(chosen) :])
    for (name, parameter), delta in dense.items():
        index, values = found[name][parameter]
        assert torch.equal(values, delta[index])
        assert torch.equal(index, index.unique())
    assert not list(changes_of(model))


def test_of_equals_the_first_are_kept():
    model = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(4, 5)})
    relax(model, ["a", "b"])
    with torch.no_grad():
        next(change for _, _, change in changes_of(model)).weight.view(-1)[[3, 11]] = torch.tensor([1.0, -2.0])
    found = largest(model, 0.1)
    assert found["a"]["weight"].index.tolist() == [0, 1, 2, 3, 11]
    assert [len(found[name][p].index) for name, p in (("a", "bias"), ("b", "weight"), ("b", "bias"))] == [0, 0, 0]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("sparsity", [0.005, 0.1])
def test_sparsity_is_exact_from_the_start(name, sparsity):
    model = MODELS[name].build()
    method = DiffPruning(sparsity=sparsity)
    dense = method.enter("stage1", copy.deepcopy(model), MODELS[name].task_type)
    total = sum(change.gate_bias["element"].numel() for _, _, change in changes_of(dense))
    for each in (dense, model):
        counts = count_parameters(method.apply(each, MODELS[name].task_type))
        assert counts.adapter + counts.norm == round(sparsity * total)


def test_slices_of_a_fused_projection_keep_to_their_rows():
    model = get_peft_model(small("gpt2"), DiffPruningConfig(roles=["query", "value"], sparsity=1.0))
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    rows = torch.cat([torch.arange(16), torch.arange(32, 48)])
    assert layer.diffpruning_bias_index["default"].tolist() == rows.tolist()
    expected = (rows[:, None] * 16 + torch.arange(16)).flatten()
    assert layer.diffpruning_weight_index["default"].tolist() == expected.tolist()


def test_stages_keep_to_the_slices_of_a_fused_projection():
    """Query and value of GPT-2's c_attn, whose keys stay as they are in both stages."""
    base = small("gpt2")
    before = copy.deepcopy(base.transformer.h[0].attn.c_attn)
    x = MODELS["gpt2"].inputs(torch.Generator().manual_seed(1))
    method = DiffPruning(sparsity=1.0, roles=("query", "value"))
    model = method.enter("stage1", base, "CAUSAL_LM")
    with torch.no_grad():
        for _, parameter, change in changes_of(model):
            getattr(change, parameter).normal_(std=0.1)
    expected = output(model.eval(), x)
    counts = count_parameters(model)
    adapted = method.apply(model, "CAUSAL_LM").eval()
    values = 2 * 2 * (16 * 16 + 16)
    assert (counts.adapter, count_parameters(adapted).adapter) == (2 * values + 4, values)
    assert_close(output(adapted, x), expected, atol=1e-5, rtol=1e-4)
    after = adapted.merge_and_unload().transformer.h[0].attn.c_attn
    for name in ("weight", "bias"):
        moved = getattr(after, name) != getattr(before, name)
        assert not moved[..., 16:32].any()
        assert moved[..., :16].all()
        assert moved[..., 32:].all()


# -- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
def test_stages_from_start_to_reloaded_adapter(x, tmp_path, structured):
    base = small()
    fresh = copy.deepcopy(base)
    labels = torch.tensor([0, 1, 2, 0])
    method = DiffPruning(sparsity=0.05, penalty_weight=1e-6, alpha_speed=10.0, structured=structured)
    model = method.enter("stage1", base, "SEQ_CLS", ["classifier"])
    assert not any(p.requires_grad for name, p in model.named_parameters() if "embeddings" in name)
    train(model, method, x, labels, 15)
    head = copy.deepcopy(model.classifier.state_dict())
    assert not torch.equal(head["weight"], fresh.classifier.weight)

    model = method.apply(model, "SEQ_CLS", ["classifier"])
    assert not list(changes_of(model))
    assert method.penalty(model) is None
    frozen = {
        n: p for n, p in model.get_base_model().named_parameters() if not p.requires_grad and "classifier" not in n
    }
    originals = dict(fresh.named_parameters())
    assert len(frozen) == len(originals) - 2
    for name, parameter in frozen.items():
        assert torch.equal(parameter, originals[name.replace("base_layer.", "")]), name
    kept_head = model.base_model.model.classifier.modules_to_save["default"]
    assert all(torch.equal(kept_head.state_dict()[name], value) for name, value in head.items())
    assert all(parameter.requires_grad for parameter in kept_head.parameters())

    losses = train(model, method, x, labels, 15)
    assert losses[-1] < losses[0]
    expected = output(model.eval(), x)
    method.save(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    total = sum(parameter.numel() for name, parameter in originals.items() if ".layer." in name)
    values = [key for key in stored if "diffpruning_" in key and not key.endswith("_index")]
    assert sum(stored[key].numel() for key in values) == round(0.05 * total)
    loaded = method.load(copy.deepcopy(fresh), tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(output(loaded.eval(), x), expected)
    assert_close(output(method.merge(loaded).eval(), x), expected)


def test_adapter_in_stage_2_starts_where_stage_1_was_cut(x):
    base = small()
    method = DiffPruning(sparsity=1.0, alpha_speed=1.0)
    model = method.enter("stage1", base, "SEQ_CLS")
    with torch.no_grad():
        for _, parameter, change in changes_of(model):
            getattr(change, parameter).normal_(std=0.1)
            change.gate_bias["element"].normal_()
    expected = output(model.eval(), x)
    assert_close(output(method.apply(model, "SEQ_CLS").eval(), x), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_loads_beside_one_with_other_positions(x, tmp_path):
    saved = []
    for seed in range(2):
        torch.manual_seed(5)
        base = small()
        method = DiffPruning(sparsity=0.03)
        model = method.enter("stage1", base, "SEQ_CLS")
        torch.manual_seed(seed)
        with torch.no_grad():
            for _, parameter, change in changes_of(model):
                getattr(change, parameter).normal_(std=0.3)
        model = method.apply(model, "SEQ_CLS").eval()
        method.save(model, tmp_path / str(seed))
        saved.append(output(model, x))
    torch.manual_seed(5)
    model = PeftModel.from_pretrained(small(), tmp_path / "0").eval()
    model.load_adapter(str(tmp_path / "1"), "other")
    assert torch.equal(output(model, x), saved[0])
    model.set_adapter("other")
    assert torch.equal(output(model, x), saved[1])
    y = output(model, x, adapter_names=["default", "other", "other", "default"])
    assert_close(y, torch.stack([saved[0][0], saved[1][1], saved[1][2], saved[0][3]]))


# -- numbers and bad input --------------------------------------------------------------------------------------------


def on_meta(name):
    with torch.device("meta"):
        if name == "roberta":
            return RobertaForSequenceClassification(
                RobertaConfig(
                    hidden_size=1024,
                    num_hidden_layers=24,
                    num_attention_heads=16,
                    intermediate_size=4096,
                    vocab_size=50265,
                )
            )
        return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_half_a_percent_of_the_layers_of_a_large_model(name):
    assert LAYERS_OF_LARGE == 302_309_376
    method = DiffPruning()
    counts = count_parameters(method.apply(on_meta(name), "SEQ_CLS"))
    assert counts.adapter + counts.norm == round(0.005 * LAYERS_OF_LARGE) == 1_511_547
    relaxed = count_parameters(method.enter("stage1", on_meta(name), "SEQ_CLS"))
    groups = 24 * (16 if name == "roberta" else 12)
    assert relaxed.adapter + relaxed.norm == 2 * LAYERS_OF_LARGE + groups


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sparsity": 0.0}, "--method.sparsity is 0.0"),
        ({"sparsity": 1.5}, "--method.sparsity is 1.5"),
        ({"penalty_weight": -1.0}, "--method.penalty-weight is -1.0"),
        ({"alpha_speed": 0.0}, "--method.alpha-speed is 0.0"),
    ],
)
def test_settings_without_sense_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        DiffPruning(**fields)


def test_configs_without_sense_are_refused():
    with pytest.raises(ValueError, match="sparsity is 2 in DiffPruningConfig"):
        DiffPruningConfig(sparsity=2)
    with pytest.raises(ValueError, match="has nothing for the module first"):
        get_peft_model(MODELS["linear"].build(), DiffPruningConfig(target_modules=["first"], counts={}))
    with pytest.raises(ValueError, match="not supported"):
        get_peft_model(MODELS["bert"].build(), DiffPruningConfig(target_modules=["word_embeddings"]))
    with pytest.raises(ValueError, match="not found in the base model"):
        DiffPruning(target_modules=("nowhere",)).enter("stage1", small(), "SEQ_CLS")
