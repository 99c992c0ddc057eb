"""A base model on disk: its tokenizer, and fresh copies of it with a head for the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import UserError, one_line

CAUSAL_LM = "AutoModelForCausalLM"

DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "resid_dropout",
    "embed_dropout",
    "embedding_dropout",
    "classifier_dropout",
    "seq_classif_dropout",
    "pooler_dropout",
    "dropout",
    "dropout_rate",
)

POSITIONS_AFTER_PADDING = frozenset(
    ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "mpnet")
)
"""Model types that count positions from after the padding token's id, so that many fewer are left for tokens."""

TOKENIZER_FILES = frozenset(
    (
        "tokenizer.json",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "spiece.model",
        "spm.model",
        "source.spm",
        "tekken.json",
        "vocab.json",
        "vocab.txt",
    )
)


@dataclass
class Base:
    """A base model on disk.

    Attributes:
        name: what ``--model`` was given.
        source: the file or folder that it came from, in words.
        folder: where transformers loads it from.
        fingerprint: sha256 of the weight files.
        hub_name: its name on the model hub, if it came from there; it means the same on other machines.
        new_head: whether the head starts afresh, whatever the checkpoint has there.
        model_kwargs: fields of the configuration that the task sets.
        new_parameters: parameters that start at random, known after the first :meth:`fresh`.
        notes: what was done for the user that they may not expect, known after the first :meth:`fresh`.
    """

    name: str
    source: str
    folder: Path
    fingerprint: str
    auto_class: str
    seed: int
    allow_pickle: bool = False
    trust_remote_code: bool = False
    hub_name: str | None = None
    new_head: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    new_parameters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def checkpoint_config(self) -> PreTrainedConfig:
        """Returns the model's configuration as it lies on disk."""
        return read(self.name, transformers.AutoConfig, self.folder, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer; one without a padding token pads with its end token.

        Its ``model_max_length`` is at most the number of positions that the model has.

        Raises:
            UserError: there is no tokenizer in the folder, or it has tokens that the model does not.
        """
        config = self.checkpoint_config().get_text_config()
        tokenizer = read(self.name, transformers.AutoTokenizer, self.folder, trust_remote_code=self.trust_remote_code)
        own_files = set(getattr(tokenizer, "vocab_files_names", {}).values()) - {"tokenizer_config.json"}
        # transformers makes an empty tokenizer of a folder without one; some tokenizers, of bytes, need no file
        if own_files and not any((self.folder / file).is_file() for file in TOKENIZER_FILES | own_files):
            raise UserError(
                f"--model {self.name}: it holds no tokenizer: put tokenizer.json, or the files that its tokenizer has "
                "instead, beside config.json"
            )
        rows = getattr(config, "vocab_size", None)
        ends = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        needed = max([tokenizer.vocab_size, *(token + 1 for token in ends)])
        if isinstance(rows, int) and needed > rows:
            raise UserError(
                f"--model {self.name}: its tokenizer has {needed} tokens and the model {rows}: give the tokenizer that "
                "belongs to the model"
            )
        positions = getattr(config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            if config.model_type in POSITIONS_AFTER_PADDING and isinstance(config.pad_token_id, int):
                positions -= config.pad_token_id + 1
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def fresh(self, dropout: float | None = None) -> PreTrainedModel:
        """Reads the model from disk in fp32; parameters that the checkpoint lacks start the same way each time.

        Args:
            dropout: replaces every dropout rate of the architecture.

        Raises:
            UserError: the files cannot be read as this kind of model, hold only a part of it, or it has no dropout to
                set.
        """
        config = self.checkpoint_config()
        if dropout is not None:
            present = [name for name in DROPOUT_FIELDS if isinstance(getattr(config, name, None), (int, float))]
            if not present:
                raise UserError(
                    f"--train.model-dropout: models of type {config.model_type} have no dropout: leave it out"
                )
            for name in present:
                setattr(config, name, dropout)
        for name, value in self.model_kwargs.items():
            setattr(config, name, value)
        torch.manual_seed(self.seed)
        model, info = read(
            self.name,
            getattr(transformers, self.auto_class),
            self.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=None if self.allow_pickle else True,
            trust_remote_code=self.trust_remote_code,
            ignore_mismatched_sizes=self.new_head,
            output_loading_info=True,
        )
        # with a new head, weights of another size count as missing: in the head that is meant
        lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        check_complete(self.name, self.auto_class, model, tuple(sorted(lacking)))
        new = set(info["missing_keys"])
        self.notes = ()
        if self.auto_class != CAUSAL_LM:
            if self.new_head:
                new.update(self._restart_head(model, config))
            elif not any(name.startswith(f"{head}.") for name in new for head in head_modules(model)):
                self.notes = ("the head is the checkpoint's own: --new-head starts another",)
            self._agree_on_padding(model)
        self.new_parameters = tuple(sorted(new))
        if self.hub_name:  # what is saved beside an adapter is to name it, not a folder of this machine's cache
            model.name_or_path = model.config.name_or_path = self.hub_name
        return model

    def modules_to_save(self, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the modules that have to be trained whatever the method is.

        They are the head, that is all that a classifier has outside of its backbone, and any module of the backbone
        that the checkpoint lacks, such as a pooler.
        """
        if self.auto_class == CAUSAL_LM:
            return ()
        inside = f"{model.base_model_prefix}."
        lacking = {name.rpartition(".")[0] for name in self.new_parameters if name.startswith(inside)}
        return (*head_modules(model), *sorted(lacking))

    def _restart_head(self, model: PreTrainedModel, config: PreTrainedConfig) -> list[str]:
        torch.manual_seed(self.seed)
        fresh = getattr(transformers, self.auto_class).from_config(config, trust_remote_code=self.trust_remote_code)
        names = []
        for name in head_modules(model):
            state = fresh.get_submodule(name).state_dict()
            model.get_submodule(name).load_state_dict(state)
            names += [f"{name}.{key}" for key in state]
        return names

    def _agree_on_padding(self, model: PreTrainedModel) -> None:
        """Tells the model which token pads: a decoder's head reads the last token that is not padding.

        Raises:
            UserError: the tokenizer has no token for it, or the model's head reads the last position all the same.
        """
        tokenizer = self.tokenizer()
        config = model.config.get_text_config()
        if getattr(config, "summary_type", None) == "last":
            raise UserError(
                f"--model {self.name}: the head of a model of type {config.model_type} reads the last position, "
                "padding or not, which this harness does not support: give another model"
            )
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"--model {self.name}: its tokenizer has neither a padding token nor an end token, and texts of unlike "
                "length need one to be in one batch: set pad_token in its tokenizer_config.json"
            )
        if tokenizer.pad_token_id >= getattr(config, "vocab_size", math.inf):
            raise UserError(
                f"--model {self.name}: its tokenizer's padding token {tokenizer.pad_token!r} is number "
                f"{tokenizer.pad_token_id} and the model has {config.vocab_size} tokens: give the tokenizer that "
                "belongs to the model"
            )
        if config.pad_token_id != tokenizer.pad_token_id:
            self.notes = (
                *self.notes,
                f"the model names {'no' if config.pad_token_id is None else 'another'} padding token: batches are "
                f"padded with the tokenizer's {tokenizer.pad_token!r} ({tokenizer.pad_token_id}), which the model is "
                "told not to read",
            )
            config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id


def head_modules(model: PreTrainedModel) -> list[str]:
    """Returns the names of the parts outside of the backbone that have parameters."""
    return [
        name
        for name, child in model.named_children()
        if child is not model.base_model and next(child.parameters(), None) is not None
    ]


def check_complete(name: str, auto_class: str, model: PreTrainedModel, missing: tuple[str, ...]) -> None:
    """Refuses weights without a part of the model; what a task puts on top of it (head and pooler) may be new.

    Raises:
        UserError: naming what is missing.
    """
    if auto_class != CAUSAL_LM:
        inside = f"{model.base_model_prefix}."
        missing = tuple(key for key in missing if key.startswith(inside) and ".pooler." not in key)
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"--model {name}: its weights lack {len(missing)} parameters of the model that its config.json describes "
            f"({names}): give weights and config.json that belong together"
        )


def read(name: str, auto_class: Any, folder: Path, **arguments: Any) -> Any:
    try:
        return auto_class.from_pretrained(str(folder), **arguments)
    except Exception as error:  # tokenizers raises just that, and a damaged file leads the other readers anywhere
        reason = one_line(error)[:300] or type(error).__name__
        raise UserError(
            f"--model {name} cannot be read as {auto_class.__name__} ({reason}): check that its files are complete and "
            "belong together"
        ) from error
