"""Many adapters of one model in one pass, as they would be alone, while others come and go."""

import copy
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from hadamard_core.config import HadamardConfig
from hadamard_core.layer import ScaledLinear, Vectors
from hadamard_core.packing import AdapterPack
from hadamard_core.registration import peft_type, register
from hadamard_core.testing_models import MODELS
from hadamard_core.tuner import HadamardTuner


@dataclass
class PackedConfig(HadamardConfig):
    def __post_init__(self):
        super().__post_init__()
        self.peft_type = peft_type("contract_packed")


class PackedLinear(ScaledLinear):
    adapter_layer_names = ("contract_packed_scale",)

    def create_parameters(self, adapter_name, config, sizes):
        self.contract_packed_scale[adapter_name] = nn.Parameter(1 + 0.2 * torch.randn(sum(sizes)))

    def vectors(self, adapter_name):
        sizes = [own.size(self.out_features) for own in self.slices[adapter_name] or ()] or [self.out_features]
        return [Vectors(scale_out=part) for part in self.contract_packed_scale[adapter_name].split(sizes)]


class PackedModel(HadamardTuner):
    prefix = "contract_packed_"
    tuner_layer_cls = PackedLinear


register("contract_packed", PackedConfig, PackedModel)


def roberta():
    """A model whose head has several layers, without dropout."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    config = RobertaConfig(**sizes, vocab_size=40, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return RobertaForSequenceClassification(config)


CASES = {
    "head of several layers": (roberta, ("classifier",), "SEQ_CLS"),
    "no head": (MODELS["llama"].build, (), "CAUSAL_LM"),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    build, heads, task_type = CASES[request.param]
    return build().eval(), heads, task_type


NAMES = ("one", "two", "three")
GROUPS = ("adapter", "head")


def config(task_type, layers=None):
    return PackedConfig(task_type=task_type, layers_to_transform=layers)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 20, (2 + number, 7), generator=generator) for number in range(count)]


def values(parameters):
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def alone(model, heads, task_type, pack, name, layers=None):
    """The model with one adapter of a pack alone, its heads too."""
    one = config(task_type, layers)
    one.modules_to_save = list(heads) or None
    adapted = get_peft_model(copy.deepcopy(model), one)
    found = pack.parameters(name)
    trained = {path: parameter for path, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {path.replace(".default", f".{name}") for path in trained} == found.keys()
    with torch.no_grad():
        for path, parameter in trained.items():
            parameter.copy_(found[path.replace(".default", f".{name}")])
    return adapted, {path.replace(".default", f".{name}"): parameter for path, parameter in trained.items()}


def test_gradients_are_those_of_each_adapter_alone(case):
    model, heads, task_type = case
    pack = AdapterPack(copy.deepcopy(model), heads)
    inputs = batches(3)
    layers = {"one": None, "two": [1], "three": None}
    for name, own in layers.items():
        pack.add(name, config(task_type, own))
        pack.train(name, ("adapter", "head"))
    names = [name for name, x in zip(NAMES, inputs, strict=True) for _ in x]
    together = pack.model(torch.cat(inputs), adapter_names=names).logits
    together.square().sum().backward()

    for name, x, part in zip(NAMES, inputs, together.split([len(x) for x in inputs]), strict=True):
        adapted, trained = alone(model, heads, task_type, pack, name, layers[name])
        logits = adapted(x).logits
        torch.testing.assert_close(part, logits)
        logits.square().sum().backward()
        found = pack.parameters(name)
        for path, parameter in trained.items():
            assert parameter.grad.abs().sum() > 0
            torch.testing.assert_close(found[path].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_adapters_come_and_go_while_others_stay_as_they_are(case):
    model, heads, task_type = case
    pack = AdapterPack(copy.deepcopy(model), heads)
    pack.add("one", config(task_type))
    pack.train("one", ("adapter",))
    before = values(pack.parameters("one"))
    pack.add("two", config(task_type, [0]))
    pack.train("two", ("head",))
    pack.remove("one")
    pack.add("three", config(task_type))
    assert pack.names == ("two", "three")
    assert set(pack.model.peft_config) == {"two", "three"}
    trains = {name for name, parameter in pack.model.named_parameters() if parameter.requires_grad}
    assert trains == pack.parameters("two", ("head",)).keys()
    pack.remove("two")
    pack.remove("three")  # the last one
    assert pack.names == ()
    assert not any(parameter.requires_grad for parameter in pack.model.parameters())
    pack.add("four", config(task_type))
    assert set(pack.model.peft_config) == {"four"}
    assert pack.parameters("four").keys() == {name.replace(".one", ".four") for name in before}
    x = batches(1)[0]
    adapted, _ = alone(model, heads, task_type, pack, "four")
    torch.testing.assert_close(pack.model(x, adapter_names=["four"] * len(x)).logits, adapted(x).logits)


def test_flags_of_the_others_survive_what_peft_does(case):
    model, heads, task_type = case
    pack = AdapterPack(model, heads)
    for name, groups in (("one", ("adapter",)), ("two", ("head",)), ("three", ())):
        pack.add(name, config(task_type))
        pack.train(name, groups)

    def trains(name):
        return {group: [p.requires_grad for p in pack.parameters(name, (group,)).values()] for group in GROUPS}

    before = {name: trains(name) for name in NAMES[:2]}
    pack.remove("three")
    pack.add("four", config(task_type))
    assert {name: trains(name) for name in NAMES[:2]} == before
    with pack.alone("two") as only:
        required = [name for name, parameter in only.named_parameters() if parameter.requires_grad]
        assert set(required) == pack.parameters("two", ("head",)).keys()
    assert {name: trains(name) for name in NAMES[:2]} == before


def test_heads_start_where_they_are_told_to():
    model = roberta()
    pack = AdapterPack(model, ("classifier",))
    pack.add("one", config("SEQ_CLS"))
    other = roberta().classifier.state_dict()
    pack.add("two", config("SEQ_CLS"), {"classifier": other})
    with torch.no_grad():
        for parameter in pack.parameters("one", ("head",)).values():
            parameter.add_(1.0)
    pack.add("three", config("SEQ_CLS"))
    wrapper = pack.model.base_model.model.classifier
    for name, expected in (("two", other), ("three", wrapper.original_module.state_dict())):
        for key, tensor in wrapper.modules_to_save[name].state_dict().items():
            assert torch.equal(tensor, expected[key])


def test_what_cannot_be_packed_is_refused():
    pack = AdapterPack(roberta(), ("classifier",))
    with pytest.raises(ValueError, match=r"Adapters of LoraConfig are not vectors .* one after another"):
        pack.add("one", LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    pack = AdapterPack(roberta(), ("classifier",))
    pack.add("one", config("SEQ_CLS"))
    with pytest.raises(ValueError, match="There is an adapter 'one' in the pack already"):
        pack.add("one", config("SEQ_CLS"))
