"""Values, gradients and files are those of peft's own LoRA and VeRA."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import hadamard_baselines
from hadamard_baselines.stock import plain_weight
from hadamard_baselines.testing import KINDS, TARGETS, layers, make_pair
from hadamard_core.testing_models import output


@pytest.fixture(params=KINDS)
def kind_name(request):
    return request.param


def taken_over(monkeypatch, kind_name):
    """Counts the calls of the op."""
    module = getattr(hadamard_baselines, kind_name)
    calls, op = [], module.low_rank_linear

    def counted(*args, **kwargs):
        calls.append(kwargs.get("compute"))
        return op(*args, **kwargs)

    monkeypatch.setattr(module, "low_rank_linear", counted)
    return calls


@pytest.mark.parametrize("case_name", TARGETS)
def test_values_and_gradients(kind_name, case_name, monkeypatch):
    calls = taken_over(monkeypatch, kind_name)
    pair = make_pair(kind_name, case_name)
    assert {type(layer) for layer in layers(pair.ours, pair.kind)} == {pair.kind.our_layer}
    assert {type(layer) for layer in layers(pair.stock, pair.kind)} == {pair.kind.stock_layer}
    pair.check_equal()
    assert len(calls) == len(layers(pair.ours, pair.kind))
    with torch.no_grad():
        torch.testing.assert_close(output(pair.ours, pair.x), output(pair.stock, pair.x))


def test_starts_as_stock_does(kind_name):
    """The same seed draws the same parameters."""
    models = []
    for config in (KINDS[kind_name].ours, KINDS[kind_name].stock):
        torch.manual_seed(3)
        base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        models.append(get_peft_model(base, config(r=3, target_modules=["0", "1"])))
    ours, stock = (model.state_dict() for model in models)
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in ours)


@pytest.mark.parametrize("features", [(7, 5), (5, 7), (32, 32)])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 40)])
def test_shapes_and_an_input_that_trains(kind_name, features, shape):
    """Few and many tokens, both ways of the op; the gradient of the input, too."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(*features)).double()
    kind = KINDS[kind_name]
    models = [
        get_peft_model(copy.deepcopy(base), config(**kind.settings, target_modules=["0"])).double()
        for config in (kind.ours, kind.stock)
    ]
    results = []
    for model in models:
        for parameter in model.parameters():
            torch.manual_seed(1)
            parameter.data.normal_()
        x = torch.linspace(-1, 1, features[0] * torch.Size(shape).numel()).double()
        x = x.view(*shape, features[0]).requires_grad_()
        y = model(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("case_name", ["linear", "bert", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp32_adapters_on_a_base_of_16_bits(kind_name, case_name, dtype):
    """Against float64 on the same rounded values, the error is like that of stock: of the dtype, not of the op."""
    pair = make_pair(kind_name, case_name, dtype)
    exact = make_pair(kind_name, case_name, dtype).stock.double()
    x = pair.x.double() if pair.x.is_floating_point() else pair.x
    errors = []
    expected, expected_grads = values_and_gradients(exact, x)
    for model in pair:
        y, grads = values_and_gradients(model, pair.x)
        assert y.dtype == dtype
        assert {p.dtype for name, p in model.named_parameters() if model.base_model.prefix in name} == {torch.float32}
        of_grads = [(grads[name] - grad).norm() / grad.norm() for name, grad in expected_grads.items()]
        errors.append(torch.stack([(y - expected).norm() / expected.norm(), max(of_grads)]))
    ours, stock = errors
    assert (ours <= 3 * stock + torch.finfo(dtype).eps).all()


def values_and_gradients(model, x):
    y = output(model, x)
    y.float().square().mean().backward()
    return y, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case_name", ["linear", "bert"])
def test_autocast(kind_name, case_name):
    pair = make_pair(kind_name, case_name, torch.float32)
    results = []
    for model in pair:
        with torch.autocast("cpu", torch.bfloat16):
            y = model(pair.x)
            y = getattr(y, "logits", y)
        y.float().square().mean().backward()
        results.append((y, [p.grad for p in model.parameters() if p.requires_grad]))
    (y, grads), (stock_y, stock_grads) = results
    assert y.dtype == stock_y.dtype
    # A few roundings to 8 bits, in a few layers.
    assert (y - stock_y).float().norm() < 0.03 * stock_y.float().norm()
    for grad, stock_grad in zip(grads, stock_grads, strict=True):
        assert grad.dtype == stock_grad.dtype == torch.float32
        assert (grad - stock_grad).norm() < 0.1 * stock_grad.norm()


def test_a_layer_under_autocast_returns_the_dtype_that_stock_returns(kind_name):
    pair = make_pair(kind_name, "linear", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        dtypes = [layers(model, pair.kind)[0](pair.x).dtype for model in pair]
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("case_name", ["linear", "bert", "gpt2"])
def test_equal_seeds_drop_the_same(kind_name, case_name):
    pair = make_pair(kind_name, case_name, **{KINDS[kind_name].dropout: 0.4})
    for model in pair:
        model.train()
    pair.check_equal(seed=5)
    torch.manual_seed(6)
    other = output(pair.ours, pair.x)
    torch.manual_seed(5)
    assert not torch.allclose(output(pair.ours, pair.x), other)


def test_equal_seeds_drop_the_same_in_bf16(kind_name):
    pair = make_pair(kind_name, "linear", torch.bfloat16, **{KINDS[kind_name].dropout: 0.4})
    results = []
    for model in pair:
        torch.manual_seed(5)
        results.append(output(model.train(), pair.x).float())
    assert (results[0] - results[1]).norm() < 0.03 * results[1].norm()


def test_merged_unmerged_disabled(kind_name):
    pair = make_pair(kind_name)
    expected = output(pair.ours, pair.x)
    base = output(pair.base.eval(), pair.x)
    assert not torch.allclose(expected, base)
    with pair.ours.disable_adapter():
        assert torch.equal(output(pair.ours, pair.x), base)
    pair.ours.merge_adapter()
    torch.testing.assert_close(output(pair.ours, pair.x), expected)
    pair.ours.unmerge_adapter()
    pair.check_equal()
    torch.testing.assert_close(output(pair.ours.merge_and_unload(), pair.x), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_several_active_adapters(kind_name, dropout):
    pair = make_pair(kind_name, "llama")
    pair.add_adapter("other", **{pair.kind.dropout: dropout})
    pair.add_adapter("inactive")
    for model in pair:
        model.double()
        model.base_model.set_adapter(["default", "other"])
        model.train(dropout > 0)
    pair.check_equal(seed=3)
    for model in pair:
        model.eval()
        model.set_adapter("other")
    pair.check_equal()


def test_deleted_adapter(kind_name):
    pair = make_pair(kind_name)
    pair.add_adapter("other")
    for model in pair:
        model.double()
        model.delete_adapter("default")
    pair.check_equal()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("case_name", ["bert", "llama"])
def test_gradient_checkpointing(kind_name, case_name, use_reentrant):
    pair = make_pair(kind_name, case_name)
    for model in pair:
        # Recent transformers checkpoints in training only; what drops would differ between the two passes.
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
    pair.ours.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in pair:
        model.enable_input_require_grads()
    pair.check_equal()


@pytest.mark.parametrize("case_name", ["linear", "conv1d", "bert"])
def test_compiles_to_one_graph(kind_name, case_name):
    pair = make_pair(kind_name, case_name, torch.float32)
    torch._dynamo.reset()
    pair.ours = torch.compile(pair.ours, fullgraph=True, backend="aot_eager")
    results = []
    for model in pair:
        y = output(model, pair.x)
        y.square().mean().backward()
        results.append((y, [p.grad for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_inference_mode(kind_name):
    pair = make_pair(kind_name)
    with torch.inference_mode():
        torch.testing.assert_close(output(pair.ours, pair.x), output(pair.stock, pair.x))
    pair.check_equal()


def test_a_model_made_in_inference_mode(kind_name):
    with torch.inference_mode():
        pair = make_pair(kind_name, "linear")
    with torch.no_grad():
        torch.testing.assert_close(pair.ours(pair.x), pair.stock(pair.x))


def test_per_sample_gradients(kind_name):
    """``torch.func`` goes through the layers."""
    from torch.func import functional_call, grad, vmap

    pair = make_pair(kind_name, "linear")
    found = []
    for model in pair:
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

        def loss(trained, x, model=model):
            return functional_call(model, trained, (x[None],)).square().sum()

        found.append(vmap(grad(loss), (None, 0), randomness="error")(trained, pair.x))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("watch", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_of_the_base_layer_are_called(kind_name, watch):
    pair = make_pair(kind_name, "linear")
    seen = []
    getattr(layers(pair.ours, pair.kind)[1].base_layer, watch)(lambda *args: seen.append(1))
    pair.check_equal()
    assert seen == [1]


def test_a_replaced_forward_is_called(kind_name):
    pair = make_pair(kind_name, "linear")
    for model in pair:
        base = layers(model, pair.kind)[0].base_layer
        base.forward = lambda x, own=base: 2 * nn.functional.linear(x, own.weight)
    pair.check_equal()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_stays_with_stock(kind_name):
    kind = KINDS[kind_name]
    assert plain_weight(Doubled(4, 4)) is None
    model = get_peft_model(nn.Sequential(Doubled(4, 4)), kind.ours(r=2, target_modules=["0"]))
    assert type(layers(model, kind)[0]) is kind.stock_layer


def test_bitsandbytes_layers_stay_with_stock(kind_name):
    bnb = pytest.importorskip("bitsandbytes")
    kind = KINDS[kind_name]
    base = nn.Sequential(bnb.nn.Linear8bitLt(16, 16, has_fp16_weights=False), nn.Linear(16, 16))
    base.is_loaded_in_8bit = True
    ours, stock = (
        get_peft_model(copy.deepcopy(base), c(r=2, target_modules=["0", "1"])) for c in (kind.ours, kind.stock)
    )
    assert [type(m) for m in ours.base_model.model] == [
        type(stock.base_model.model[0]),
        kind.our_layer,
    ]


def test_casting_of_the_input_can_be_switched_off(kind_name):
    from peft.helpers import disable_input_dtype_casting

    pair = make_pair(kind_name, "linear", torch.bfloat16)
    with disable_input_dtype_casting(pair.ours), pytest.raises(RuntimeError, match="dtype"):
        pair.ours(pair.x)


def test_a_copied_model_is_of_its_own(kind_name):
    pair = make_pair(kind_name)
    expected = output(pair.ours, pair.x)
    copied = copy.deepcopy(pair.ours)
    assert torch.equal(output(copied, pair.x), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(output(pair.ours, pair.x), expected)


def test_a_model_is_pickled(kind_name, tmp_path):
    pair = make_pair(kind_name, "linear")
    expected = output(pair.ours, pair.x)
    torch.save(pair.ours, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert {type(layer) for layer in layers(loaded, pair.kind)} == {pair.kind.our_layer}
    assert torch.equal(output(loaded, pair.x), expected)


# -- files -----------------------------------------------------------------------------------------------------------


def read_config(folder):
    attributes = json.loads((folder / "adapter_config.json").read_text())
    attributes["target_modules"] = sorted(attributes["target_modules"])  # peft writes a set, in any order
    return attributes


@pytest.mark.parametrize("case_name", ["linear", "gpt2", "bert"])
def test_files_are_those_of_stock(kind_name, case_name, tmp_path):
    pair = make_pair(kind_name, case_name, torch.float32)
    for name, model in zip(("ours", "stock"), pair, strict=True):
        model.save_pretrained(tmp_path / name)
    assert read_config(tmp_path / "ours") == read_config(tmp_path / "stock")
    assert read_config(tmp_path / "ours")["peft_type"] == kind_name.upper()
    ours, stock = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "stock"))
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in ours)
    assert (tmp_path / "ours/README.md").read_bytes() == (tmp_path / "stock/README.md").read_bytes()


@pytest.mark.parametrize("writer", ["ours", "stock"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_each_reads_what_the_other_wrote(kind_name, writer, low_cpu_mem_usage, tmp_path):
    pair = make_pair(kind_name, dtype=torch.float32)
    getattr(pair, writer).save_pretrained(tmp_path)
    settings = {"low_cpu_mem_usage": low_cpu_mem_usage}
    by_stock = PeftModel.from_pretrained(copy.deepcopy(pair.base), tmp_path, **settings).eval()
    config = pair.kind.ours.from_pretrained(tmp_path)
    assert type(config) is pair.kind.ours
    by_ours = PeftModel.from_pretrained(copy.deepcopy(pair.base), tmp_path, config=config, **settings).eval()
    assert {type(layer) for layer in layers(by_stock, pair.kind)} == {pair.kind.stock_layer}
    assert {type(layer) for layer in layers(by_ours, pair.kind)} == {pair.kind.our_layer}
    assert torch.equal(output(by_stock, pair.x), output(pair.stock, pair.x))
    torch.testing.assert_close(output(by_ours, pair.x), output(pair.ours, pair.x))
    assert not any(p.requires_grad for p in by_ours.parameters())


def test_a_stock_adapter_is_loaded_or_added_beside_ours(kind_name, tmp_path):
    pair = make_pair(kind_name, dtype=torch.float32)
    pair.stock.save_pretrained(tmp_path)
    with torch.no_grad():
        for name, parameter in pair.ours.named_parameters():
            if "default" in name:
                parameter.zero_()
    pair.ours.load_adapter(str(tmp_path), "loaded")
    pair.ours.add_adapter("added", pair.kind.stock(**pair.kind.settings, target_modules=TARGETS["bert"]))
    pair.ours.set_adapter("loaded")
    torch.testing.assert_close(output(pair.ours, pair.x), output(pair.stock, pair.x))
    assert {type(layer) for layer in layers(pair.ours, pair.kind)} == {pair.kind.our_layer}
    pair.ours.save_pretrained(tmp_path / "again", selected_adapters=["loaded"])
    written = load_file(tmp_path / "again/loaded/adapter_model.safetensors")
    read = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(written[name], read[name]) for name in read)


def test_state_dicts_go_both_ways(kind_name):
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    pair = make_pair(kind_name)
    for source, target in ((pair.ours, pair.stock), (pair.stock, pair.ours)):
        pair.share_values()
        with torch.no_grad():
            for name, parameter in target.named_parameters():
                if target.base_model.prefix in name:
                    parameter.zero_()
        assert not set_peft_model_state_dict(target, get_peft_model_state_dict(source)).unexpected_keys
        pair.check_equal()


def test_keys_of_a_later_peft_are_left_out_with_a_warning(kind_name, tmp_path):
    pair = make_pair(kind_name)
    pair.ours.save_pretrained(tmp_path)
    attributes = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(attributes | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        config = pair.kind.ours.from_pretrained(tmp_path)
    assert type(config) is pair.kind.ours


def test_a_config_of_another_method_is_refused(kind_name, tmp_path):
    pair = make_pair({"lora": "vera", "vera": "lora"}[kind_name])
    pair.stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"and hadamard_baselines.{kind_name}"):
        KINDS[kind_name].ours.from_pretrained(tmp_path)


def test_stock_configs_make_stock_layers(kind_name):
    """Importing this package changes nothing for those who do not ask for it."""
    pair = make_pair(kind_name)
    model = get_peft_model(copy.deepcopy(pair.base), pair.kind.stock(r=2, target_modules=TARGETS["bert"]))
    assert {type(layer) for layer in layers(model, pair.kind)} == {pair.kind.stock_layer}


def test_a_checkpointed_layer(kind_name):
    """One layer alone, checkpointed without reentering: what is computed anew has to save the same tensors."""
    pair = make_pair(kind_name, "linear")
    layer = layers(pair.ours, pair.kind)[0]
    gradients = []
    for run in (lambda x: layer(x), lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        x = (pair.x * 1).requires_grad_()
        (run(x * 1).square().sum()).backward()
        gradients.append([x.grad, *(p.grad.clone() for p in layer.parameters() if p.requires_grad)])
    torch.testing.assert_close(gradients[0], gradients[1])
