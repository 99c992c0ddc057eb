"""A method that peft does not ship becomes one of peft's, once and for one owner."""

import importlib
import json
import pickle
from dataclasses import dataclass

import numpy as np
import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from hadamard_core.config import HadamardConfig, require_at_least
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


def test_classes_reloaded_take_the_place_of_those_before(tmp_path, monkeypatch):
    """As in a notebook with autoreload."""
    source = """
from hadamard_core.config import HadamardConfig
from hadamard_core.registration import register
from hadamard_core.tuner import HadamardTuner

class ReloadedConfig(HadamardConfig):
    pass

class ReloadedModel(HadamardTuner):
    prefix = "contract_{}_"

register("contract_reloaded", ReloadedConfig, ReloadedModel)
"""
    file = tmp_path / "contract_reloaded.py"
    file.write_text(source.format("before"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("contract_reloaded")
    before = module.ReloadedConfig
    file.write_text(source.format("afterwards"), encoding="utf-8")
    importlib.reload(module)

    assert module.ReloadedConfig is not before
    member = peft_type("contract_reloaded")
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is module.ReloadedConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is module.ReloadedModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "contract_afterwards_"


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


@dataclass
class SizedConfig(NoopConfig):
    size: int = 1

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, "size", 1)


@pytest.mark.parametrize("size", [3, np.int64(3), np.uint8(3)])
def test_an_integer_is_stored_as_an_int(size):
    stored = SizedConfig(size=size).size

    assert (type(stored), stored) == (int, 3)


@pytest.mark.parametrize("size", [0, True, 2.0, "3", None, np.int64(0), np.float64(2), np.bool_(True)])
def test_what_is_no_integer_or_too_small_is_refused(size):
    with pytest.raises(ValueError, match="in SizedConfig; it must be an integer of at least 1"):
        SizedConfig(size=size)
