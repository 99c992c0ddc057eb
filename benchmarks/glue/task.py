"""What all tasks of GLUE share: texts to batches, loss, measurement, and the two ways to select parameters.

Every result has two columns. ``published`` is what papers report: of all epochs, the one that is best on the validation
set, on which it is then reported; that choice makes the number too good. ``held_out`` never looks at the validation set
before it is scored once: a part of the training set that is not trained on chooses. Both come from one training run on
what is left of the training set; ``--task.held-out 0`` trains on all of it, as papers do, and has ``published`` only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from benchmarks.glue import data, metrics
from benchmarks.glue.declaration import Declaration
from harness.config import DataConfig
from harness.errors import UserError
from harness.order import by_length
from harness.protocols import Evaluation, Progress, Rule
from harness.subsets import chosen, subset
from harness.workload import in_order, lengths, measure

EVALUATION_SEED = 0
"""Draws the subsets that are evaluated; another number would make scores of limited runs another measurement."""

CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Glue:
    """A task of GLUE: one label for a text or a pair of texts.

    Attributes:
        declaration: which task it is; each subclass has its own, and its own ``version``.
    """

    declaration: ClassVar[Declaration]
    version: ClassVar[int]
    task_type: ClassVar[str] = "SEQ_CLS"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    scored_splits: ClassVar[tuple[str, ...]] = ("validation",)  # GLUE keeps the labels of its test splits
    shared_recipes: ClassVar[Path] = Path(__file__).parent / "recipes"

    max_length: int = 128
    """Tokens of an example; longer ones are cut, of a pair the longer text first. The result says how many were."""
    held_out: float = 0.1
    """Share of the training examples that is not trained on and selects the parameters of the held_out column."""
    held_out_seed: int = 0
    """Draws the held-out part, the same for every method and every --seed."""

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ValueError(f"--task.max-length is {self.max_length}: it must be at least 8")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--task.held-out is {self.held_out}: it must be at least 0 and below 1")

    def __init_subclass__(cls) -> None:
        cls.recipes = cls.shared_recipes / cls.declaration.name

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The two columns."""
        metric, validation = self.declaration.metric, self.declaration.evaluated[0]
        rules = {
            "published": Rule(
                validation,
                metric,
                True,
                f"highest {metric} on the {validation} split, which is also what is reported",
            )
        }
        if self.held_out:
            held = f"highest {metric} on the {100 * self.held_out:g} % of train that are held out"
            rules["held_out"] = Rule("held_out", metric, True, held)
        return rules

    def load(self, data_config: DataConfig, seed: int) -> LoadedGlue:
        """Reads, divides and limits the data.

        Args:
            data_config: ``train_limit`` counts examples after the held-out part is taken away; ``eval_limit`` limits
                the held-out part and each evaluated split.
            seed: draws the training subset.

        Raises:
            UserError: the data is missing or damaged, or nothing is left to train on or to select by.
        """
        source = data.load(self.declaration, data_config.dir)
        train = source.splits["train"]
        count = len(train.labels)
        held = chosen(count, math.ceil(self.held_out * count), self.held_out_seed)
        kept = sorted(set(range(count)).difference(held))
        if not kept:
            raise UserError(f"--task.held-out {self.held_out} of {count} training examples leaves none to train on")
        examples = {"train": train.take(subset(kept, data_config.train_limit, seed))}
        if held:
            examples["held_out"] = train.take(subset(held, data_config.eval_limit, EVALUATION_SEED))
        for name in self.declaration.evaluated:
            split = source.splits[name]
            rows = subset(range(len(split.labels)), data_config.eval_limit, EVALUATION_SEED)
            examples[name] = split.take(rows)
        if self.declaration.is_regression:
            for name, split in examples.items():
                if len(split.labels) < 2:
                    raise UserError(
                        f"task {self.declaration.name}: {name} has {len(split.labels)} example and a correlation needs "
                        "at least 2: give a larger --data.eval-limit or more data"
                    )
        facts = {
            "dataset": f"GLUE, {self.declaration.folder}",
            "origin": source.origin,
            **{f"{name}_examples": len(split.labels) for name, split in examples.items()},
            "held_out": f"{len(held)} of {count} training examples, drawn by {self.held_out_seed}",
            "available": {name: len(split.labels) for name, split in source.splits.items()},
            "train_subset": f"drawn by seed {seed}"
            if len(examples["train"].labels) < len(kept)
            else "all that is left",
            "warnings": list(source.warnings),
        }
        return LoadedGlue(self, examples, facts, source.warnings)


@dataclass(frozen=True)
class LoadedGlue:
    """The data of a task of GLUE, divided and limited.

    Attributes:
        task: the settings.
        examples: ``train``, ``held_out`` if there is one, and the evaluated splits.
        facts: what the result says about the data; the number of cut examples comes to it in :meth:`encode`.
    """

    task: Glue
    examples: Mapping[str, data.Split]
    facts: dict[str, Any]
    warnings: Sequence[str]

    def model_kwargs(self, checkpoint: PreTrainedConfig | None) -> Mapping[str, Any]:
        """Returns number and names of the labels.

        Raises:
            UserError: the checkpoint has a head for another number of classes, or has them in another order.
        """
        names = self.task.declaration.labels
        if checkpoint is not None and any(name.endswith(CLASSIFIER) for name in checkpoint.architectures or ()):
            self._check_head(checkpoint)
        if not names:
            return {"num_labels": 1, "problem_type": "regression"}
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }

    def _check_head(self, checkpoint: PreTrainedConfig) -> None:
        declaration = self.task.declaration
        wanted = declaration.labels or ("a score",)
        theirs = [str(checkpoint.id2label[number]).lower() for number in sorted(checkpoint.id2label)]
        remedy = "--new-head starts a head of its own for this task"
        if len(theirs) != len(wanted):
            raise UserError(
                f"--model: the checkpoint's head has {len(theirs)} classes ({', '.join(theirs)}) and "
                f"{declaration.name} has {len(wanted)} ({', '.join(wanted)}): {remedy}"
            )
        if set(theirs) == set(wanted) and theirs != list(wanted):
            raise UserError(
                f"--model: the checkpoint's head numbers its labels {', '.join(theirs)} and {declaration.name} "
                f"{', '.join(wanted)}, so every score would be wrong: {remedy}"
            )

    def encode(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[dict[str, Any]]:
        """Returns ``input_ids``, what else the tokenizer gives, and the label of each example.

        Raises:
            UserError: ``max_length`` is more than the model reads.
        """
        limit = self.task.max_length
        if limit > tokenizer.model_max_length:
            raise UserError(
                f"--task.max-length {limit} is more than the {tokenizer.model_max_length} tokens that the model reads"
            )
        examples = self.examples[split]
        columns = [list(column) for column in zip(*examples.texts, strict=True)]
        if len(columns) == 2 and not separates_pairs(tokenizer):
            columns[1] = [f"\n{text}" for text in columns[1]]
        whole = tokenizer(*columns, truncation=False, verbose=False)
        cut = sum(len(ids) > limit for ids in whole["input_ids"])
        self.facts.setdefault("cut_to_max_length", {})[split] = cut
        encoded = tokenizer(*columns, truncation=True, max_length=limit) if cut else whole
        names = [name for name in encoded if name in tokenizer.model_input_names]
        return [
            {**{name: encoded[name][row] for name in names}, "labels": label}
            for row, label in enumerate(examples.labels)
        ]

    def collate(self, tokenizer: PreTrainedTokenizerBase, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pads to the longest of the batch, on the right whatever the tokenizer prefers.

        Padding before a text would shift it, and learned positions are counted from the start of the row.
        """
        inputs = [{name: value for name, value in feature.items() if name != "labels"} for feature in features]
        batch = dict(tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        dtype = torch.float32 if self.task.declaration.is_regression else torch.int64
        batch["labels"] = torch.tensor([feature["labels"] for feature in features], dtype=dtype)
        return batch

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], *, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Returns the examples' cross entropies, or squared errors in a regression, and ones: each has one target.

        Raises:
            UserError: label smoothing in a regression.
        """
        if label_smoothing and self.task.declaration.is_regression:
            raise UserError(
                f"--train.label-smoothing {label_smoothing}: {self.task.declaration.name} is a regression and has no "
                "classes to smooth over: leave it out"
            )
        labels = batch["labels"]
        return self._losses(logits(model, batch), labels, label_smoothing), torch.ones_like(labels, dtype=torch.int64)

    def _losses(self, outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        if self.task.declaration.is_regression:
            return F.mse_loss(outputs.squeeze(-1), labels, reduction="none")
        return F.cross_entropy(outputs, labels, reduction="none", label_smoothing=label_smoothing)

    def measure(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns each example's loss, then its logits."""
        outputs = logits(model, batch)
        return torch.cat([self._losses(outputs, batch["labels"])[:, None], outputs], dim=1)

    def summarise(self, split: str, rows: Tensor) -> Mapping[str, float]:
        """Returns loss and metrics."""
        name, labels = self.task.declaration.name, self.examples[split].labels
        if not bool(rows.isfinite().all()):
            return {"loss": math.nan, self.task.declaration.metric: math.nan}
        return {"loss": float(rows[:, 0].mean()), **metrics.compute(name, self._predictions(rows), labels)}

    def _predictions(self, rows: Tensor) -> list[int] | list[float]:
        if self.task.declaration.is_regression:
            return rows[:, 1].tolist()
        return rows[:, 1:].argmax(dim=1).tolist()

    def evaluate(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, batch_size: int, progress: Progress
    ) -> Evaluation:
        """Scores the evaluated splits; MNLI's two parts are two metrics."""
        found: dict[str, float] = {}
        signatures: dict[str, str] = {}
        predictions: list[dict[str, Any]] = []
        for name in self.task.declaration.evaluated:
            examples = self.examples[name]
            features = self.encode(tokenizer, name)
            batches = by_length(lengths(features), batch_size)
            parts = []
            with progress.bar("scoring", len(features), "example") as bar:
                for part in measure(model, self, tokenizer, features, batches, model.device):
                    parts.append(part)
                    bar.update(len(part[0]))
            rows = in_order(parts, len(features))
            suffix = name.removeprefix("validation")  # MNLI's _matched and _mismatched
            found.update({metric + suffix: value for metric, value in self.summarise(name, rows).items()})
            described = metrics.signature(self.task.declaration.name)
            signatures.update({metric + suffix: words for metric, words in described.items()})
            predictions += [
                {"split": name, "idx": idx, "label": label, "prediction": prediction, "logits": outputs}
                for idx, label, prediction, outputs in zip(
                    examples.idx, examples.labels, self._predictions(rows), rows[:, 1:].tolist(), strict=True
                )
            ]
        return Evaluation(found, predictions, signatures=signatures)


def separates_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts anything between two texts; those of most decoders do not, and get a line break."""
    return tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the model's outputs (examples, labels) in fp32."""
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.float()
