"""A method that peft does not ship becomes one of peft's, once and for one owner."""

import json
import pickle
from dataclasses import dataclass

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from hadamard_core.config import HadamardConfig
from hadamard_core.registration import peft_type, register
from hadamard_core.tuner import HadamardTuner


@dataclass
class NoopConfig(HadamardConfig):
    def __post_init__(self):
        super().__post_init__()
        self.peft_type = peft_type("contract_noop")


class NoopModel(HadamardTuner):
    prefix = "contract_noop_"


def test_member_behaves_as_those_of_peft():
    member = peft_type("contract_noop")
    assert member is peft_type("contract_noop")
    assert member is peft.PeftType("CONTRACT_NOOP")
    assert member is peft.PeftType["CONTRACT_NOOP"]
    assert member is peft.PeftType.CONTRACT_NOOP
    assert member in list(peft.PeftType)
    assert isinstance(member, str)
    assert member == "CONTRACT_NOOP"
    assert json.dumps(member) == '"CONTRACT_NOOP"'
    assert pickle.loads(pickle.dumps(member)) is member
    assert peft_type("lora") is peft.PeftType.LORA


def test_registering_again_changes_nothing():
    register("contract_noop", NoopConfig, NoopModel)
    register("contract_noop", NoopConfig, NoopModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType.CONTRACT_NOOP] is NoopConfig


def test_a_name_has_one_owner():
    with pytest.raises(RuntimeError, match="peft already has a method 'lora'"):
        register("lora", NoopConfig, NoopModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType.LORA] is peft.LoraConfig


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target_modules": ["a"], "roles": ("key",)}, "both given"),
        ({"roles": ()}, "Neither target_modules nor roles"),
        ({"roles": None}, "Neither target_modules nor roles"),
        ({"target_modules": ".*a", "layers_to_transform": [1]}, "cannot be used when"),
        ({"layers_pattern": "layers"}, "without layers_to_transform"),
        ({"compute": "fast"}, "compute is 'fast'"),
    ],
)
def test_config_fields_that_exclude_each_other(fields, words):
    with pytest.raises(ValueError, match=words):
        NoopConfig(**fields)


def test_config_comes_back_from_its_file(tmp_path):
    register("contract_noop", NoopConfig, NoopModel)
    config = NoopConfig(roles=["key", "value"], layers_to_transform=[0, 2], exclude_modules=["b", "a"])
    config.save_pretrained(tmp_path)
    loaded = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert (type(loaded), loaded.roles, loaded.exclude_modules) == (NoopConfig, ("key", "value"), {"a", "b"})
