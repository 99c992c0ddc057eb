"""The self-attention outputs of every layer, before and after fine-tuning, on the same texts.

"Before" is the base model, "after" the trained one as read back from disk. Outputs come a batch at a time, so that no
more than one batch's are in memory. In the fine-tuned model the inputs of a layer have changed too, from the second
layer on by the layers below and from the first by the embeddings: outputs are compared on the same texts and tokens, as
the paper does, not on the same layer inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.analysis.runs import Run
from benchmarks.glue.task import Glue, LoadedGlue, logits
from hadamard_core.targets import find_targets, known_roles
from harness.errors import UserError, one_line
from harness.order import by_length
from harness.subsets import subset
from harness.workload import Features, collate, lengths

Position = Literal["context", "projection"]

ATTENTION_OUTPUT = "attention_output"
EXAMPLES_SEED = 0
"""Draws the examples; the same for all runs, so that runs on one task are compared on the same ones."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Which examples are read: flags that several commands share."""

    split: str = "validation"
    """The split that the texts are from: validation, train, held_out; of MNLI, validation is the matched part."""
    examples: int = 256
    """How many of its examples, a fixed subset; all if there are not so many."""
    batch_size: int = 32
    """Examples that the models have at once; changes time and memory, not the numbers."""
    data_dir: Path | None = None
    """Folder with the GLUE data, in place of the one that the run was given."""

    def check(self, least: int = 1) -> None:
        """Refuses settings that give nothing to compute.

        Raises:
            UserError: naming the flag.
        """
        if self.examples < least:
            raise UserError(f"--examples is {self.examples}: it must be at least {least}")
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}: it must be at least 1")


@dataclass(frozen=True)
class Site:
    """Where a layer has a module of some role.

    Attributes:
        name: the module's name in the model.
        layer: the layer's number from 0; in an encoder-decoder model after the stack's name.
    """

    name: str
    layer: str


@dataclass(frozen=True)
class Sample:
    """Some examples of the task of a run, encoded as the run had them.

    Attributes:
        split: the split's name.
        task: the task, to make batches.
        features: the examples.
    """

    split: str
    task: LoadedGlue
    tokenizer: PreTrainedTokenizerBase
    features: Features

    @property
    def tokens(self) -> int:
        """The number of tokens, special ones included, padding not."""
        return sum(lengths(self.features))


def sites(model: nn.Module, role: str = ATTENTION_OUTPUT) -> list[Site]:
    """Returns where a model has a role in its self-attention layers, in the model's order; cross-attention is left out.

    Args:
        model: a transformers model, or one that peft has wrapped.
        role: a role of ``hadamard_core.targets``; for one that the model does not have nothing is returned.

    Raises:
        UserError: no layers of a known architecture are found.
    """
    try:
        known = known_roles(model)
    except ValueError as error:
        raise UserError(f"these layers are not known by role: {one_line(error)}") from error
    stacks = [stack for stack in ("encoder", "decoder") if f"{stack}.{role}" in known]
    if stacks:
        return [
            Site(target.name, f"{stack} {target.layer}")
            for stack in stacks
            for target in find_targets(model, [f"{stack}.{role}"]).values()
        ]
    cross = find_targets(model, [f"cross.{role}"]) if f"cross.{role}" in known else {}
    found = find_targets(model, [role]).values() if role in known else ()
    return [Site(target.name, str(target.layer)) for target in found if target.name not in cross]


def load_sample(run: Run, settings: SampleSettings) -> Sample:
    """Reads the examples of a run's task, by the run's own configuration.

    Raises:
        UserError: the task is none of GLUE, the data cannot be read, or it has no such split.
    """
    task = run.config.task_settings
    if not isinstance(task, Glue):
        raise UserError(f"{run.path} is a run of --task {run.task}: this needs a task of GLUE")
    data = run.config.data if settings.data_dir is None else replace(run.config.data, dir=settings.data_dir)
    loaded = task.load(data, run.config.seed)
    split = task.declaration.evaluated[0] if settings.split == "validation" else settings.split
    if split not in loaded.examples:
        known = ", ".join(loaded.examples)
        raise UserError(f"--split {split}: the data of {run.path} has no such split (known: {known})")
    whole = loaded.examples[split]
    rows = subset(range(len(whole.labels)), settings.examples, EXAMPLES_SEED)
    loaded = replace(loaded, examples={split: whole.take(rows)})
    tokenizer = run.base.tokenizer()
    return Sample(split, loaded, tokenizer, loaded.encode(tokenizer, split))


def attention_outputs(
    model: PreTrainedModel, batch: Mapping[str, Tensor], is_token: Tensor, position: Position
) -> dict[str, Tensor]:
    """Returns the self-attention output of each layer for a batch: layer -> (tokens, width), float64 on the CPU.

    Args:
        batch: as the task collates it, on the model's device.
        is_token: (examples, length), False for padding, which is left out of what is returned.
        position: ``"context"``: the concatenated heads, which are the input of the output projection;
            ``"projection"``: its output, with its bias.

    Raises:
        UserError: no layers of a known architecture are found.
    """
    found: dict[str, Tensor] = {}

    def keep(layer: str, output: Tensor) -> None:
        found[layer] = output[is_token].cpu().double()

    handles = []
    for site in sites(model):
        module = model.get_submodule(site.name)
        if position == "context":
            hook = module.register_forward_pre_hook(lambda _, given, layer=site.layer: keep(layer, given[0]))
        else:
            hook = module.register_forward_hook(lambda _, given, output, layer=site.layer: keep(layer, output))
        handles.append(hook)
    try:
        with torch.no_grad():
            logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def paired_outputs(
    run: Run,
    sample: Sample,
    position: Position,
    batch_size: int,
    parts: Sequence[Sequence[int]] | None = None,
) -> Iterator[tuple[int, dict[str, tuple[Tensor, Tensor]]]]:
    """Yields outputs before and after fine-tuning: the part, and layer -> two of (tokens, width), token by token.

    Args:
        position: as in :func:`attention_outputs`.
        parts: numbers of the examples to go through, in parts that do not share a batch; all in one if None.

    Raises:
        UserError: the trained model cannot be read, or its outputs are not finite.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    before, after = run.before().to(device), run.after().to(device)
    for part, members in enumerate([range(len(sample.features))] if parts is None else parts):
        own = [sample.features[example] for example in members]
        for examples in by_length(lengths(own), batch_size):
            features = [own[example] for example in examples]
            batch = collate(sample.task, sample.tokenizer, features, device)
            ends = torch.tensor(lengths(features), device=device)
            # the task pads on the right, whatever the model
            is_token = torch.arange(batch["input_ids"].shape[1], device=device) < ends[:, None]
            originals, tuned = (attention_outputs(model, batch, is_token, position) for model in (before, after))
            for layer, output in tuned.items():
                if not bool(output.isfinite().all()):
                    raise UserError(
                        f"{run.path}: the attention outputs of layer {layer} are not finite, so this run has diverged: "
                        "give another"
                    )
            yield part, {layer: (originals[layer], tuned[layer]) for layer in originals}
