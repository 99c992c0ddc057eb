"""Which weights a name means, and that every base model is a fresh one."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from harness import hub, models
from harness.errors import UserError

# the HTTP library of the hub's client, whichever of its versions that is
HTTP = importlib.import_module(hub.HTTP_ERROR.__module__.partition(".")[0])


@pytest.fixture
def find(tiny_model):
    """Finds a base model for a causal language model."""

    def run(name: str = str(tiny_model), auto_class: str = "AutoModelForCausalLM", **settings) -> models.Base:
        said: list[str] = []
        return models.find(name, auto_class, 0, say=said.append, **settings)

    return run


def test_each_base_is_fresh(find):
    base = find()
    first = base.fresh()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(7.0)
    for parameter in base.fresh().parameters():
        assert not (parameter == 7.0).all()


@pytest.fixture
def model_folder(tiny_model, tmp_path):
    """A copy of the tiny model that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_head_that_the_checkpoint_lacks_is_named_and_starts_equally(find):
    base = find(auto_class="AutoModelForSequenceClassification")
    first, second = base.fresh(), base.fresh()
    assert base.new_parameters == ("score.weight",)
    assert torch.equal(first.get_parameter("score.weight"), second.get_parameter("score.weight"))


def test_a_pooler_may_be_new(find, tiny_model, tmp_path):
    """A BERT that was trained to fill in words has none."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "bert")
    base = find(str(tmp_path / "bert"), auto_class="AutoModelForSequenceClassification")
    base.fresh()
    assert base.new_parameters == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    )


@pytest.mark.parametrize("auto_class", ["AutoModelForCausalLM", "AutoModelForSequenceClassification"])
def test_weights_without_a_part_of_the_base_model_are_refused(auto_class, find, model_folder):
    tensors = load_file(model_folder / "model.safetensors")
    lacking = "transformer.h.1.mlp.c_fc.weight"
    del tensors[lacking]
    save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"--model {model_folder}: its weights lack 1 .*{lacking}"):
        find(str(model_folder), auto_class=auto_class).fresh()


def test_a_config_with_a_value_of_the_wrong_type_is_one_sentence(find, model_folder):
    change_config(model_folder, n_layer="x")
    with pytest.raises(UserError, match=f"--model {model_folder} cannot be read"):
        find(str(model_folder)).fresh()


def test_weights_that_cannot_be_opened_are_one_sentence(find, model_folder):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors").mkdir()
    with pytest.raises(UserError, match=rf"--model {model_folder}: .*model.safetensors cannot be read"):
        find(str(model_folder))


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-this-name/model"], ids=["too long", "unknown user"])
def test_a_path_that_cannot_be_is_one_sentence(name, find):
    with pytest.raises(UserError, match=f"--model {name}"):
        find(name)


class TestTokenizers:
    def test_a_folder_without_one_is_refused(self, find, model_folder):
        for file in model_folder.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(UserError, match=f"--model {model_folder}: it holds no tokenizer"):
            find(str(model_folder)).tokenizer()

    def test_tokenizers_of_bytes_need_no_file(self, find, model_folder):
        for file in model_folder.glob("tokenizer*"):
            file.unlink()
        (model_folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}')
        change_config(model_folder, vocab_size=300)
        assert find(str(model_folder)).tokenizer().encode("a", add_special_tokens=False) == [ord("a") + 3]

    def test_a_damaged_one_is_one_sentence(self, find, model_folder):
        path = model_folder / "tokenizer.json"
        path.write_text('{"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}}')
        with pytest.raises(UserError, match=f"--model {model_folder} cannot be read as AutoTokenizer"):
            find(str(model_folder)).tokenizer()

    def test_the_context_is_the_model_s(self, find):
        assert find().tokenizer().model_max_length == 16

    def test_tokens_that_the_model_lacks_are_refused(self, find, model_folder):
        change_config(model_folder, vocab_size=9)
        with pytest.raises(UserError, match="its tokenizer has 10 tokens and the model 9"):
            find(str(model_folder)).tokenizer()


@pytest.mark.parametrize(
    "error",
    [
        json.JSONDecodeError("Expecting value", "<html>", 0),
        HfHubHTTPError("401 Client Error", response=HTTP.Response(401, request=HTTP.Request("GET", "http://hub"))),
        HTTP.UnsupportedProtocol("Request URL is missing a protocol"),
        ValueError("Unknown scheme for proxy URL"),
        PermissionError(13, "Permission denied"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_answers_nonsense_is_one_sentence(error, find, monkeypatch):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(models, "snapshot_download", download)
    with pytest.raises(UserError, match=r"--model someone/model: .*--model smollm2-135m.*--model PATH"):
        find("someone/model")


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
        monkeypatch.setattr(models, "read", None)  # a second conversion would fail
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

    @pytest.mark.parametrize("length", [0, 3, 12, 30, 100, 400])
    def test_a_file_cut_in_its_header_is_one_sentence(self, length, find, file):
        path, _ = file
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match=f"--model {path} cannot be read"):
            find(str(path))

    def test_a_file_without_a_part_of_the_model_is_refused(self, find, file):
        path, _ = file
        write_tiny_llama(path, without="blk.0.ffn_up")
        with pytest.raises(UserError, match=r"lack 1 .*up_proj"):
            find(str(path))

    def test_two_files_ask_for_a_choice(self, find, file):
        path, _ = file
        shutil.copy(path, path.with_name("other.gguf"))
        with pytest.raises(UserError, match="2 GGUF files"):
            find(str(path.parent))


def write_tiny_llama(path: Path, without: str = "") -> tuple[Path, np.ndarray]:
    """Writes a one-layer Llama with random fp32 weights but for one; returns its path and its embedding."""
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
    for name in sorted(tensors.keys() - {without}):
        writer.add_tensor(f"{name}.weight", tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors["token_embd"]
