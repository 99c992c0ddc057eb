"""LoRA and VeRA as methods of the harness."""

import copy
from importlib.metadata import entry_points

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, RobertaConfig

from hadamard_baselines import LoraLinear, VeraLinear
from hadamard_baselines.methods.low_rank import Lora, Vera
from hadamard_core.testing_models import MODELS, output

METHODS = {"lora": (Lora, LoraLinear), "vera": (Vera, VeraLinear)}


@pytest.mark.parametrize("name", METHODS)
def test_is_found_by_its_entry_point(name):
    (point,) = (
        p for p in entry_points(group="hadamard.methods", name=name) if p.value.startswith("hadamard_baselines")
    )
    assert point.load() is METHODS[name][0]


@pytest.mark.parametrize(("method", "count"), [(Lora(r=8), 786_432), (Vera(r=256), 61_440)])
def test_parameter_counts_of_roberta_large(method, count):
    config = RobertaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    model = method.apply(model, "SEQ_CLS")
    prefix = model.base_model.prefix
    assert sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and prefix in name) == count


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case_name", ["bert", "gpt2", "llama"])
def test_applied_saved_loaded_and_merged(name, case_name, tmp_path):
    method, layer = METHODS[name][0](r=4), METHODS[name][1]
    case = MODELS[case_name]
    torch.manual_seed(0)
    base = case.build()
    x = case.inputs(torch.Generator().manual_seed(1))
    model = method.apply(copy.deepcopy(base), case.task_type, [case.head]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    expected = output(model, x)
    assert any(type(module) is layer for module in loaded.modules())
    # Frozen adapters may be computed the other way of the op, as merged ones are.
    torch.testing.assert_close(output(loaded, x), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(output(method.merge(loaded), x), expected, atol=1e-4, rtol=1e-3)


def test_vera_without_its_projections_is_a_smaller_file(tmp_path):
    case = MODELS["bert"]
    sizes = []
    for save_projection in (True, False):
        method = Vera(r=4, save_projection=save_projection)
        folder = tmp_path / str(save_projection)
        method.save(method.apply(case.build(), case.task_type), folder)
        sizes.append(sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values()))
    assert sizes[0] - sizes[1] == 4 * (16 + 16)


@pytest.mark.parametrize("make", [Lora, Vera])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "--method.r is 0: it must be at least 1"),
        ({"dropout": 1.0}, "--method.dropout is 1.0: it must be at least 0 and below 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_lora_refuses_an_alpha_that_means_nothing(alpha):
    with pytest.raises(ValueError, match=r"--method\.alpha is .*: it must be above 0"):
        Lora(alpha=alpha)


def test_vera_refuses_an_initial_d_that_is_no_number():
    with pytest.raises(ValueError, match=r"--method\.d-initial is nan: it must be a finite number"):
        Vera(d_initial=float("nan"))


def test_modules_by_name():
    config = Lora(target_modules=("query",)).peft_config(MODELS["bert"].build(), "SEQ_CLS")
    assert config.target_modules == {"query"}
