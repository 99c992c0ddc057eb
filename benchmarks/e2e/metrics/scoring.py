"""All E2E scores in one call: METEOR and the tokeniser, which are Java, run beside the metrics in Python."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

from benchmarks.e2e.metrics import bleu, coco, meteor, mteval, nist, nltk_columns, ptb
from benchmarks.e2e.metrics.java import JavaError
from harness.errors import UserError

METRICS = ("bleu", "nist", "meteor", "rouge_l", "cider")
"""The five official metrics, in the order of the official script and of the papers' tables.

BLEU is that of the script's default, NIST that of its ``-p``: what the papers' tables have.
"""

EXTRA_COLUMNS = ("bleu_mteval_p", "nist_mteval", "nist_nltk", "meteor_nltk")
"""BLEU with ``-p`` (another number only where outputs are almost empty), NIST without ``-p``, and nltk's metrics; the
latter where they can be computed (``meteor_nltk`` needs the WordNet data)."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of outputs that METEOR, the slowest part, has aligned so far, and with their total."""


@dataclass
class Scores:
    """What :func:`score` found, keyed by metric.

    Attributes:
        metrics: the scores, in the order of :data:`METRICS`, then :data:`EXTRA_COLUMNS`. As the official script prints
            them: BLEU, METEOR and ROUGE-L between 0 and 1 (papers print 100 times that), NIST and CIDEr as they are.
        unavailable: why an official metric that was asked for is not among ``metrics``, one sentence each.
        signatures: how each score was computed; ``refs`` in it tells sets of references apart by their content.
        instances: METEOR, ROUGE-L and CIDEr of each output, in the order of the outputs.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    instances: dict[str, list[float]] = field(default_factory=dict)


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Collection[str] = METRICS + EXTRA_COLUMNS,
    progress: Progress | None = None,
) -> Scores:
    """Scores one output per distinct meaning representation against all references of it.

    Texts are lines to the official script: they are stripped, and a line break inside one counts as a space. An empty
    output is scored as such.

    Args:
        hypotheses: the outputs.
        references: for each output, its references, at least one, none of them blank.
        metrics: which of :data:`METRICS` and :data:`EXTRA_COLUMNS` to compute. METEOR takes most of the time.
        progress: called from another thread.

    Raises:
        UserError: if the counts differ, there is nothing to score, a reference is missing or blank, or a metric is
            unknown.
    """
    hypotheses = [_line(text) for text in hypotheses]
    references = [[_line(text) for text in group] for group in references]
    _check(hypotheses, references)
    known = METRICS + EXTRA_COLUMNS
    if unknown := set(metrics).difference(known):
        raise UserError(f"unknown metric {min(unknown)!r}: choose among {', '.join(known)}")
    wanted = [name for name in known if name in metrics]
    described = _describe(references)
    found = Scores()
    with ExitStack() as stack:
        captions = {"meteor", "rouge_l", "cider"}.intersection(wanted)
        worker = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        process = _start_meteor(stack, found) if "meteor" in captions else None
        tokenized = worker.submit(ptb.tokenize_all, hypotheses, references) if captions else None
        _score_in_python(found, wanted, hypotheses, references, described)
        if tokenized:
            _score_captions(found, wanted, tokenized, worker, process, progress, described)
    for values in (found.metrics, found.unavailable, found.signatures, found.instances):
        in_order = {name: values[name] for name in wanted if name in values}
        values.clear()
        values.update(in_order)
    return found


def _line(text: str) -> str:
    return " ".join(text.splitlines()).strip()


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} hypotheses for {len(references)} groups of references: give one hypothesis for each "
            "distinct meaning representation, in the order of the references"
        )
    if not hypotheses:
        raise UserError("there are no hypotheses to score")
    for number, group in enumerate(references, start=1):
        if not all(group) or not group:
            what = "a blank reference" if group else "no reference"
            raise UserError(f"group {number} of the references has {what}: every hypothesis needs at least one")


def _describe(references: Sequence[Sequence[str]]) -> str:
    counts = {len(group) for group in references}
    content = "\n\n".join("\n".join(group) for group in references)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"nrefs:{counts.pop() if len(counts) == 1 else 'var'}|refs:{digest}"


def _score_in_python(
    found: Scores,
    wanted: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    described: str,
) -> None:
    """Everything on 13a tokens."""
    tokens = functools.cache(lambda variant: mteval.tokenize_all(hypotheses, references, variant))
    official = {
        "bleu": (bleu, "mteval"),
        "nist": (nist, "mteval-p"),
        "bleu_mteval_p": (bleu, "mteval-p"),
        "nist_mteval": (nist, "mteval"),
    }
    for name, (module, variant) in official.items():
        if name in wanted:
            found.metrics[name] = module.compute(*tokens(variant), variant)
            found.signatures[name] = module.signature(variant, described)
    for name, compute in {"nist_nltk": nltk_columns.nist, "meteor_nltk": nltk_columns.meteor}.items():
        if name in wanted and nltk_columns.is_computable(name, tokens("mteval-p")[0]):
            found.metrics[name] = compute(*tokens("mteval-p"))
            found.signatures[name] = nltk_columns.signature(name, described)


def _score_captions(
    found: Scores,
    wanted: Sequence[str],
    tokenized: Future[ptb.Tokenized],
    worker: ThreadPoolExecutor,
    process: meteor.Meteor | None,
    progress: Progress | None,
    described: str,
) -> None:
    """Everything on Penn Treebank tokens."""
    try:
        tokens = tokenized.result()
    except JavaError as error:
        for name in {"meteor", "rouge_l", "cider"}.intersection(wanted) - found.unavailable.keys():
            found.unavailable[name] = str(error)
        return
    texts = (tokens.hypotheses, tokens.references)
    aligned = worker.submit(process.compute, *texts, progress) if process else None
    for name, compute in {"rouge_l": coco.rouge_l, "cider": coco.cider}.items():
        if name in wanted:
            found.metrics[name], found.instances[name] = compute(*texts)
            found.signatures[name] = coco.signature(name, described, tokens.tokenizer)
    if aligned:
        try:
            found.metrics["meteor"], found.instances["meteor"] = aligned.result()
        except JavaError as error:
            found.unavailable["meteor"] = str(error)
        else:
            found.signatures["meteor"] = meteor.signature(described, tokens.tokenizer)


def _start_meteor(stack: ExitStack, found: Scores) -> meteor.Meteor | None:
    try:
        return stack.enter_context(meteor.Meteor())
    except JavaError as error:
        found.unavailable["meteor"] = str(error)
        return None
