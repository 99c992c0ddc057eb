"""Which weights a name means, and that every base model is a fresh one."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import models
from harness.errors import UserError


@pytest.fixture
def find(tiny_model):
    """Finds a base model for a causal language model."""

    def run(name: str = str(tiny_model), **settings) -> models.Base:
        said: list[str] = []
        return models.find(name, "AutoModelForCausalLM", 0, {}, say=said.append, **settings)

    return run


def test_each_base_is_fresh(find):
    base = find()
    first = base.fresh()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(7.0)
    for parameter in base.fresh().parameters():
        assert not (parameter == 7.0).all()


def test_parameters_that_the_checkpoint_lacks_are_named_and_start_equally(find, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    lacking = "transformer.h.1.mlp.c_fc.weight"
    del tensors[lacking]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base = find(str(folder))
    first, second = base.fresh(), base.fresh()
    assert base.new_parameters == (lacking,)
    assert torch.equal(first.get_parameter(lacking), second.get_parameter(lacking))


def test_model_dropout_reaches_every_place(find):
    rates = {module.p for module in find().fresh(0.25).modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.25}


def test_the_tokenizer_can_pad(find):
    tokenizer = find().tokenizer()
    assert tokenizer.pad_token == tokenizer.eos_token


def test_the_fingerprint_follows_the_weights(find, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert find(str(folder)).fingerprint == find().fingerprint
    tensors = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert find(str(folder)).fingerprint != find().fingerprint


def test_an_offline_model_is_found_without_importing_its_package(find, tiny_model, tmp_path, monkeypatch):
    package = tmp_path / "carrier"
    shutil.copytree(tiny_model, package / "model")
    (package / "__init__.py").write_text("raise ImportError('needs a package that is not installed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(models.OFFLINE, "carried", models.OfflineModel("carrier", "carrier", "model"))
    base = find("carried")
    assert base.folder == package / "model"
    assert base.source == "package carrier"


@pytest.mark.parametrize("allowed", [False, True])
def test_the_hub_is_asked_for_safe_files_only(allowed, find, tiny_model, monkeypatch):
    asked = []

    def download(name, allow_patterns, ignore_patterns):
        asked.extend(allow_patterns)
        return str(tiny_model)

    monkeypatch.setattr(models, "snapshot_download", download)
    base = find("someone/model", allow_pickle=allowed, trust_remote_code=allowed)
    assert ("*.bin" in asked, "*.py" in asked) == (allowed, allowed)
    assert base.fresh().name_or_path == "someone/model"


def test_safetensors_are_preferred_to_a_pickle_beside_them(find, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    assert find(str(folder), allow_pickle=True).fresh() is not None


class TestGguf:
    """GGUF files are dequantised once, into the user's cache."""

    @pytest.fixture
    def file(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        path = tmp_path / "model" / "tiny.gguf"
        path.parent.mkdir()
        return write_tiny_llama(path)

    def test_the_weights_and_the_vocabulary_come_out(self, find, file):
        path, embedding = file
        base = find(str(path))
        model = base.fresh()
        assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(embedding))
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        tokenizer = base.tokenizer()
        assert tokenizer.convert_ids_to_tokens(tokenizer("ab").input_ids) == ["ab"]
        assert tokenizer.eos_token == "<end>"

    def test_the_cache_is_used_again_and_keyed_by_content(self, find, file, monkeypatch):
        path, _ = file
        first = find(str(path.parent))
        monkeypatch.setattr(models, "_read", None)  # a second conversion would fail
        assert find(str(path)).folder == first.folder
        assert len(list(first.folder.parent.iterdir())) == 1

    def test_a_cache_that_cannot_be_written_is_one_sentence(self, find, file, tmp_path, monkeypatch):
        (tmp_path / "taken").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
        with pytest.raises(UserError, match="XDG_CACHE_HOME"):
            find(str(file[0]))

    def test_a_truncated_file_is_one_sentence(self, find, file):
        path, _ = file
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(UserError, match="cannot be read"):
            find(str(path))
        assert not list((Path(path).parents[1] / "cache" / "hadamard-bench").iterdir())

    def test_two_files_ask_for_a_choice(self, find, file):
        path, _ = file
        shutil.copy(path, path.with_name("other.gguf"))
        with pytest.raises(UserError, match="2 GGUF files"):
            find(str(path.parent))


def write_tiny_llama(path: Path) -> tuple[Path, np.ndarray]:
    """Writes a one-layer Llama with random fp32 weights; returns its path and its embedding."""
    width, inner, tokens = 16, 32, ["<end>", "a", "b", "ab"]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (len(tokens), width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        **{f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width),
        "blk.0.ffn_down": (width, inner),
    }
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors["token_embd"]
