"""Methods that peft ships, as presets: what they compute is their papers' formula, and their files are peft's."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForSequenceClassification, RobertaConfig

from hadamard_baselines.methods.adalora import AdaLora
from hadamard_baselines.methods.norms import LnTuning
from hadamard_baselines.methods.presets import Beft, Dora, FourierFT, Hira, Ia3, KronA, LoHa, Road
from hadamard_core.accounting import count_parameters
from hadamard_core.testing_models import MODELS, output

METHODS = {
    "adalora": AdaLora(init_r=3, target_r=2),
    "beft": Beft(),
    "dora": Dora(r=3, alpha=5.0),
    "fourierft": FourierFT(n=50, scaling=30.0),
    "hira": Hira(r=3),
    "ia3": Ia3(),
    "krona": KronA(scale=2.0),
    "ln": LnTuning(),
    "loha": LoHa(r=3, alpha=5.0),
    "road": Road(),
    "road_2": Road(variant="road_2"),
    "road_4": Road(variant="road_4"),
}
MODEL_NAMES = ["bert", "gpt2", "llama"]


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(params=MODEL_NAMES)
def case(request):
    return MODELS[request.param]


def build(case):
    """A model whose biases are not the zeros that they start as, in float64 so that equal means equal."""
    torch.manual_seed(0)
    base = case.build().eval().double()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return base


def inputs(case):
    return case.inputs(torch.Generator().manual_seed(1))


def adapted(method, case, base):
    """The method on a copy of the model, with random values."""
    model = method.apply(copy.deepcopy(base), case.task_type).double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def layers(model):
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


# -- promises of every preset -----------------------------------------------------------------------------------------


def test_saved_loaded_and_merged(method, case, tmp_path):
    base, x = build(case), inputs(case)
    model = adapted(method, case, base)
    expected = output(model, x)
    assert not torch.allclose(expected, output(base, x), atol=1e-4)
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).double().eval()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(output(loaded, x), expected)
    merged = method.merge(loaded)
    assert {name: type(module) for name, module in merged.named_modules()} == {
        name: type(module) for name, module in base.named_modules()
    }
    torch.testing.assert_close(output(merged, x), expected)


def test_starts_as_the_base_model(method, case):
    base, x = build(case), inputs(case)
    model = method.apply(copy.deepcopy(base), case.task_type).double().eval()
    if isinstance(method, FourierFT):  # as in the paper's code
        assert not torch.allclose(output(model, x), output(base, x))
        model = FourierFT(n=50, start="zero").apply(copy.deepcopy(base), case.task_type).double().eval()
    torch.testing.assert_close(output(model, x), output(base, x))


def test_all_that_trains_gets_a_gradient(method, case):
    model = adapted(method, case, build(case))
    output(model, inputs(case)).square().sum().backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().max() > 0)
    ]
    assert without == []


def test_files_are_those_of_peft(method, tmp_path):
    case = MODELS["bert"]
    base, x = build(case), inputs(case)
    model = adapted(method, case, base)
    method.save(model, tmp_path)
    stock = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).double().eval()
    torch.testing.assert_close(output(stock, x), output(model, x))


def test_layers_by_number(case):
    every = set(layers(adapted(Road(), case, build(case))))
    top = set(layers(adapted(Road(layers=("top:1",)), case, build(case))))
    assert top == {name for name in every if ".1." in name}
    assert top


def test_query_and_value_of_a_fused_projection():
    base = build(MODELS["gpt2"])
    for method in (FourierFT(n=50), KronA(), LoHa()):
        names = layers(adapted(method, MODELS["gpt2"], base))
        assert sorted(names) == [f"transformer.h.{n}.attn.c_attn.{role}" for n in (0, 1) for role in ("query", "value")]
    assert {name.rpartition(".")[2] for name in layers(adapted(Beft(), MODELS["gpt2"], base))} == {"value"}
    assert {name.rpartition(".")[2] for name in layers(adapted(Ia3(), MODELS["gpt2"], base))} == {
        "key",
        "value",
        "c_proj",
    }


# -- what they compute, by the formulas of their papers ---------------------------------------------------------------


def weights_and_formula(method, formula):
    """For each adapted projection of a BERT, its weight once merged and what the formula makes of the parameters."""
    case = MODELS["bert"]
    base = build(case)
    model = adapted(method, case, base)
    expected = {}
    for name, layer in layers(model).items():
        parameters = {
            container: getattr(layer, container)["default"]
            for container in layer.adapter_layer_names
            if "default" in getattr(layer, container)
        }
        values = {key: getattr(value, "weight", value).detach() for key, value in parameters.items()}
        expected[name] = formula(layer.get_base_layer().weight.detach().clone(), values, layer)
    merged = method.merge(model)
    assert expected
    for name, weight in expected.items():
        torch.testing.assert_close(merged.get_submodule(name).weight.detach(), weight)


def test_dora_is_a_direction_and_a_magnitude():
    def formula(weight, values, layer):
        direction = weight + 5 / 3 * values["lora_B"] @ values["lora_A"]
        return (
            values["lora_magnitude_vector"][:, None] * direction / torch.linalg.vector_norm(direction, dim=1)[:, None]
        )

    weights_and_formula(Dora(r=3, alpha=5.0), formula)


def test_fourierft_is_the_inverse_transform_of_a_sparse_spectrum():
    def formula(weight, values, layer):
        places = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(2024))[:50]
        spectrum = torch.zeros(weight.numel()).index_put((places,), values["fourierft_spectrum"].float())
        return weight + 30 * torch.fft.ifft2(spectrum.view(weight.shape)).real.double()

    weights_and_formula(FourierFT(n=50, scaling=30.0), formula)


def test_fourierft_has_the_same_places_in_all_layers():
    found = [
        layer.indices["default"]
        for layer in layers(adapted(FourierFT(n=50), MODELS["bert"], build(MODELS["bert"]))).values()
    ]
    assert all(torch.equal(indices, found[0]) for indices in found)


@pytest.mark.parametrize("factor", [-1, 2])
def test_krona_is_a_kronecker_product_with_a_scale(factor):
    def formula(weight, values, layer):
        assert set(values) == {"lokr_w1", "lokr_w2"}
        return weight + 2 * torch.kron(values["lokr_w1"], values["lokr_w2"])

    weights_and_formula(KronA(scale=2.0, factor=factor), formula)


def test_ia3_scales_outputs_and_the_inner_activation():
    def formula(weight, values, layer):
        return weight * values["ia3_l"]  # (out, 1) for key and value, (1, in) for the feed-forward

    weights_and_formula(Ia3(), formula)
    shapes = {
        name.rpartition("layer.")[2]: tuple(layer.ia3_l["default"].shape)
        for name, layer in layers(adapted(Ia3(), MODELS["bert"], build(MODELS["bert"]))).items()
    }
    assert shapes == {
        f"{number}.{place}": shape
        for number in (0, 1)
        for place, shape in (
            ("attention.self.key", (16, 1)),
            ("attention.self.value", (16, 1)),
            ("output.dense", (1, 32)),
        )
    }


def test_hira_multiplies_the_weight():
    weights_and_formula(Hira(r=3), lambda weight, values, layer: weight * (1 + values["hira_B"] @ values["hira_A"]))


def test_loha_is_a_product_of_two_products():
    def formula(weight, values, layer):
        first, second = (values[f"hada_w{k}_a"] @ values[f"hada_w{k}_b"] for k in (1, 2))
        return weight + 5 / 3 * first * second

    weights_and_formula(LoHa(r=3, alpha=5.0), formula)


def test_road_rotates_and_scales_pairs_of_outputs():
    def formula(weight, values, layer):
        half = layer.group_size["default"] // 2
        angle, factor = (values[f"road_{name}"].view(-1, half) for name in ("theta", "alpha"))
        first, second = weight.view(-1, 2, half, weight.shape[1]).unbind(1)
        cos, sin = ((factor * f(angle))[..., None] for f in (torch.cos, torch.sin))
        return torch.stack([cos * first - sin * second, sin * first + cos * second], 1).view(weight.shape)

    weights_and_formula(Road(), formula)


def test_adalora_is_a_decomposition_with_singular_values():
    def formula(weight, values, layer):
        update = values["lora_B"] @ (values["lora_E"] * values["lora_A"])
        return weight + 32 / (3 + 1e-5) * update  # the rank is that at the start, to which peft adds 1e-5

    weights_and_formula(AdaLora(init_r=3, target_r=2), formula)


def test_beft_adds_to_the_value_bias_alone():
    case = MODELS["bert"]
    base = build(case)
    model = adapted(Beft(), case, base)
    added = {name: layer.beft_bias["default"].detach().flatten() for name, layer in layers(model).items()}
    merged = Beft().merge(model)
    assert all(name.endswith("value") for name in added)
    before = dict(base.named_parameters())
    for name, parameter in merged.named_parameters():
        expected = before[name]
        if name.endswith("value.bias"):
            expected = expected + added[name.removesuffix(".bias")]
        if "classifier" in name:  # peft trains the head of a classifier by itself
            continue
        torch.testing.assert_close(parameter.detach(), expected.detach())


def test_ln_trains_all_norms_of_the_backbone():
    case = MODELS["bert"]
    base = build(case)
    model = adapted(LnTuning(), case, base)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name}
    norms = {name for name, module in base.named_modules() if "LayerNorm" in name}
    assert {name.split(".ln_tuning_layers")[0].removeprefix("base_model.model.") for name in trained} == norms
    assert len(trained) == 2 * len(norms)


# -- AdaLoRA in training ----------------------------------------------------------------------------------------------


def test_adalora_moves_ranks_to_its_budget(tmp_path):
    case, method = (
        MODELS["bert"],
        AdaLora(init_r=3, target_r=2, warmup=0.2, final=0.3, every=2, roles=("query", "value")),
    )
    base, x = build(case).float(), inputs(case)
    model = method.apply(copy.deepcopy(base), case.task_type).eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    method.begin_training(model, 20)
    target = torch.randn(output(base, x).shape, generator=torch.Generator().manual_seed(3))
    for step in range(1, 21):
        (torch.nn.functional.mse_loss(output(model, x), target) + method.penalty(model)).backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    ranks = [int((layer.lora_E["default"] != 0).sum()) for layer in layers(model).values()]
    assert sum(ranks) == 2 * len(ranks)
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    assert sorted(len(layer.lora_E["default"]) for layer in layers(loaded).values()) == sorted(ranks)
    torch.testing.assert_close(output(loaded, x), output(model, x))


def test_adalora_saves_what_the_values_are_not_what_was_pruned_later(tmp_path):
    # the parameters of an earlier step are scored, too, and more of their ranks are there
    case, method = MODELS["bert"], AdaLora(init_r=3, target_r=1)
    base, x = build(case), inputs(case)
    model = adapted(method, case, base)
    model.peft_config["default"].rank_pattern = {
        name: [True, False, False] for name, _ in model.base_model.model.named_parameters() if "lora_E" in name
    }
    method.save(model, tmp_path)
    torch.testing.assert_close(output(method.load(copy.deepcopy(base), tmp_path).double(), x), output(model, x))


def test_adalora_goes_on_from_its_state():
    case, method = MODELS["bert"], AdaLora(init_r=3, target_r=2, every=1, roles=("query",))
    x = inputs(case)

    def trained(stops):
        model = method.apply(build(case).float(), case.task_type).eval()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        method.begin_training(model, 8)
        for step in range(1, 9):
            output(model, x).square().mean().backward()
            optimizer.step()
            method.after_step(model, step)
            optimizer.zero_grad()
            if stops:
                state = {key: tensor.clone() for key, tensor in method.training_state(model).items()}
                method.restore_training_state(model, {})
                method.restore_training_state(model, state)
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    once, again = trained(stops=False), trained(stops=True)
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adalora_takes_runs_of_few_steps(steps):
    case, method = MODELS["bert"], AdaLora(init_r=3, target_r=2, final=0.8)
    model = method.apply(build(case).float(), case.task_type)
    method.begin_training(model, steps)
    for step in range(1, steps + 1):
        output(model, inputs(case)).square().mean().backward()
        method.after_step(model, step)


def test_adalora_penalty_is_zero_for_orthogonal_factors():
    case, method = MODELS["bert"], AdaLora(init_r=3, target_r=2)
    model = method.apply(build(case), case.task_type).double()
    assert method.penalty(model) > 0
    with torch.no_grad():
        for layer in layers(model).values():
            layer.lora_A["default"].copy_(torch.eye(3, layer.in_features))
            layer.lora_B["default"].copy_(torch.eye(layer.out_features, 3))
    assert method.penalty(model) == 0


# -- counts and bad settings ------------------------------------------------------------------------------------------

SQUARE, WIDE = 1024, 4096
COUNTS = [
    pytest.param(FourierFT(n=1000), 48_000, id="FourierFT"),
    pytest.param(KronA(), 48 * 2 * SQUARE, id="KronA: two matrices of 32 x 32"),
    pytest.param(Ia3(), 24 * (2 * SQUARE + WIDE), id="IA3"),
    pytest.param(LoHa(r=4), 786_432, id="LoHa at r = 4 has LoRA's at 8"),
    pytest.param(Beft(), 24 * SQUARE, id="BEFT"),
    pytest.param(Road(), 24 * (5 * SQUARE + WIDE), id="RoAd"),
    pytest.param(Hira(r=8, roles=("query", "value")), 786_432, id="HiRA"),
    pytest.param(Dora(r=8, roles=("query", "value")), 786_432 + 48 * SQUARE, id="DoRA: LoRA and a magnitude a column"),
    pytest.param(
        AdaLora(init_r=12, target_r=8, roles=("query", "value")), 48 * 12 * (2 * SQUARE + 1), id="AdaLoRA at its start"
    ),
]


def roberta_large():
    config = RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(("method", "expected"), COUNTS)
def test_parameters_on_roberta_large(method, expected):
    with torch.device("meta"):
        counts = count_parameters(method.apply(roberta_large(), "SEQ_CLS"))
    assert (counts.adapter, counts.norm) == (expected, 0)


def test_ln_on_roberta_large_counts_as_norm():
    with torch.device("meta"):
        counts = count_parameters(LnTuning().apply(roberta_large(), "SEQ_CLS"))
    assert (counts.adapter, counts.norm) == (0, 49 * 2 * SQUARE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dora(r=0), "--method.r is 0"),
        (lambda: Dora(alpha=-1.0), "--method.alpha is -1.0: it must be above 0"),
        (lambda: FourierFT(n=0), "--method.n is 0"),
        (lambda: FourierFT(scaling=float("nan")), "--method.scaling is nan"),
        (lambda: KronA(scale=0.0), "--method.scale is 0.0: it must be above 0"),
        (lambda: KronA(factor=0), "--method.factor is 0"),
        (lambda: AdaLora(init_r=8, target_r=8), "--method.init-r is 8: it must be at least 9"),
        (lambda: AdaLora(warmup=0.5, final=0.5), "leave no steps in which ranks fall"),
        (lambda: LoHa(layers=("top:1",), target_modules=("query",)), "give one of the two"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_coefficients_than_entries_are_refused():
    with pytest.raises(ValueError, match=r"--method\.n is 1000, and .* has 256 entries"):
        FourierFT().apply(build(MODELS["bert"]), "SEQ_CLS")


def test_modules_by_name():
    case = MODELS["gpt2"]
    method = Road(target_modules=("c_fc",))
    base, x = build(case), inputs(case)
    model = adapted(method, case, base)
    assert {name.rpartition(".")[2] for name in layers(model)} == {"c_fc"}
    torch.testing.assert_close(output(method.merge(model), x), output(model, x))


def test_stock_layers_do_the_work():
    case = MODELS["bert"]
    for method in METHODS.values():
        modules = {type(layer).__module__ for layer in layers(adapted(method, case, build(case))).values()}
        assert all(module.startswith("peft.tuners.") for module in modules)
