"""A classification task for the tests of the harness: two measured splits, two rules, a model with a head.

It obeys ``TOY_FAULT`` as :mod:`toy_bench` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn import functional
from toy_bench import LETTERS, struck

from harness.order import by_length
from harness.protocols import Evaluation, Rule
from harness.workload import in_order, lengths, measure


@dataclass(frozen=True)
class ToyClasses:
    """Classes of texts: a text's first letter decides."""

    version: ClassVar[int] = 1
    task_type: ClassVar[str] = "SEQ_CLS"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    recipes: ClassVar[Path] = Path(__file__).parent / "toy_classes_recipes"
    scored_splits: ClassVar[tuple[str, ...]] = ("validation",)
    rules: ClassVar[dict[str, Rule]] = {
        "published": Rule("validation", "accuracy", True, "highest validation accuracy"),
        "held_out": Rule("held_out", "accuracy", True, "highest accuracy on what is held out"),
    }

    classes: int = 2
    """Number of classes."""

    def load(self, data, seed):
        return LoadedToyClasses(self.classes, data.train_limit or 32, data.eval_limit or 8, seed)


class LoadedToyClasses:
    def __init__(self, classes, train, evaluation, seed):
        random = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 6, (train + 2 * evaluation,), generator=random).tolist()
        texts = ["".join(LETTERS[i] for i in torch.randint(8, (size,), generator=random)) for size in sizes]
        self.texts = {
            "train": texts[:train],
            "held_out": texts[train : train + evaluation],
            "validation": texts[train + evaluation :],
        }
        self.classes = classes
        self.facts = {"source": "made up", **{split: len(found) for split, found in self.texts.items()}}
        self.warnings = ()
        self.calls = 0

    def labels(self, split):
        return [LETTERS.index(text[0]) % self.classes for text in self.texts[split]]

    def model_kwargs(self, checkpoint):
        return {"num_labels": self.classes, "problem_type": "single_label_classification"}

    def encode(self, tokenizer, split):
        return [
            {"input_ids": tokenizer(" ".join(text)).input_ids, "label": label}
            for text, label in zip(self.texts[split], self.labels(split), strict=True)
        ]

    def collate(self, tokenizer, features):
        batch = dict(tokenizer.pad({"input_ids": [feature["input_ids"] for feature in features]}, return_tensors="pt"))
        return {**batch, "labels": torch.tensor([feature["label"] for feature in features])}

    def logits(self, model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()

    def losses(self, model, batch, *, label_smoothing):
        losses = functional.cross_entropy(
            self.logits(model, batch), batch["labels"], reduction="none", label_smoothing=label_smoothing
        )
        self.calls += 1
        return struck(losses, self.calls), torch.ones_like(batch["labels"])

    def measure(self, model, batch):
        logits = self.logits(model, batch)
        losses = functional.cross_entropy(logits, batch["labels"], reduction="none")
        return torch.stack([losses, logits.argmax(-1).float()], dim=1)

    def summarise(self, split, rows):
        right = rows[:, 1] == torch.tensor(self.labels(split))
        return {"loss": float(rows[:, 0].mean()), "accuracy": float(right.double().mean())}

    def evaluate(self, model, tokenizer, split, batch_size, progress):
        features = self.encode(tokenizer, split)
        batches = by_length(lengths(features), batch_size)
        rows = in_order(list(measure(model, self, tokenizer, features, batches, model.device)), len(features))
        predictions = [
            {"text": text, "class": int(row[1])} for text, row in zip(self.texts[split], rows.tolist(), strict=True)
        ]
        return Evaluation(self.summarise(split, rows), predictions)
