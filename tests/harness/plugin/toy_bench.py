"""A task and a method for the tests of the harness, installed by putting this folder on the path.

The environment variable ``TOY_FAULT`` makes the process fail at a chosen moment: ``kill-loss-N``, ``interrupt-loss-N``
and ``nan-loss-N`` in its N-th training loss, ``kill-evaluate`` when scoring starts; ``noise`` prints to stdout then.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn import functional

from hadamard_baselines.methods.low_rank import Lora
from harness.protocols import Evaluation, Rule

LETTERS = "abcdefgh"
IGNORED = -100


@dataclass(frozen=True)
class Wrecked(Lora):
    """LoRA whose object in memory is useless after it was saved."""

    def save(self, model, directory):
        super().save(model, directory)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))


@dataclass(frozen=True)
class Toy:
    """Copies letters: "b a d =" is followed by "b a d"."""

    version: ClassVar[int] = 1
    task_type: ClassVar[str] = "CAUSAL_LM"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    recipes: ClassVar[Path] = Path(__file__).parent / "toy_recipes"
    scored_splits: ClassVar[tuple[str, ...]] = ("validation", "test")
    rules: ClassVar[dict[str, Rule]] = {"best": Rule("validation", "loss", False, "lowest validation loss")}

    longest: int = 4
    """Letters in the longest text."""

    def __post_init__(self):
        if self.longest < 1:
            raise ValueError(f"longest is {self.longest}: a text has at least 1 letter")

    def load(self, data, seed):
        return LoadedToy(self.longest, data.train_limit or 32, data.eval_limit or 6, seed)


class LoadedToy:
    def __init__(self, longest, train, evaluation, seed):
        random = torch.Generator().manual_seed(seed)
        count = train + 2 * evaluation
        sizes = torch.randint(1, longest + 1, (count,), generator=random).tolist()
        texts = ["".join(LETTERS[i] for i in torch.randint(8, (size,), generator=random)) for size in sizes]
        self.texts = {
            "train": texts[:train],
            "validation": texts[train : train + evaluation],
            "test": texts[train + evaluation :],
        }
        self.facts = {"source": "made up", "train": train, "validation": evaluation, "test": evaluation}
        self.warnings = ()
        self.calls = 0

    def model_kwargs(self, checkpoint):
        return {}

    def encode(self, tokenizer, split):
        return [
            {
                "input_ids": [*tokenizer(" ".join([*text, "=", *text])).input_ids, tokenizer.eos_token_id],
                "prompt": len(text) + 1,
            }
            for text in self.texts[split]
        ]

    def collate(self, tokenizer, features):
        length = max(len(feature["input_ids"]) for feature in features)
        ids = torch.zeros(len(features), length, dtype=torch.long)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, feature in enumerate(features):
            size = len(feature["input_ids"])
            ids[row, :size] = torch.tensor(feature["input_ids"])
            mask[row, :size] = 1
            labels[row, feature["prompt"] : size] = ids[row, feature["prompt"] : size]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def losses_of(self, model, batch, label_smoothing):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return losses.view(labels.shape).sum(1), (labels != IGNORED).sum(1)

    def measure(self, model, batch):
        losses, targets = self.losses_of(model, batch, 0.0)
        return torch.stack([losses, targets.float()], dim=1)

    def summarise(self, split, rows):
        return {"loss": float(rows[:, 0].sum() / rows[:, 1].sum())}

    def losses(self, model, batch, *, label_smoothing):
        losses, targets = self.losses_of(model, batch, label_smoothing)
        if torch.is_grad_enabled():
            self.calls += 1
            losses = struck(losses, self.calls)
        return losses, targets

    def evaluate(self, model, tokenizer, split, batch_size, progress):
        if os.environ.get("TOY_FAULT") == "kill-evaluate":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TOY_FAULT") == "noise":
            print("a library speaks")
            os.system("echo a child process speaks")
        features = self.encode(tokenizer, split)
        predictions, right, log_likelihood = [], 0, 0.0
        with progress.bar("scoring", len(features), "text") as bar:
            for text, feature in zip(self.texts[split], features, strict=True):
                batch = {name: tensor.to(model.device) for name, tensor in self.collate(tokenizer, [feature]).items()}
                loss, _ = self.losses(model, batch, label_smoothing=0.0)
                guess = model(input_ids=batch["input_ids"]).logits[0, feature["prompt"] - 1 : -1].argmax(-1).tolist()
                right += guess == feature["input_ids"][feature["prompt"] :]
                log_likelihood -= float(loss)
                predictions.append({"text": text, "guess": tokenizer.decode(guess)})
                bar.update(1)
        return Evaluation(
            {"accuracy": right / len(features), "log_likelihood": log_likelihood / len(features)},
            predictions,
            unavailable={"taste": "nobody here can taste"},
            signatures={"accuracy": "share of texts copied without a mistake"},
        )


def struck(loss, number):
    """Returns the loss, the ``number``-th of the run; fails if it is told to."""
    fault = os.environ.get("TOY_FAULT")
    if fault == f"kill-loss-{number}":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == f"interrupt-loss-{number}":
        raise KeyboardInterrupt
    return loss * float("nan") if fault == f"nan-loss-{number}" else loss
