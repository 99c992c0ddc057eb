"""Beam search as the papers decode E2E: a prompt gives one text.

transformers' ``generate`` does the search; what is ours is how it is asked. A text's score is the sum of its tokens'
log-probabilities over ``length ** length_penalty``, where ``length`` counts the generated tokens, end token included.
A text is finished by the end-of-text token or by a blank line. No text holds an n-gram twice, and only what was
generated counts for that: ``generate`` by itself forbids the n-grams of the prompt too, and 4333 of the 4693 test
references repeat a 4-gram of theirs. The checkpoint's own ``generation_config.json`` is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.e2e.encoding import end_of_text, left_pad
from harness.protocols import Progress


@dataclass(frozen=True)
class BeamSearch:
    """The settings of a search; see the ``--task.*`` flags of the same names."""

    num_beams: int
    length_penalty: float
    no_repeat_ngram_size: int
    max_new_tokens: int


class GeneratedTokensOnly(LogitsProcessor):
    """Shows a logits processor the generated tokens without the prompt.

    Args:
        processor: what is asked.
        prompt_width: the number of tokens before the first generated one, padding included.
    """

    def __init__(self, processor: LogitsProcessor, prompt_width: int) -> None:
        self.processor = processor
        self.prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.processor(input_ids[:, self.prompt_width :], scores)


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that end a text: the end-of-text token and a blank line.

    A blank line is one token in most vocabularies (628 in GPT-2's, 1116 in SmolLM2's). Where it is several, the last of
    them is a line break, which ends a text as well: what follows a line break does not count.
    """
    blank_line = tokenizer.encode("\n\n", add_special_tokens=False)[-1:]
    return sorted({end_of_text(tokenizer), *(token for token in blank_line if "\n" in tokenizer.decode([token]))})


def tidy(text: str) -> str:
    """Returns the first line of what was decoded (blank lines before it left out), white space made single spaces."""
    return " ".join(text.strip().partition("\n")[0].split())


def decode(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    search: BeamSearch,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """Returns one text for each prompt, in the prompts' order; prompts of like length share a batch."""
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    ends = end_tokens(tokenizer)
    texts = [""] * len(prompts)
    with progress.bar("decoding", total=len(prompts), unit="MR") as bar:
        for start in range(0, len(prompts), batch_size):
            indices = by_length[start : start + batch_size]
            batch = left_pad([prompts[index] for index in indices])
            generated = beam_search(model, **batch, end=ends, search=search)
            for index, tokens in zip(indices, generated, strict=True):
                texts[index] = tidy(tokenizer.decode(tokens, skip_special_tokens=True))
            bar.update(len(indices))
    return texts


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel | PeftModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    end: Sequence[int],
    search: BeamSearch,
) -> list[list[int]]:
    """Returns the generated ids of the best text for each row, end token left out.

    Args:
        input_ids: prompts, padded on the left, (rows, width).
        attention_mask: 1 for the prompts' tokens, (rows, width).
        end: the ids that end a text.
    """
    width = input_ids.shape[1]
    processors = LogitsProcessorList()
    if search.no_repeat_ngram_size:
        processors.append(GeneratedTokensOnly(NoRepeatNGramLogitsProcessor(search.no_repeat_ngram_size), width))
    settings = GenerationConfig(
        do_sample=False,
        num_beams=search.num_beams,
        length_penalty=search.length_penalty,
        max_new_tokens=search.max_new_tokens,
        eos_token_id=list(end),
        pad_token_id=end[0],
    )
    # peft's model hands generate over to the one inside
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = inner.generation_config
    try:
        # What generate is not told it takes from here.
        inner.generation_config = GenerationConfig()
        sequences = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=settings,
            logits_processor=processors,
        )
    finally:
        inner.generation_config = own
    return [until_end(row, end) for row in sequences[:, width:].tolist()]


def until_end(tokens: Sequence[int], end: Sequence[int]) -> list[int]:
    """Returns the tokens before the first end token."""
    stop = next((position for position, token in enumerate(tokens) if token in end), len(tokens))
    return list(tokens[:stop])
