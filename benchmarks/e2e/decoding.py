"""Beam search as the papers decode E2E: a prompt gives one text.

The search keeps the ``num_beams`` best unfinished texts. A text is finished by an end token; its score is the sum of
its tokens' log-probabilities over ``length ** length_penalty``, where ``length`` counts the generated tokens, the end
token included and the prompt not. The finished text of the best score is the result. No text holds an n-gram twice.

Why not ``model.generate``: it forbids the n-grams of the *prompt* too, and 4333 of the 4693 test references repeat a
4-gram of theirs; it takes over what the checkpoint's ``generation_config.json`` says and the caller did not; it
computes the prompt once a beam; and it goes on computing finished inputs until the last of their batch is done. Where
the two mean the same they give the same texts, and the tests compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import NoRepeatNGramLogitsProcessor, PreTrainedTokenizerBase

from benchmarks.e2e.encoding import end_of_text, left_pad
from harness.protocols import Progress


@dataclass(frozen=True)
class BeamSearch:
    """The settings of a search; see the ``--task.*`` flags of the same names."""

    num_beams: int
    length_penalty: float
    no_repeat_ngram_size: int
    max_new_tokens: int


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
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    search: BeamSearch,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """Returns one text for each prompt, in the prompts' order; prompts of like length share a batch."""
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    device = next(model.parameters()).device
    texts = [""] * len(prompts)
    with progress.bar("decoding", total=len(prompts), unit="MR") as bar:
        for start in range(0, len(prompts), batch_size):
            indices = by_length[start : start + batch_size]
            batch = {
                name: tensor.to(device) for name, tensor in left_pad([prompts[index] for index in indices]).items()
            }
            best = beam_search(model, **batch, end=end_tokens(tokenizer), search=search)
            for index, tokens in zip(indices, best, strict=True):
                texts[index] = tidy(tokenizer.decode(tokens, skip_special_tokens=True))
            bar.update(len(indices))
    return texts


@torch.inference_mode()
def beam_search(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, end: Sequence[int], search: BeamSearch
) -> list[list[int]]:
    """Returns the generated ids of the best text for each row, end token left out.

    Args:
        input_ids: prompts, padded on the left, (rows, width).
        attention_mask: 1 for the prompts' tokens, (rows, width).
        end: the ids that end a text.
    """
    rows, device = len(input_ids), input_ids.device
    beams = search.num_beams
    end_ids = torch.tensor(end, device=device)
    no_repeat = NoRepeatNGramLogitsProcessor(search.no_repeat_ngram_size) if search.no_repeat_ngram_size else None

    best_score = torch.full((rows,), -torch.inf)
    best_tokens: list[list[int]] = [[] for _ in range(rows)]
    open_rows = torch.arange(rows)

    # the prompt is computed once for all of its beams; of these only the first counts until they differ
    position = attention_mask.sum(dim=1, keepdim=True)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    cache.batch_repeat_interleave(beams)
    attention_mask = attention_mask.repeat_interleave(beams, dim=0)
    position = position.repeat_interleave(beams, dim=0)
    logits = output.logits[:, -1].repeat_interleave(beams, dim=0)
    texts = torch.empty((rows * beams, 0), dtype=torch.long, device=device)
    scores = torch.full((rows, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0

    for length in range(1, search.max_new_tokens + 1):
        log_probabilities = logits.float().log_softmax(dim=-1)
        if no_repeat is not None:
            log_probabilities = no_repeat(texts, log_probabilities)
        vocabulary = log_probabilities.shape[-1]
        totals = (scores.view(-1, 1) + log_probabilities).view(len(open_rows), beams * vocabulary)
        # a beam can end in len(end) ways, so that among so many candidates at least `beams` go on
        candidate_scores, candidates = totals.topk(beams * (1 + len(end)))
        candidate_tokens = candidates % vocabulary
        origin = candidates // vocabulary + beams * torch.arange(len(open_rows), device=device)[:, None]
        finishes = torch.isin(candidate_tokens, end_ids)

        last = length == search.max_new_tokens
        finished_scores = candidate_scores[:, :beams] / length**search.length_penalty
        if not last:
            finished_scores = finished_scores.masked_fill(~finishes[:, :beams], -torch.inf)
        new_score, new_index = (tensor.cpu() for tensor in finished_scores.max(dim=1))
        for slot in (new_score > best_score[open_rows]).nonzero()[:, 0].tolist():
            row, index = open_rows[slot], new_index[slot]
            best_score[row] = new_score[slot]
            best_tokens[row] = texts[origin[slot, index]].tolist()
            if not finishes[slot, index]:
                best_tokens[row].append(int(candidate_tokens[slot, index]))
        if last:
            break

        going_on = candidate_scores.masked_fill(finishes, -torch.inf).topk(beams)
        scores = going_on.values
        # sums of log-probabilities only fall, so that this is the most that an unfinished text can still reach
        reachable = scores[:, 0].cpu() / search.max_new_tokens**search.length_penalty
        unfinished = (reachable > best_score[open_rows]).nonzero()[:, 0]
        if len(unfinished) == 0:
            break
        open_rows, on_device = open_rows[unfinished], unfinished.to(device)
        scores = scores[on_device]
        origin = origin.gather(1, going_on.indices)[on_device].flatten()
        token = candidate_tokens.gather(1, going_on.indices)[on_device].view(-1, 1)

        texts = torch.cat((texts[origin], token), dim=1)
        cache.batch_select_indices(origin)
        attention_mask = torch.cat((attention_mask[origin], torch.ones_like(token)), dim=1)
        position = position[origin]
        output = model(
            input_ids=token, attention_mask=attention_mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        logits, cache = output.logits[:, -1], output.past_key_values
        position = position + 1
    return best_tokens
