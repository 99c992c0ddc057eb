"""The E2E NLG task: a restaurant's meaning representation (MR) becomes one English text.

The loss covers the completion and its end token only. Each distinct MR is decoded once, by beam search, and the
texts are scored against all references of their MR with the official metrics.

What a limit selects does not depend on the method. Evaluation sees one and the same subset whatever the run's seed, so
that scores can be compared over methods and seeds. The training subset is drawn by the run's seed, so that the spread
over seeds holds the choice of examples; at one seed all methods see the same. A smaller limit's subset is part of a
larger one's.
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

from benchmarks.e2e import decoding, metrics
from benchmarks.e2e.data import Example, group_by_meaning_representation, load_split
from benchmarks.e2e.encoding import IGNORED, InputForm, encode_example, encode_prompt, right_pad
from harness.config import DataConfig
from harness.errors import UserError
from harness.protocols import Evaluation, Progress, Rule
from harness.subsets import chosen, subset

EVALUATION_SEED = 0
"""Draws the evaluation subsets; another number would make scores of limited runs another measurement."""


@dataclass(frozen=True)
class E2E:
    """E2E NLG: a restaurant's attributes become a text, scored by BLEU, NIST, METEOR, ROUGE-L and CIDEr."""

    version: ClassVar[int] = 1
    task_type: ClassVar[str] = "CAUSAL_LM"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    recipes: ClassVar[Path] = Path(__file__).parent / "recipes"
    scored_splits: ClassVar[tuple[str, ...]] = ("validation", "test")

    input_form: InputForm = "lora"
    """What the model is given: lora, as the LoRA repository has it (name : X | Type : Y), or mr, as published."""
    num_beams: int = 10
    """Unfinished texts that beam search keeps; time and memory of decoding grow in proportion."""
    length_penalty: float = 0.9
    """A text's score is its log-probability over its number of tokens to this power; larger means longer texts."""
    no_repeat_ngram_size: int = 4
    """No text may hold the same run of so many tokens twice; the prompt does not count. 0 allows all."""
    max_new_tokens: int = 64
    """A text is cut after so many tokens; of the test split's references 0.1 % are longer (SmolLM2's tokens)."""
    held_out: float = 0.0
    """Share of the distinct inputs of the training split, with all their texts, that is not trained on; a sweep chooses
    by it."""
    held_out_seed: int = 0
    """Draws the held-out part, the same for every method and every --seed."""

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--task.{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if not (math.isfinite(self.length_penalty) and self.length_penalty >= 0):
            raise ValueError(f"--task.length-penalty is {self.length_penalty}: it must be 0 or above")
        if self.no_repeat_ngram_size < 0:
            raise ValueError(f"--task.no-repeat-ngram-size is {self.no_repeat_ngram_size}: it must be 0 or above")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--task.held-out is {self.held_out}: it must be at least 0 and below 1")

    @property
    def rules(self) -> Mapping[str, Rule]:
        """By the validation split's loss, or by that of what is held out."""
        rules = {"best": Rule("validation", "loss", False, "lowest validation loss")}
        if self.held_out:
            share = f"the {100 * self.held_out:g} % of train's inputs that are held out"
            rules["held_out"] = Rule("held_out", "loss", False, f"lowest loss on {share}")
        return rules

    def load(self, data: DataConfig, seed: int) -> LoadedE2E:
        """Reads and limits the three splits.

        Args:
            data: ``train_limit`` counts rows, after the held-out part is taken away; ``eval_limit`` counts distinct
                MRs where texts are decoded, and rows where a loss is measured.
            seed: draws the training subset.

        Raises:
            UserError: the data is missing or damaged.
        """
        available = {name: load_split(file, data.dir) for name, file in SPLIT_FILES.items()}
        groups = {name: group_by_meaning_representation(available[name]) for name in ("validation", "test")}
        kept, held = self._divide(available["train"])
        rows = {
            "train": subset(kept, data.train_limit, seed),
            "validation": subset(available["validation"], data.eval_limit, EVALUATION_SEED),
        }
        if held:
            rows["held_out"] = subset(held, data.eval_limit, EVALUATION_SEED)
        decoded = {name: dict(subset(list(groups[name].items()), data.eval_limit, EVALUATION_SEED)) for name in groups}
        return LoadedE2E(self, rows, decoded, facts(self, available, rows, decoded, seed))

    def _divide(self, rows: Sequence[Example]) -> tuple[Sequence[Example], Sequence[Example]]:
        """Returns what is trained on and what is held out: all texts of an MR go to one side."""
        if not self.held_out:
            return rows, ()
        meanings = list(group_by_meaning_representation(rows))
        count = math.ceil(self.held_out * len(meanings))
        if count == len(meanings):
            raise UserError(f"--task.held-out {self.held_out} of {count} distinct inputs leaves none to train on")
        held = {meanings[position] for position in chosen(len(meanings), count, self.held_out_seed)}
        is_held = [row.meaning_representation in held for row in rows]
        return (
            [row for row, out in zip(rows, is_held, strict=True) if not out],
            [row for row, out in zip(rows, is_held, strict=True) if out],
        )


def example_losses(model: nn.Module, batch: Mapping[str, Tensor], label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Returns each example's sum of cross entropies and its number of targets, (examples,) both.

    The output layer runs only on positions that predict a target in some row of the batch: more than half of all
    tokens are prompt.
    """
    targets = batch["labels"][:, 1:]
    positions = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        logits_to_keep=positions,
    )
    targets = targets[:, positions]
    losses = F.cross_entropy(
        output.logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(targets.shape).sum(1), (targets != IGNORED).sum(1)


SPLIT_FILES = {"train": "train", "validation": "dev", "test": "test"}


def facts(
    task: E2E,
    available: Mapping[str, Sequence[Example]],
    rows: Mapping[str, Sequence[Example]],
    decoded: Mapping[str, Mapping[str, Sequence[str]]],
    seed: int,
) -> dict[str, Any]:
    """Returns what the result says about the data."""
    return {
        "dataset": "E2E NLG (Novikova, Dusek and Rieser 2017), release v1.0.0",
        "licence": "CC BY-SA 4.0",
        "input_form": task.input_form,
        "references": "original text, not tokenised (the LoRA repository scores against tokenised ones)",
        "train_examples": len(rows["train"]),
        "validation_loss_examples": len(rows["validation"]),
        **({"held_out_examples": len(rows["held_out"])} if "held_out" in rows else {}),
        "validation_meaning_representations": len(decoded["validation"]),
        "test_meaning_representations": len(decoded["test"]),
        "available": {
            name: {"examples": len(split), "meaning_representations": len(group_by_meaning_representation(split))}
            for name, split in available.items()
        },
        "train_subset": f"drawn by seed {seed}" if len(rows["train"]) < len(available["train"]) else "all",
        "evaluation_subset": (
            f"drawn by the constant {EVALUATION_SEED}, the same for every seed"
            if len(rows["validation"]) < len(available["validation"])
            else "all"
        ),
    }


@dataclass(frozen=True)
class LoadedE2E:
    """The data of :class:`E2E`, limited.

    Attributes:
        task: the settings.
        rows: split -> the rows that a loss is computed of.
        decoded: split -> the distinct MRs that texts are decoded for, with all their references.
        facts: see :func:`facts`.
    """

    task: E2E
    rows: Mapping[str, Sequence[Example]]
    decoded: Mapping[str, Mapping[str, Sequence[str]]]
    facts: Mapping[str, Any]
    warnings: Sequence[str] = ()

    def model_kwargs(self, checkpoint: PreTrainedConfig | None) -> Mapping[str, Any]:
        """A language model needs nothing to be set."""
        return {}

    def encode(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[dict[str, list[int]]]:
        """Returns ``input_ids`` and ``labels`` of each row.

        With the training split, what will be decoded is looked at too: :meth:`evaluate` comes only after training.

        Raises:
            UserError: the tokenizer makes no tokens of a text, or a text is longer than the model's context
                (the tokenizer's ``model_max_length``).
        """
        features = [
            encode_example(tokenizer, row.meaning_representation, row.reference, self.task.input_form)
            for row in self.rows[split]
        ]
        context = tokenizer.model_max_length
        longest = max((len(feature["input_ids"]) for feature in features), default=0)
        if longest > context:
            raise UserError(
                f"the longest example of the {split} split has {longest} tokens and the model reads {context}: "
                "give a --model with a longer context"
            )
        for name, groups in self.decoded.items() if split == "train" else ():
            prompt = max((len(encode_prompt(tokenizer, text, self.task.input_form)) for text in groups), default=0)
            room = context - prompt
            if self.task.max_new_tokens > room:
                remedy = f"--task.max-new-tokens {room} or less" if room > 0 else "a --model with a longer context"
                raise UserError(
                    f"the longest input of the {name} split has {prompt} tokens, which with --task.max-new-tokens "
                    f"{self.task.max_new_tokens} is more than the {context} that the model reads: give {remedy}"
                )
        return features

    def collate(self, tokenizer: PreTrainedTokenizerBase, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pads on the right."""
        return right_pad(features)

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], *, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Returns each example's sum of the cross entropies of its completion and end token, and their number.

        Args:
            label_smoothing: as in torch's ``cross_entropy``: this share of the target's probability is spread evenly
                over the whole vocabulary, the target included.
        """
        return example_losses(model, batch, label_smoothing)

    def measure(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns each example's sum of losses, without smoothing, and its number of targets."""
        losses, targets = example_losses(model, batch, 0.0)
        return torch.stack([losses, targets.float()], dim=1)

    def summarise(self, split: str, rows: Tensor) -> Mapping[str, float]:
        """Returns the mean loss over all targets."""
        losses, targets = rows.sum(0).tolist()
        return {"loss": losses / targets}

    def evaluate(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, batch_size: int, progress: Progress
    ) -> Evaluation:
        """Decodes each distinct MR once and scores the texts against all references of their MRs."""
        groups = self.decoded[split]
        prompts = [encode_prompt(tokenizer, meaning, self.task.input_form) for meaning in groups]
        search = decoding.BeamSearch(
            self.task.num_beams, self.task.length_penalty, self.task.no_repeat_ngram_size, self.task.max_new_tokens
        )
        texts = decoding.decode(model, tokenizer, prompts, search, batch_size, progress)
        with progress.bar("scoring", total=len(texts), unit="text") as bar:
            scored = 0

            def advance(done: int, total: int) -> None:
                nonlocal scored
                bar.update(done - scored)
                scored = done

            scores = metrics.score(texts, list(groups.values()), progress=advance)
        return Evaluation(
            metrics=scores.metrics,
            unavailable=scores.unavailable,
            signatures=scores.signatures,
            predictions=[
                {
                    "meaning_representation": meaning,
                    "prompt": tokenizer.decode(prompt),
                    "hypothesis": text,
                    "references": list(references),
                }
                for (meaning, references), prompt, text in zip(groups.items(), prompts, texts, strict=True)
            ],
        )
