"""The promises of hadamard_core's methods, kept or not by the methods that are peft's own.

Exempted are those that peft's implementation does not keep; each is run all the same, and one that holds is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import peft
from peft import PeftConfig

import hadamard_baselines
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import ModelCase


class StockContract(MethodContract):
    """The contract for a config of peft's.

    Attributes:
        settings: further fields of it.
        init: its field that says whether it starts as the identity; False starts with random values.
    """

    models = ("bert",)
    settings: ClassVar[Mapping[str, Any]] = {}
    init: ClassVar[str] = "init_weights"

    def config(self, case: ModelCase, variant: Mapping[str, Any] = {}, **fields: Any) -> PeftConfig:
        given = {"target_modules": ["query", "value"], **case.adapt, **self.settings, **variant, **fields}
        given[self.init] = given.pop("init_weights", True)
        return self.config_class(**given)


# -- what peft's implementations do not keep --------------------------------------------------------------------------

UNMERGING = dict.fromkeys(
    (
        "test_merging_keeps_the_function_and_unmerging_restores_every_bit",
        "test_merging_in_every_order_gives_the_same",
        "test_disabling_unmerges",
    ),
    "peft takes away again what it has added, which leaves the rounding of both",
)
MIXING = dict.fromkeys(
    (
        "test_adapters_mixed_in_one_batch_equal_each_apart",
        "test_mixed_batches_take_each_samples_head_too",
        "test_mixed_batches_that_cannot_be_are_refused",
    ),
    "peft mixes no adapters of this method in a batch, and refuses or ignores adapter_names",
)
INJECTING = {
    "test_injected_without_a_wrapper[bfloat16]": "peft injects adapters in the dtype of the base model",
    "test_transformers_loads_it_as_an_adapter[bfloat16]": "loading by transformers injects, in the dtype of the model",
}
LOADING = {
    "test_saved_and_loaded_is_the_same[bfloat16]": "loading goes through the dtype of the base model, and rounds"
}
PEFTS_FILES = dict.fromkeys(
    (
        "test_saved_and_loaded_is_the_same",
        "test_modules_to_save_train_and_come_back",
        "test_transformers_loads_it_as_an_adapter",
    ),
    "the files are peft's, so that without our config they come back as peft's layers, which round otherwise",
)
NO_LAYERS = {"test_layers_to_transform": "peft's config has no such field"}
MIXED_TOGETHER = "test_mixed_batches_that_cannot_be_are_refused"
INJECTED = "test_injected_without_a_wrapper[bfloat16]"
NO_EXCLUSION = {"test_exclude_modules": "peft's config has no such field"}


class TestLora(StockContract):
    config_class = hadamard_baselines.LoraConfig
    settings: ClassVar = {"r": 3}
    init = "init_lora_weights"
    exempt = (
        UNMERGING
        | PEFTS_FILES
        | {INJECTED: INJECTING[INJECTED]}
        | {MIXED_TOGETHER: "peft mixes LoRA's, but with other words for what cannot be"}
    )


class TestVera(StockContract):
    config_class = hadamard_baselines.VeraConfig
    settings: ClassVar = {"r": 5}
    exempt = (
        UNMERGING
        | MIXING
        | PEFTS_FILES
        | NO_EXCLUSION
        | {
            "test_file_holds_the_adapter_alone": "the random matrices are saved with it, as peft does",
            "test_injected_without_a_wrapper": "peft casts no VeRA adapter that is injected, nor its random matrices",
            "test_nothing_to_adapt_is_refused": "peft looks for the largest layer first, and says that there is none",
        }
    )


class TestAdaLora(StockContract):
    config_class = peft.AdaLoraConfig
    settings: ClassVar = {"init_r": 3, "target_r": 2, "total_step": 10}
    init = "init_lora_weights"
    exempt = (
        UNMERGING
        | MIXING
        | INJECTING
        | LOADING
        | dict.fromkeys(("test_adapters_are_switched", "test_deleting"), "peft has one AdaLoRA adapter that trains")
    )


class TestDora(StockContract):
    config_class = peft.LoraConfig
    settings: ClassVar = {"r": 3, "use_dora": True}
    init = "init_lora_weights"
    exempt = (
        UNMERGING
        | MIXING
        | {
            INJECTED: INJECTING[INJECTED],
            "test_starts_as_the_base_model_bit_for_bit[bfloat16]": "a norm divides and multiplies, and rounds",
            "test_transformers_loads_it_as_an_adapter": "loaded by transformers, it rounds otherwise",
            "test_compiles_to_one_graph": "peft asks where the class of a parameter is from, which Dynamo cannot trace",
        }
    )


class TestFourierFT(StockContract):
    config_class = peft.FourierFTConfig
    settings: ClassVar = {"n_frequency": 50, "scaling": 30.0}
    exempt = UNMERGING | MIXING | INJECTING | LOADING


class TestKronA(StockContract):
    config_class = peft.LoKrConfig
    settings: ClassVar = {"r": 100, "alpha": 100}
    exempt = UNMERGING | MIXING | INJECTING | LOADING


class TestIa3(StockContract):
    config_class = peft.IA3Config
    settings: ClassVar = {"feedforward_modules": []}
    init = "init_ia3_weights"
    exempt = UNMERGING | MIXING | LOADING | NO_LAYERS | {INJECTED: INJECTING[INJECTED]}


class TestHira(StockContract):
    config_class = peft.HiraConfig
    settings: ClassVar = {"r": 3}
    exempt = MIXING | INJECTING | LOADING


class TestLoHa(StockContract):
    config_class = peft.LoHaConfig
    settings: ClassVar = {"r": 3}
    exempt = UNMERGING | MIXING | INJECTING | LOADING


class TestRoad(StockContract):
    config_class = peft.RoadConfig
    settings: ClassVar = {"group_size": 2}
    exempt = (
        UNMERGING
        | INJECTING
        | LOADING
        | NO_LAYERS
        | NO_EXCLUSION
        | {
            name: reason
            for name, reason in MIXING.items()
            if name != "test_adapters_mixed_in_one_batch_equal_each_apart"
        }
    )


class TestBeft(StockContract):
    config_class = peft.BeftConfig
    exempt = (
        MIXING
        | LOADING
        | NO_LAYERS
        | NO_EXCLUSION
        | {INJECTED: INJECTING[INJECTED]}
        | {name: reason for name, reason in UNMERGING.items() if name == "test_merging_in_every_order_gives_the_same"}
    )
