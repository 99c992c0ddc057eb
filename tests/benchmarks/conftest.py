"""Small folders of every GLUE task with invented texts, tiny models that read them, and a way to run the harness."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from benchmarks.glue import tasks
from benchmarks.glue.declaration import Declaration
from harness.errors import run_command
from harness.run import main

DECLARATIONS = {
    task.declaration.name: task.declaration
    for task in (
        tasks.CoLA,
        tasks.SST2,
        tasks.MRPC,
        tasks.STSB,
        tasks.QQP,
        tasks.MNLI,
        tasks.QNLI,
        tasks.RTE,
        tasks.WNLI,
    )
}

# the columns of the original files, written down again here so that they check those of the declarations
HEADERS = {
    "cola": "source label mark sentence",
    "sst2": "sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
}
TEXTS = {"mrpc": ("#1 String", "#2 String"), "mnli": ("sentence1", "sentence2")}
LABELS = {"mrpc": "Quality", "stsb": "score", "qqp": "is_duplicate", "mnli": "gold_label"}
LABELS_IN_WORDS = ("mnli", "qnli", "rte")

WORDS = ("the", "a", "red", "old", "cat", "dog", "café", "sees", "likes", '"', "and", "it's")
CLASS_WORDS = ("no", "yes", "maybe")


def examples(declaration: Declaration, split: str, rows: int) -> list[tuple[tuple[str, ...], int | float]]:
    """Returns texts and labels; a word in the last text tells the class, how often it is there the score."""
    chance = random.Random(f"{declaration.name} {split}")
    made = []
    for row in range(rows):
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 8))) for _ in declaration.columns]
        if declaration.is_regression:
            label = (row * 7 % 26) / 5
            texts[-1] += " very" * round(label) + " alike"
        else:
            label = row % len(declaration.labels)
            texts[-1] += f" {CLASS_WORDS[label]} "  # the blank at the end belongs to the text
        made.append((tuple(texts), label))
    return made


def parquet_table(declaration: Declaration, rows: list[tuple[tuple[str, ...], int | float]]) -> pa.Table:
    """Returns a table with the columns, types and features of the hub's files."""
    columns = dict(zip(declaration.columns, map(list, zip(*(texts for texts, _ in rows), strict=True)), strict=True))
    features = {column: {"dtype": "string", "_type": "Value"} for column in columns}
    features["label"] = {"dtype": "float32", "_type": "Value"}
    if not declaration.is_regression:
        features["label"] = {"names": list(declaration.labels), "_type": "ClassLabel"}
    return pa.table(
        {
            **columns,
            "label": pa.array([label for _, label in rows], pa.float32() if declaration.is_regression else pa.int64()),
            "idx": pa.array(range(len(rows)), pa.int32()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def original_lines(declaration: Declaration, rows: list[tuple[tuple[str, ...], int | float]], first: int = 0):
    """Yields the lines of an original file, the header first, without their ends."""
    name = declaration.name
    header = HEADERS[name].split("|" if "|" in HEADERS[name] else " ")
    if name != "cola":
        yield "\t".join(header)
    for row, (texts, label) in enumerate(rows, first):
        fields = {column: f"{column}-{row}" for column in header}
        fields |= dict(zip(TEXTS.get(name, declaration.columns), texts, strict=True))
        if declaration.is_regression:
            written = f"{label:.3f}"
        else:
            written = declaration.labels[label] if name in LABELS_IN_WORDS else str(label)
        yield "\t".join((fields | {LABELS.get(name, "label"): written}).values())


def write_lines(path: Path, lines, encoding: str = "utf-8") -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def write_unsplit_mrpc(folder: Path, declaration: Declaration, train: int, validation: int) -> None:
    """Writes what Microsoft gives, with the rows of the two splits mixed, and the ids of those of validation."""
    header, *lines = original_lines(declaration, examples(declaration, "train", train))
    ids = []
    for row, line in enumerate(
        list(original_lines(declaration, examples(declaration, "validation", validation), 900))[1:]
    ):
        lines.insert(row * 3, line)
        ids.append("\t".join(line.split("\t")[1:3]))
    write_lines(folder / "msr_paraphrase_train.txt", [header, *lines], encoding="utf-8-sig")
    write_lines(folder / "dev_ids.tsv", ids)


@pytest.fixture(scope="session")
def declarations() -> dict[str, Declaration]:
    """The nine tasks by name."""
    return DECLARATIONS


@pytest.fixture
def glue_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task into a folder of GLUE and returns that; several tasks of one form share it.

    The arguments are the task's declaration or name; the form, ``parquet`` as on the hub, ``original`` as GLUE's own
    script leaves it, or for MRPC ``unsplit`` as Microsoft gives it; and the rows of train and of each other split.
    """

    def write(task: Declaration | str, form: str = "parquet", train: int = 24, validation: int = 8) -> Path:
        declaration = DECLARATIONS[task] if isinstance(task, str) else task
        folder = tmp_path / form / (declaration.name if form == "parquet" else declaration.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if form == "unsplit":
            write_unsplit_mrpc(folder, declaration, train, validation)
            return folder.parent
        for split in declaration.sizes:
            rows = examples(declaration, split, train if split == "train" else validation)
            if form == "parquet":
                pq.write_table(parquet_table(declaration, rows), folder / f"{split}.parquet")
            else:
                name = split.replace("validation", "dev")
                write_lines(folder / f"{name}.tsv", original_lines(declaration, rows))
        return folder.parent

    return write


# the special tokens of each kind of model, in the order of their numbers
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "distilbert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "gpt2": ("<end>",),
    "llama": ("<end>",),
}


def word_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of the invented texts' words that puts them together as that kind of model has them.

    Those of the decoders have no padding token, as GPT-2's.
    """
    special = SPECIAL[kind]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS, *CLASS_WORDS, "very", "alike"])}
    decoder, roberta = len(special) == 1, kind == "roberta"
    unknown = special[0] if decoder else "<unk>" if roberta else "[UNK]"
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder:
        return PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token=unknown, eos_token=special[0], bos_token=special[0]
        )
    first, last, pad, mask = ("<s>", "</s>", "<pad>", "<mask>") if roberta else ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    pair = f"{first} $A {last} {last} $B {last}" if roberta else f"{first} $A {last} $B:1 {last}:1"
    words.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=pair,
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    types = ["token_type_ids"] if kind == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        pad_token=pad,
        mask_token=mask,
        model_input_names=["input_ids", *types, "attention_mask"],
    )


def byte_tokenizer(*, blank_line: bool = True, begin: bool = True) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of bytes; a blank line is one token or two, a begin-of-text token exists or not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line_break = "Ċ"  # how byte-level vocabularies spell it
    merges = [(line_break, line_break)] if blank_line else []
    vocabulary = {text: index for index, text in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        **({"bos_token": "<|begin|>"} if begin else {}),
        name_or_path="bytes",
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return byte_tokenizer


def tiny_config(kind: str) -> PreTrainedConfig:
    """Returns two narrow layers, spread enough for examples to differ in what the model says of them."""
    size, layers, heads, inner, spread = 16, 2, 2, 32, 0.3
    encoder = {
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "initializer_range": spread,
    }
    build = {
        "bert": lambda: BertConfig(**encoder),
        "roberta": lambda: RobertaConfig(**encoder, max_position_embeddings=514, type_vocab_size=1),
        "distilbert": lambda: DistilBertConfig(
            dim=size, n_layers=layers, n_heads=heads, hidden_dim=inner, initializer_range=spread
        ),
        "gpt2": lambda: GPT2Config(
            n_embd=size, n_layer=layers, n_head=heads, n_positions=512, initializer_range=spread
        ),
        "llama": lambda: LlamaConfig(**encoder, num_key_value_heads=1),
    }
    config = build[kind]()
    special = SPECIAL[kind]
    decoder = len(special) == 1
    config.vocab_size = len(special) + len(WORDS) + len(CLASS_WORDS) + 2
    config.bos_token_id = config.eos_token_id = 0 if decoder else None
    config.pad_token_id = None if decoder else special.index("<pad>" if kind == "roberta" else "[PAD]")
    return config


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny random model with its tokenizer into a folder, once, and returns that.

    The arguments are the kind and, for a model with a classifier, the names of its classes; without, it is a language
    model, masked or causal, as most checkpoints are.
    """
    written: dict[tuple, Path] = {}

    def write(kind: str, labels: tuple[str, ...] = ()) -> Path:
        if (kind, labels) not in written:
            folder = tmp_path_factory.mktemp("models") / kind
            config = tiny_config(kind)
            auto = AutoModelForCausalLM if len(SPECIAL[kind]) == 1 else AutoModelForMaskedLM
            if labels:
                config.id2label, auto = dict(enumerate(labels)), AutoModelForSequenceClassification
                config.label2id = {name: number for number, name in enumerate(labels)}
            torch.manual_seed(0)
            auto.from_config(config).save_pretrained(folder)
            word_tokenizer(kind).save_pretrained(folder)
            written[kind, labels] = folder
        return written[kind, labels]

    return write


@pytest.fixture
def run_here(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[list[str]], tuple[int, str, str]]]:
    """Runs the command in this process and in the test's folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    threads, level = torch.get_num_threads(), logging.getLogger().level
    torch.set_num_threads(1)  # sums in another number of threads may round otherwise

    def run(argv: list[str]) -> tuple[int, str, str]:
        capfd.readouterr()
        AcceleratorState._reset_state(reset_partial_state=True)  # one a process; here one stands for many runs
        code = run_command(main, argv)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield run
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()


SMALL = (
    *("--train.batch-size", "6", "--train.max-steps", "3", "--train.eval-every", "never", "--score", "last"),
    *("--train.learning-rate", "1e-2"),
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], Path]]:
    """A folder for runs, and those that are there, by method, task, kind of model and flags."""
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def trained(run_here, checkpoint, glue_folder, made) -> Callable[..., Path]:
    """Trains a method for three steps on invented texts, if that was not done before; returns the run directory.

    The texts lie in the test's folder, for commands that read a run's data again.
    """
    folder, done = made

    def train(method: str, task: str = "mrpc", *flags: str, kind: str = "bert", labels: tuple[str, ...] = ()) -> Path:
        key = (method, task, kind, *labels, *flags)
        data = glue_folder(task, train=24, validation=12)
        if key not in done:
            path = folder / f"run{len(done)}"
            stage = ("--stage1.epochs", "0.25") if method == "hadamard" else ()
            arguments = ["--method", method, "--task", task, "--model", str(checkpoint(kind, labels))]
            arguments += ["--data.dir", str(data), "--output-dir", str(path), *SMALL, *stage, *flags]
            code, _, err = run_here(arguments)
            assert code == 0, err
            done[key] = path
        return done[key]

    return train


@pytest.fixture
def in_folder(run_here, capfd: pytest.CaptureFixture[str]) -> Callable[..., Callable[..., tuple[int, str, str]]]:
    """Turns a command's ``main`` into what runs it in the test's folder and returns exit code, stdout and stderr."""

    def of(main: Callable[[Sequence[str]], int]) -> Callable[..., tuple[int, str, str]]:
        def go(*arguments: object) -> tuple[int, str, str]:
            capfd.readouterr()
            code = run_command(main, [str(argument) for argument in arguments])
            captured = capfd.readouterr()
            return code, captured.out, captured.err

        return go

    return of


@pytest.fixture
def refused(command) -> Callable[..., None]:
    """Checks that a folder's ``command`` says one sentence on stderr, with these words in it, and exits with 2."""

    def check(says: str, *arguments: object) -> None:
        code, out, err = command(*arguments)
        assert code == 2, err
        assert out == ""
        assert err.count("error: ") == 1
        assert says in err
        assert "Traceback" not in err

    return check
