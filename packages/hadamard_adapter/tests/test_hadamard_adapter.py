"""What the configuration means, what it refuses, and how adapters act together."""

import copy

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import AlbertConfig, AlbertModel

from hadamard_adapter import HadamardAdapterConfig, HadamardLinear, HadamardNorm
from hadamard_core.accounting import count_parameters
from hadamard_core.testing_models import MODELS, TwoLinear, output


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def adapted(base, **fields):
    return get_peft_model(copy.deepcopy(base), HadamardAdapterConfig(**fields)).eval()


def names(model, kind):
    layers = [name for name, module in model.named_modules() if isinstance(module, kind)]
    return [name.removeprefix("base_model.model.").removeprefix("bert.encoder.layer.") for name in layers]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"position": "before"}, "position is 'before' in HadamardAdapterConfig; it must be one of 'context', 'projec"),
        ({"norm": "all"}, "norm is 'all' in HadamardAdapterConfig; it must be one of 'attention', 'output', 'both', '"),
        ({"norm": None}, "norm is None"),
        ({"roles": ("query",)}, "roles has 'query' .* the adapter acts on attention outputs, so give 'attention_out"),
        ({"roles": ("cross.attention_output", "cross.value")}, r"roles has 'cross\.value'"),
        ({"weight": False, "bias": False, "norm": "none"}, "weight and bias are off and norm is 'none'"),
        ({"norm": "none", "norm_modules": ["norm"]}, "norm_modules is given together with norm='none'"),
        ({"target_modules": ["a"], "roles": ("cross.attention_output",)}, "target_modules and roles=.* both given"),
        ({"compute": "fast"}, "compute is 'fast'"),
    ],
)
def test_config_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        HadamardAdapterConfig(**fields)


def test_a_role_may_be_given_as_a_string():
    assert HadamardAdapterConfig(roles="cross.attention_output").roles == ("cross.attention_output",)


@pytest.mark.parametrize("fields", [{}, {"norm_modules": [r"norm"]}, {"norm_modules": "norm", "weight": False}])
def test_config_comes_back_from_its_file(fields, tmp_path):
    config = HadamardAdapterConfig(position="projection", layers_to_transform=[1], **fields)
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


class TestNormsWithoutAKnownRole:
    """Their names have to be given, which every refusal says in one sentence."""

    @pytest.mark.parametrize("norm", ["attention", "output", "both"])
    def test_on_a_custom_model(self, norm):
        with pytest.raises(ValueError, match=f"norm='{norm}' names norms by role, .* a TwoLinear; .* by norm_modules"):
            adapted(TwoLinear(), target_modules=["second"], norm=norm)

    def test_on_an_architecture_that_is_not_known(self):
        sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "embedding_size": 8}
        albert = AlbertModel(AlbertConfig(vocab_size=20, num_hidden_layers=1, **sizes))
        with pytest.raises(ValueError, match="no known roles in a AlbertModel; name them by norm_modules"):
            adapted(albert, target_modules=["dense"])
        model = adapted(albert, target_modules=["dense"], norm_modules=["LayerNorm"])
        assert {name.rpartition(".")[2] for name in names(model, HadamardNorm)} == {"LayerNorm"}

    def test_on_a_model_without_such_norms(self):
        model = MODELS["bert"].build()
        for layer in model.bert.encoder.layer:
            del layer.attention.output.LayerNorm
        words = r"'attention_norm', which this BertFor.* does not have; name norms by norm_modules, or give norm='none'"
        with pytest.raises(ValueError, match=words):
            adapted(model)
        assert len(names(adapted(model, norm="output"), HadamardNorm)) == 2

    def test_named(self):
        model = adapted(TwoLinear(), target_modules=["second"], norm_modules=["norm"], init_weights=False)
        assert (names(model, HadamardLinear), names(model, HadamardNorm)) == (["second"], ["norm"])
        x = torch.randn(5, 10)
        expected = model(x)
        with pytest.warns(UserWarning, match="gives a bias to layers that had none"):
            merged = model.merge_and_unload()
        assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("norm_modules", [["nowhere"], "nowhere.*"])
    def test_names_that_are_not_there(self, norm_modules):
        with pytest.raises(ValueError, match=r"norm_modules=.*nowhere.* was not found in the base model; name modules"):
            adapted(TwoLinear(), target_modules=["second"], norm_modules=norm_modules)

    def test_names_of_what_is_no_norm(self):
        words = "Module first is named as a norm and is a Linear, which is no norm .* name others by norm_modules"
        with pytest.raises(ValueError, match=words):
            adapted(TwoLinear(), target_modules=["second"], norm_modules=["norm", "first"])
        first = adapted(TwoLinear(), target_modules=["first"], norm="none")
        with pytest.raises(ValueError, match=words):
            first.add_adapter("other", HadamardAdapterConfig(target_modules=["second"], norm_modules=["first"]))
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        with pytest.raises(ValueError, match="Module 1 is named as a norm and is a BatchNorm1d"):
            adapted(model, target_modules=["0"], norm_modules=["1"])

    def test_norms_are_no_targets(self):
        with pytest.raises(ValueError, match="Target module norm is a LayerNorm, a norm; name it in norm_modules"):
            adapted(TwoLinear(), target_modules=["second", "norm"], norm="none")


class TestWhereItActs:
    ATTENTION = "attention.output.LayerNorm"
    OUTPUT = "output.LayerNorm"

    def test_norms_of_the_layers_of_target_modules(self):
        target_modules = r".*layer\.1\.attention\.output\.dense"
        for norm, expected in (
            ("attention", [f"1.{self.ATTENTION}"]),
            ("output", [f"1.{self.OUTPUT}"]),
            ("both", [f"1.{self.ATTENTION}", f"1.{self.OUTPUT}"]),
            ("none", []),
        ):
            model = adapted(MODELS["bert"].build(), target_modules=target_modules, norm=norm)
            assert names(model, HadamardLinear) == ["1.attention.output.dense"]
            assert names(model, HadamardNorm) == expected

    def test_norms_of_the_layers_of_target_modules_and_layers(self):
        fields = {"target_modules": ["attention.output.dense"], "layers_to_transform": [0]}
        model = adapted(MODELS["bert"].build(), **fields)
        assert names(model, HadamardNorm) == [f"0.{self.ATTENTION}"]

    def test_other_projections_than_attention_outputs(self):
        model = adapted(MODELS["bert"].build(), target_modules=["intermediate.dense"], norm="output")
        assert names(model, HadamardLinear) == ["0.intermediate.dense", "1.intermediate.dense"]
        assert names(model, HadamardNorm) == [f"0.{self.OUTPUT}", f"1.{self.OUTPUT}"]

    def test_norm_modules_in_place_of_what_norm_means(self):
        model = adapted(MODELS["bert"].build(), norm_modules=["embeddings.LayerNorm"])
        assert names(model, HadamardNorm) == ["bert.embeddings.LayerNorm"]
        model = adapted(MODELS["bert"].build(), norm_modules=[self.OUTPUT], layers_to_transform=[1])
        assert names(model, HadamardNorm) == [f"1.{self.ATTENTION}", f"1.{self.OUTPUT}"]

    def test_norms_can_be_excluded(self):
        model = adapted(MODELS["bert"].build(), exclude_modules=["LayerNorm"])
        assert (len(names(model, HadamardLinear)), names(model, HadamardNorm)) == (2, [])

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"layers_to_transform=\[2\], but the layers with roles .* are 0 to 1;"):
            adapted(MODELS["bert"].build(), layers_to_transform=[2])


@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("position", ["context", "projection"])
def test_parts_can_be_left_out(position, weight, bias):
    base = MODELS["bert"].build().eval()
    x = MODELS["bert"].inputs(torch.Generator().manual_seed(1))
    model = adapted(base, position=position, weight=weight, bias=bias, init_weights=False)
    counts = count_parameters(model)
    assert (counts.adapter, counts.norm) == (2 * 16 * (weight + bias), 2 * 2 * 16)
    containers = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    parts = {"hadamard_weight": weight, "hadamard_bias": bias, "hadamard_norm_weight": True, "hadamard_norm_bias": True}
    assert containers == {name for name, there in parts.items() if there}
    expected = output(model, x)
    assert (expected - output(base, x)).abs().max() > 1e-3
    assert_close(output(model.merge_and_unload(), x), expected, rtol=1e-5, atol=1e-5)


def test_without_b_merging_gives_no_new_bias(recwarn):
    merged = adapted(MODELS["llama"].build(), bias=False, init_weights=False).merge_and_unload()
    assert merged.model.layers[0].self_attn.o_proj.bias is None
    assert not any("gives a bias" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("compute", ["weight", "activation"])
def test_adapters_at_both_positions_act_together(compute):
    """Scales multiply and shifts add up on either side of the projection; the norm's changes add up."""
    base = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)).double()
    fields = {"target_modules": ["0"], "norm_modules": ["1"], "init_weights": False, "compute": compute}
    model = adapted(base, **fields)
    positions = {"default": "context", "b": "context", "c": "projection", "d": "projection"}
    for name in ("b", "c", "d"):
        model.add_adapter(name, HadamardAdapterConfig(position=positions[name], **fields))
    model = model.double()
    model.base_model.set_adapter(list(positions))
    linear, norm = model.base_model.model
    w, b = linear.hadamard_weight, linear.hadamard_bias

    x = torch.randn(4, 6).double()
    y = base[0](x * w["default"] * w["b"] + b["default"] + b["b"]) * w["c"] * w["d"] + b["c"] + b["d"]
    changes = [
        sum(values[name] for name in positions) for values in (norm.hadamard_norm_weight, norm.hadamard_norm_bias)
    ]
    expected = nn.functional.layer_norm(y, (5,), base[1].weight + changes[0], base[1].bias + changes[1])
    assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert_close(model.merge_and_unload()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:Merging gives a bias")
def test_adapters_of_different_position_layers_and_norms(case):
    base = MODELS[case].build().eval()
    x = MODELS[case].inputs(torch.Generator().manual_seed(1))
    model = adapted(base, init_weights=False)
    others = {
        "after": {"position": "projection", "norm": "output", "layers_to_transform": [1]},
        "shift": {"weight": False, "norm": "none"},
        "norms": {"weight": False, "bias": False, "norm": "both", "layers_to_transform": [0]},
    }
    for name, fields in others.items():
        model.add_adapter(name, HadamardAdapterConfig(init_weights=False, **fields))
    model.base_model.set_adapter(["default", *others])
    together = output(model, x)
    for name in ("default", *others):
        model.merge_adapter(adapter_names=[name])
    assert_close(output(model, x), together, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(output(model, x), together)

    mixed = ["shift", "after", "norms", "default"]
    y = output(model, x, adapter_names=mixed)
    for number, name in enumerate(mixed):
        model.set_adapter(name)
        assert_close(y[number], output(model, x)[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["bert", "llama"])
@pytest.mark.parametrize("position", ["context", "projection"])
@pytest.mark.filterwarnings("ignore:Merging gives a bias")
def test_on_a_bf16_base(case, position, tmp_path):
    base = MODELS[case].build().eval().bfloat16()
    x = MODELS[case].inputs(torch.Generator().manual_seed(1))
    model = adapted(base, position=position, init_weights=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    y = output(model, x)
    exact = output(copy.deepcopy(model).float(), x)
    assert (y.float() - exact).norm() < 0.05 * exact.norm()
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval(), x), y)
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert (output(merged, x).float() - exact).norm() < 0.05 * exact.norm()


def test_model_card_says_what_to_import(tmp_path):
    adapted(MODELS["bert"].build()).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "This is a Hadamard adapter. peft learns the method from the package `hadamard-adapter`" in card
    assert "import hadamard_adapter\n" in card
