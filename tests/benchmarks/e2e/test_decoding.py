"""Beam search finds what it says it finds, whatever shares a batch with what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from benchmarks.e2e.decoding import BeamSearch, beam_search, decode, end_tokens, tidy
from benchmarks.e2e.encoding import left_pad

ENDS = list(range(0, 250, 5))  # so many that random models do end


def random_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 20, (count,), generator=generator).tolist()
    return [torch.randint(100, 250, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_equals_transformers_where_both_mean_the_same(model, num_beams, length_penalty):
    """No n-gram rule; early_stopping="never" is transformers' name for a search that cannot miss the best text."""
    batch = left_pad(random_prompts(6))
    reference = model.generate(
        **batch,
        generation_config=GenerationConfig(
            num_beams=num_beams,
            do_sample=False,
            max_new_tokens=16,
            length_penalty=length_penalty,
            early_stopping="never",
            eos_token_id=ENDS,
            pad_token_id=0,
        ),
    )
    expected = []
    for generated in reference[:, batch["input_ids"].shape[1] :].tolist():
        stop = next((index for index, token in enumerate(generated) if token in ENDS), len(generated))
        expected.append(generated[:stop])
    search = BeamSearch(num_beams, length_penalty, no_repeat_ngram_size=0, max_new_tokens=16)
    assert beam_search(model, **batch, end=ENDS, search=search) == expected
    if length_penalty < 0.9:
        assert min(map(len, expected)) < 16


@pytest.mark.parametrize("batch_size", [2, 7])
def test_texts_do_not_depend_on_batch_or_order(model, tokenizer, progress, batch_size):
    prompts = random_prompts(7)
    search = BeamSearch(num_beams=3, length_penalty=0.9, no_repeat_ngram_size=4, max_new_tokens=24)
    alone = [decode(model, tokenizer, [prompt], search, 1, progress)[0] for prompt in prompts]
    assert decode(model, tokenizer, prompts, search, batch_size, progress) == alone
    assert decode(model, tokenizer, prompts[::-1], search, batch_size, progress) == alone[::-1]
    assert len(set(alone)) == len(alone)


def test_progress_counts_inputs(model, tokenizer, progress):
    search = BeamSearch(num_beams=1, length_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=2)
    decode(model, tokenizer, random_prompts(5), search, 2, progress)
    assert progress.bars == [("decoding", 5, "MR", [2, 2, 1])]


class Scripted(torch.nn.Module):
    """A model of the tokens 0 to 9 that knows the next one from the last one, and holds 9 for the second best."""

    def __init__(self, following: dict[int, int]) -> None:
        super().__init__()
        self.on_a_device = torch.nn.Parameter(torch.zeros(1))
        self.following = torch.tensor([following.get(token, 9) for token in range(10)])
        self.rows: list[int] = []

    def forward(self, input_ids, past_key_values=None, **_):
        self.rows.append(len(input_ids))
        logits = torch.zeros(*input_ids.shape, 10)
        logits[..., 9] = 10.0
        logits.scatter_(2, self.following[input_ids][..., None], 20.0)
        return SimpleNamespace(logits=logits, past_key_values=past_key_values or DynamicCache())


CYCLE = {0: 1, 1: 2, 2: 3, 3: 0}
COUNTDOWN = {token + 1: token for token in range(8)}


def test_no_repeat_rule_sees_generated_tokens_only():
    """The 4-gram 0 1 2 3 of the prompt may come once in the text, and not twice."""
    search = BeamSearch(num_beams=1, length_penalty=1.0, no_repeat_ngram_size=4, max_new_tokens=20)
    prompt = left_pad([[0, 1, 2, 3]])
    assert beam_search(Scripted(CYCLE), **prompt, end=[9], search=search) == [[0, 1, 2, 3, 0, 1, 2]]


def test_without_the_rule_the_text_is_cut_at_its_longest():
    search = BeamSearch(num_beams=1, length_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=9)
    prompt = left_pad([[0, 1, 2, 3]])
    assert beam_search(Scripted(CYCLE), **prompt, end=[9], search=search) == [[0, 1, 2, 3, 0, 1, 2, 3, 0]]


def test_finished_inputs_leave_the_batch():
    model = Scripted(COUNTDOWN)
    search = BeamSearch(num_beams=1, length_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=30)
    assert beam_search(model, **left_pad([[2], [5]]), end=[0], search=search) == [[1], [4, 3, 2, 1]]
    assert model.rows == [2, 2, 1, 1, 1]


def test_end_tokens(make_tokenizer):
    one, two = make_tokenizer(), make_tokenizer(blank_line=False)
    assert sorted(one.decode([token]) for token in end_tokens(one)) == ["\n\n", "<|end|>"]
    assert sorted(two.decode([token]) for token in end_tokens(two)) == ["\n", "<|end|>"]


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        (" A  pub.", "A pub."),
        ("A pub.\n\nIt is", "A pub."),
        ("A pub. \nIt", "A pub."),
        ("\nA pub.", "A pub."),
        ("", ""),
    ],
)
def test_tidy(text, tidied):
    assert tidy(text) == tidied
