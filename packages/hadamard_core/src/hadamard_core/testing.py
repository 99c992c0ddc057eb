"""The conformance tests that every method package runs: what users of peft rely on, stated once.

A package subclasses :class:`MethodContract` in a test file of its own::

    class TestHut(MethodContract):
        config_class = HutConfig
        variants = ({"r": 1}, {"shift": False})

Each test runs on each of :data:`~hadamard_core.testing_models.MODELS` with each variant. What is promised bit for bit
is compared bit for bit, everything else with the tolerance of its dtype.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from hadamard_core.testing_models import MODELS, ModelCase, output


def _only_on(*names: str) -> Callable[[Callable], Callable]:
    """Restricts a test to these of :data:`MODELS`."""

    def restrict(test: Callable) -> Callable:
        test.only_models = names
        return test

    return restrict


@pytest.mark.filterwarnings("ignore:Merging gives a bias", "ignore:Already", "ignore:.*was active which is now deleted")
class MethodContract:
    """Promises of a peft method.

    Attributes:
        config_class: the method's config.
        variants: fields of the config, each a dictionary, to test beside the defaults.
        models: keys of :data:`~hadamard_core.testing_models.MODELS` on which the method can act.
        exempt: tests whose promise the method cannot keep by its nature, each with the reason in a sentence;
            ``"test_name[part]"`` means those of a test whose parameters have that part in their name. They are run all
            the same, and one that passes is an error, so that no exemption outlives its reason.
    """

    config_class: ClassVar[type[PeftConfig]]
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    exempt: ClassVar[Mapping[str, str]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            names = [name for name in self.models if name in getattr(metafunc.function, "only_models", MODELS)]
            metafunc.parametrize("case", [MODELS[name] for name in names], ids=names)
        if "variant" in metafunc.fixturenames:
            variants = ({}, *self.variants)
            metafunc.parametrize("variant", variants, ids=[json.dumps(v) if v else "defaults" for v in variants])

    @pytest.fixture(autouse=True)
    def _seeded(self, request: pytest.FixtureRequest) -> None:
        torch.manual_seed(0)
        for key, reason in self.exempt.items():
            name, _, part = key.partition("[")
            if name == request.node.originalname and part.rstrip("]") in request.node.name:
                request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    def base(self, case: ModelCase) -> nn.Module:
        return case.build().eval()

    @pytest.fixture
    def x(self, case: ModelCase) -> Tensor:
        return case.inputs(torch.Generator().manual_seed(1))

    def config(self, case: ModelCase, variant: Mapping[str, Any] = {}, **fields: Any) -> PeftConfig:
        return self.config_class(**{**case.adapt, **variant, **fields})

    def adapted(self, case: ModelCase, base: nn.Module, variant: Mapping[str, Any] = {}, **fields: Any) -> PeftModel:
        """A copy of ``base`` with an adapter of random values (unless ``init_weights=True`` is among the fields)."""
        config = self.config(case, variant, **{"init_weights": False, **fields})
        return get_peft_model(copy.deepcopy(base), config).eval()

    def test_exempts_only_promises_that_there_are(self):
        assert not [name for name in self.exempt if not hasattr(MethodContract, name.partition("[")[0])]

    # -- the start ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_starts_as_the_base_model_bit_for_bit(self, case, variant, base, x, dtype):
        base = base.to(dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        assert torch.equal(output(self.adapted(case, base, variant, init_weights=True), x), output(base, x))

    def test_random_values_change_the_output(self, case, variant, base, x):
        assert not torch.allclose(output(self.adapted(case, base, variant), x), output(base, x), atol=1e-4)

    def test_only_the_adapter_trains_and_all_of_it(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        prefix = model.base_model.prefix
        assert {prefix in name for name, p in model.named_parameters() if p.requires_grad} == {True}
        output(model, x).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} got no gradient"
                assert parameter.grad.abs().max() > 0, f"{name} got a gradient of zeros"
            else:
                assert parameter.grad is None, f"{name} is frozen but got a gradient"

    def test_adapter_is_fp32_on_a_bf16_base(self, case, variant, base, x):
        base = base.to(torch.bfloat16)
        x = x.to(torch.bfloat16) if x.is_floating_point() else x
        model = self.adapted(case, base, variant)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        result = output(model, x)
        assert result.dtype == torch.bfloat16
        result.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    def test_trains_under_autocast(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        with torch.autocast("cpu", torch.bfloat16):
            result = output(model, x)
        expected = output(model, x)
        assert (result.float() - expected).norm() < 0.05 * expected.norm()
        result.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)

    # -- merging -----------------------------------------------------------------------------------------------------

    def test_merging_keeps_the_function_and_unmerging_restores_every_bit(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = output(model, x)
        for _ in range(3):
            model.merge_adapter()
            model.merge_adapter()
            assert_close(output(model, x), expected, atol=1e-5, rtol=1e-4)
            model.unmerge_adapter()
            after = model.state_dict()
            assert after.keys() == before.keys()
            assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert torch.equal(output(model, x), expected)

    def test_merge_and_unload_gives_a_plain_model(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        expected = output(model, x)
        merged = model.merge_and_unload()
        assert type(merged) is type(base)
        assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
        assert_close(output(merged, x), expected, atol=1e-5, rtol=1e-4)

    def test_unload_gives_the_base_model_back(self, case, variant, base, x):
        assert torch.equal(output(self.adapted(case, base, variant).unload(), x), output(base, x))

    def test_safe_merge_refuses_values_that_are_not_finite(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        adapter = next(p for p in model.parameters() if p.requires_grad)
        with torch.no_grad():
            adapter.view(-1)[0] = torch.nan
        with pytest.raises(ValueError, match="NaNs detected"):
            model.merge_adapter(safe_merge=True)
        prefix = model.base_model.prefix
        assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items() if prefix not in name)

    # -- several adapters --------------------------------------------------------------------------------------------

    def two_adapters(self, case: ModelCase, base: nn.Module, variant: Mapping[str, Any]) -> PeftModel:
        model = self.adapted(case, base, variant)
        model.add_adapter("other", self.config(case, variant, init_weights=False))
        return model.eval()

    def test_adapters_are_switched(self, case, variant, base, x):
        model = self.two_adapters(case, base, variant)
        first = output(model, x)
        model.set_adapter("other")
        second = output(model, x)
        assert not torch.allclose(first, second, atol=1e-4)
        assert all("other" in name for name, p in model.named_parameters() if p.requires_grad)
        model.set_adapter("default")
        assert torch.equal(output(model, x), first)
        with model.disable_adapter():
            assert torch.equal(output(model, x), output(base, x))
        assert torch.equal(output(model, x), first)

    def test_merging_in_every_order_gives_the_same(self, case, variant, base, x):
        model = self.two_adapters(case, base, variant)
        model.base_model.set_adapter(["default", "other"])
        expected = output(model, x)
        for orders in (
            [["default", "other"]],
            [["other", "default"]],
            [["default"], ["other"]],
            [["other"], ["default"]],
        ):
            for names in orders:
                model.merge_adapter(adapter_names=names)
            assert_close(output(model, x), expected, atol=1e-5, rtol=1e-4)
            model.unmerge_adapter()
            assert torch.equal(output(model, x), expected)

    def test_disabling_unmerges(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(output(model, x), output(base, x))

    def test_deleting(self, case, variant, base, x):
        model = self.two_adapters(case, base, variant)
        model.set_adapter("other")
        expected = output(model, x)
        model.delete_adapter("default")
        assert torch.equal(output(model, x), expected)
        assert not any("default" in name for name in model.state_dict())
        model.delete_adapter("other")
        # Without any adapter a PeftModel itself refuses to run; the tuner in it is the base model.
        assert torch.equal(output(model.base_model, x), output(base, x))
        assert not any(model.base_model.prefix in name for name in model.state_dict())

    def mixed(self, case: ModelCase, base: nn.Module, variant: Mapping[str, Any]) -> PeftModel:
        """A model with two adapters of random values that both train."""
        model = self.adapted(case, base, variant)
        model.add_adapter("other", self.config(case, variant, init_weights=False))
        model.base_model.set_requires_grad(["default", "other"])
        return model

    def test_adapters_mixed_in_one_batch_equal_each_apart(self, case, variant, base, x):
        base, x = base.double(), x.double() if x.is_floating_point() else x  # what rounds then is a norm in fp32
        model = self.mixed(case, base, variant)
        names = ["other", "__base__", "default", "other", "default"][: len(x)]
        grad = torch.randn_like(output(base, x))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        y = output(model, x, adapter_names=names)
        gradients = dict(zip(trained, torch.autograd.grad(y, list(trained.values()), grad), strict=True))
        for name in dict.fromkeys(names):
            own = [number for number, each in enumerate(names) if each == name]
            if name == "__base__":
                assert_close(y[own], output(base, x[own]), atol=1e-5, rtol=1e-4)
                continue
            model.set_adapter(name)
            parameters = {key: p for key, p in trained.items() if f".{name}" in key}
            apart = output(model, x[own])
            assert_close(y[own], apart, atol=1e-5, rtol=1e-4)
            theirs = torch.autograd.grad(apart, list(parameters.values()), grad[own])
            for key, gradient in zip(parameters, theirs, strict=True):
                # A gradient may be zero but for rounding, as that of a key's bias is, which the softmax does not see.
                atol = 1e-4 * gradient.abs().max().item() + 1e-6
                assert_close(gradients[key], gradient, rtol=1e-4, atol=atol)

    @_only_on("bert")
    def test_mixed_batches_take_each_samples_head_too(self, case, variant, base, x):
        model = self.adapted(case, base, variant, modules_to_save=[case.head])
        model.add_adapter("other", self.config(case, variant, init_weights=False, modules_to_save=[case.head]))
        head = model.get_submodule(f"base_model.model.{case.head}").modules_to_save["other"]
        with torch.no_grad():
            head.weight += 1
        names = ["other", "default", "other", "default"]
        y = output(model, x, adapter_names=names)
        for number, name in enumerate(names):
            model.set_adapter(name)
            assert_close(y[number], output(model, x[number : number + 1])[0])

    @_only_on("gpt2", "llama")
    def test_generates_with_beams_for_mixed_batches(self, case, variant, base, x):
        model = self.mixed(case, base, variant)
        names = ["other", "default", "__base__", "other"]
        settings = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        together = model.generate(input_ids=x, adapter_names=names, **settings)
        for number, name in enumerate(names):
            one = x[number : number + 1]
            if name == "__base__":
                apart = base.generate(input_ids=one, **settings)
            else:
                model.set_adapter(name)
                apart = model.generate(input_ids=one, **settings)
            assert together[number, : apart.shape[1]].tolist() == apart[0].tolist()

    @_only_on("linear", "bert")
    def test_mixed_batches_that_cannot_be_are_refused(self, case, variant, base, x):
        model = self.mixed(case, base, variant)
        names = ["default"] * len(x)
        for wrong, words in ((["defualt", *names[1:]], "'defualt', which"), (names[1:], "give one for each")):
            with pytest.raises(ValueError, match=words):
                model(x, adapter_names=wrong)
        with pytest.raises(TypeError, match="give a list"):
            model(x, adapter_names="default")
        with model.disable_adapter():
            assert torch.equal(output(model, x, adapter_names=names), output(base, x))
        model.merge_adapter()
        with pytest.raises(ValueError, match="is merged"):
            model(x, adapter_names=names)
        model.unmerge_adapter()
        if case.task_type is not None:
            model.train()
            model.gradient_checkpointing_enable()
            with pytest.raises(ValueError, match="gradient checkpointing"):
                model(x, adapter_names=names)

    # -- saving and loading ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_saved_and_loaded_is_the_same(self, case, variant, base, x, tmp_path, dtype, low_cpu_mem_usage):
        base = base.to(dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        model = self.adapted(case, base, variant)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
        assert torch.equal(output(loaded, x), output(model, x))
        assert not any(p.requires_grad for p in loaded.parameters())
        stored = load_file(tmp_path / "adapter_model.safetensors")
        for name, tensor in get_peft_model_state_dict(loaded).items():
            assert torch.equal(tensor, stored[name]), f"{name} was changed by loading"
        assert type(PeftConfig.from_pretrained(tmp_path)) is self.config_class

    def test_file_holds_the_adapter_alone(self, case, variant, base, tmp_path):
        model = self.adapted(case, base, variant)
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "adapter_model.safetensors")
        assert all(model.base_model.prefix in name for name in stored)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(tensor.numel() for tensor in stored.values()) == trained

    def test_equal_adapters_are_equal_files(self, case, variant, base, tmp_path):
        for name in ("a", "b"):
            torch.manual_seed(3)
            self.adapted(case, base, variant).save_pretrained(tmp_path / name)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_loaded_beside_another(self, case, variant, base, x, tmp_path):
        saved = self.adapted(case, base, variant)
        saved.save_pretrained(tmp_path)
        model = self.adapted(case, base, variant)
        first = output(model, x)
        model.load_adapter(str(tmp_path), "loaded")
        assert torch.equal(output(model, x), first)
        model.set_adapter("loaded")
        assert torch.equal(output(model, x), output(saved, x))

    def test_state_dict_goes_from_model_to_model(self, case, variant, base, x):
        source, target = self.adapted(case, base, variant), self.adapted(case, base, variant)
        outcome = set_peft_model_state_dict(target, get_peft_model_state_dict(source))
        assert not outcome.unexpected_keys
        assert torch.equal(output(source, x), output(target, x))

    def test_modules_to_save_train_and_come_back(self, case, variant, base, x, tmp_path):
        model = self.adapted(case, base, variant, modules_to_save=[case.head])
        head = [p for name, p in model.named_parameters() if "modules_to_save" in name]
        assert head
        assert all(p.requires_grad for p in head)
        with torch.no_grad():
            for parameter in head:
                parameter.add_(0.5)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        assert torch.equal(output(loaded, x), output(model, x))
        assert_close(output(model.merge_and_unload(), x), output(loaded, x), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_injected_without_a_wrapper(self, case, variant, base, x, dtype):
        base = base.to(dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        injected = inject_adapter_in_model(self.config(case, variant, init_weights=True), copy.deepcopy(base)).eval()
        assert any(isinstance(module, BaseTunerLayer) for module in injected.modules())
        assert torch.equal(output(injected, x), output(base, x))
        adapter = [p for p in injected.parameters() if p.requires_grad]
        assert {p.dtype for p in adapter} == {torch.float32}

    @_only_on("gpt2", "bert", "llama")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_transformers_loads_it_as_an_adapter(self, case, variant, base, x, tmp_path, dtype):
        base = base.to(dtype)
        model = self.adapted(case, base, variant)
        model.save_pretrained(tmp_path)
        plain = copy.deepcopy(base)
        plain.load_adapter(str(tmp_path))
        assert torch.equal(output(plain.eval(), x), output(model, x))
        plain.disable_adapters()
        assert torch.equal(output(plain, x), output(base, x))

    # -- what training does to a model -------------------------------------------------------------------------------

    @_only_on("gpt2", "bert", "llama")
    def test_gradient_checkpointing_changes_no_gradient(self, case, variant, base, x):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(5)
            model = self.adapted(case, base, variant)
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            output(model, x).square().sum().backward()
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        for a, b in zip(*gradients, strict=True):
            assert_close(a, b, atol=1e-5, rtol=1e-4)

    def test_compiles_to_one_graph(self, case, base, x):
        model = self.adapted(case, base)
        expected = output(model, x)
        expected.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        model.zero_grad()
        torch._dynamo.reset()
        result = output(torch.compile(model, fullgraph=True, backend="aot_eager"), x)
        assert_close(result, expected, atol=1e-5, rtol=1e-4)
        result.square().sum().backward()
        for parameter, gradient in zip((p for p in model.parameters() if p.requires_grad), gradients, strict=True):
            assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-3)

    @_only_on("gpt2", "llama")
    def test_generates_with_beams_as_the_merged_model_does(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        generated = model.generate(input_ids=x, **settings)
        assert torch.equal(model.merge_and_unload().generate(input_ids=x, **settings), generated)

    def test_survives_copying(self, case, variant, base, x):
        model = self.adapted(case, base, variant)
        assert torch.equal(output(copy.deepcopy(model), x), output(model, x))

    # -- where it acts -----------------------------------------------------------------------------------------------

    def layers(self, model: nn.Module) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]

    @_only_on("gpt2", "bert", "llama")
    def test_layers_to_transform(self, case, variant, base):
        every = self.layers(self.adapted(case, base, variant))
        only = self.layers(self.adapted(case, base, variant, layers_to_transform=[1]))
        assert only
        assert only == [name for name in every if ".1." in name]

    @_only_on("linear", "gpt2", "bert", "llama")
    def test_exclude_modules(self, case, variant, base):
        every = self.layers(self.adapted(case, base, variant))
        left_out = every[0].removeprefix("base_model.model.")
        assert self.layers(self.adapted(case, base, variant, exclude_modules=[left_out])) == every[1:]

    @pytest.mark.parametrize("target_modules", [r".*(first|projection|c_attn|query|q_proj)", "all-linear"])
    def test_target_modules_by_peft_rules(self, case, variant, base, x, target_modules):
        config = self.config(case, variant, target_modules=target_modules, task_type=case.task_type)
        model = get_peft_model(copy.deepcopy(base), config).eval()
        assert self.layers(model)
        assert torch.equal(output(model, x), output(base, x))

    def test_nothing_to_adapt_is_refused(self, case, variant, base):
        with pytest.raises(ValueError, match="not found in the base model"):
            get_peft_model(base, self.config(case, variant, target_modules=["nowhere"]))
