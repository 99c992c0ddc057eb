"""Beam search finds what it says it finds, whatever shares a batch with what."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, NoRepeatNGramLogitsProcessor

from benchmarks.e2e.decoding import BeamSearch, GeneratedTokensOnly, beam_search, decode, end_tokens, tidy
from benchmarks.e2e.encoding import left_pad


def random_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 20, (count,), generator=generator).tolist()
    return [torch.randint(100, 250, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def small_model() -> GPT2LMHeadModel:
    """A random model of six tokens."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=6, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6)
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("length_penalty", [0.0, 0.9, 2.0])
@pytest.mark.parametrize("prompt", [[1], [2, 3, 4], [5, 4, 3, 2, 1, 1, 2]], ids=len)
def test_finds_the_text_of_the_best_score(small_model, prompt, length_penalty):
    """With as many beams as there are texts the search is exhaustive: log-probability over generated length, end token
    counted and prompt not, to the power of the penalty."""
    end, longest = 0, 3
    scores = {}
    for length in range(1, longest + 1):
        for text in itertools.product(range(6), repeat=length):
            finished = end not in text[:-1] and (text[-1] == end or length == longest)
            if finished:
                with torch.no_grad():
                    logits = small_model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
                chosen = logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum()
                scores[text] = float(chosen) / length**length_penalty
    best = max(scores, key=scores.get)
    search = BeamSearch(num_beams=40, length_penalty=length_penalty, no_repeat_ngram_size=0, max_new_tokens=longest)
    found = beam_search(small_model, **left_pad([prompt]), end=[end], search=search)
    assert found == [[token for token in best if token != end]]


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


class Scripted(GPT2LMHeadModel):
    """A model of the tokens 0 to 9 that counts 0 1 2 3 0 1 2 3 ... and holds 9 for the second best."""

    def __init__(self) -> None:
        super().__init__(GPT2Config(vocab_size=10, n_positions=64, n_embd=4, n_layer=1, n_head=1))
        self.following = torch.tensor([1, 2, 3, 0, 9, 9, 9, 9, 9, 9])

    def forward(self, input_ids=None, **arguments):
        output = super().forward(input_ids=input_ids, **arguments)
        logits = torch.zeros_like(output.logits)
        last = input_ids[:, -logits.shape[1] :]
        logits[..., 9] = 10.0
        output.logits = logits.scatter(2, self.following[last][..., None], 20.0)
        return output


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_repeat_rule_sees_generated_tokens_only(num_beams):
    """The 4-gram 0 1 2 3 of the prompt may come once in the text, and not twice."""
    search = BeamSearch(num_beams=num_beams, length_penalty=1.0, no_repeat_ngram_size=4, max_new_tokens=20)
    prompts = left_pad([[5, 5, 0, 1, 2, 3], [0, 1, 2, 3]])
    assert beam_search(Scripted().eval(), **prompts, end=[9], search=search) == [[0, 1, 2, 3, 0, 1, 2]] * 2


def test_without_the_rule_the_text_is_cut_at_its_longest():
    search = BeamSearch(num_beams=1, length_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=9)
    prompt = left_pad([[0, 1, 2, 3]])
    assert beam_search(Scripted().eval(), **prompt, end=[9], search=search) == [[0, 1, 2, 3, 0, 1, 2, 3, 0]]


def test_a_processor_is_shown_what_follows_the_prompt():
    rule = NoRepeatNGramLogitsProcessor(4)
    scores = torch.zeros(1, 10)
    tokens = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    assert rule(tokens, scores)[0, 3] == -torch.inf
    assert GeneratedTokensOnly(rule, prompt_width=4)(tokens, scores)[0, 3] == 0
    assert GeneratedTokensOnly(rule, prompt_width=0)(tokens, scores)[0, 3] == -torch.inf


def test_the_checkpoints_own_settings_are_not_asked(small_model):
    search = BeamSearch(num_beams=2, length_penalty=0.9, no_repeat_ngram_size=0, max_new_tokens=5)
    expected = beam_search(small_model, **left_pad([[1, 2]]), end=[0], search=search)
    own = small_model.generation_config = GenerationConfig(min_new_tokens=5, repetition_penalty=9.0, max_length=1)
    assert beam_search(small_model, **left_pad([[1, 2]]), end=[0], search=search) == expected
    assert small_model.generation_config is own


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
