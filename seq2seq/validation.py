"""Held-out pairs, by which the best model of a run is chosen, and what is measured on them.

Both measures are shared out over the ranks and exact: each sentence is counted once.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from seq2seq.batch import Example, collate
from seq2seq.batching import stable_seed
from seq2seq.config import SearchConfig
from seq2seq.corpus import Corpus
from seq2seq.distributed import World
from seq2seq.model import Transformer
from seq2seq.objectives import cross_entropy
from seq2seq.translator import Translator
from tokenizer.base import Tokenizer

_LOSS_ROWS = 64  # sentences at once; on a GPU `_MORE` times as many, and so below
_TRANSLATED_ROWS = 128
_MORE = 8


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out pairs.

    Attributes:
        src: Source text.
        tgt: Target text.
        examples: The pairs as ids, for the loss; those longer than `data.max_len` are left out.
        tgt_lang: The language of each target, where the model translates into several.
    """

    src: list[str]
    tgt: list[str]
    examples: list[Example]
    tgt_lang: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of the text: scores on other text cannot be compared."""
        text = "".join(f"{s}\n{t}\n" for s, t in zip(self.src, self.tgt, strict=True))
        return hashlib.sha256((text + "\n".join(self.tgt_lang)).encode()).hexdigest()


def hold_out(
    corpus: Corpus, tokenizer: Tokenizer, most: int, seed: int
) -> tuple[Corpus, Validation]:
    """Set a small part of the corpus aside for validation: at most `most`, at most a twentieth.

    Returns:
        The rest, and what was set aside.
    """
    n = max(1, min(most, len(corpus) // 20))
    chosen = sorted(random.Random(stable_seed(seed, len(corpus))).sample(range(len(corpus)), n))
    examples = corpus.examples(np.array(chosen))
    if len(corpus) > n:
        corpus = corpus.without(chosen)
    return corpus, validation_of(examples, tokenizer)


def validation_of(examples: Sequence[Example], tokenizer: Tokenizer) -> Validation:
    """Held-out examples with their text."""
    sides = [e.sides() for e in examples]
    src, tgt = (tokenizer.decode_batch([side[i] for side in sides]) for i in (0, 1))
    names = {i: name for name, i in tokenizer.tags.items()}
    tgt_lang = [names[first] for side, _ in sides for first in side[:1] if first in names]
    return Validation(src, tgt, list(examples), tgt_lang)


@torch.no_grad()
def mean_loss(
    model: Transformer, examples: Sequence[Example], world: World, goes_on: Callable[[], bool]
) -> float | None:
    """Nats per target token over all examples, without smoothing.

    Args:
        model: In evaluation mode.
        examples: With targets, the same on every rank.
        world: Who shares the work.
        goes_on: Asked while some are left, on all ranks together, and answers alike on all.

    Returns:
        None when it did not go on.
    """
    device = model.output.weight.device
    rows = _LOSS_ROWS * (1 if device.type == "cpu" else _MORE)
    ordered = sorted(examples, key=lambda e: len(e.src))
    total, n = 0.0, 0
    for first in range(0, len(ordered), world.size * rows):
        if first and not goes_on():
            return None
        start = first + world.rank * rows
        if mine := ordered[start : start + rows]:
            batch = collate(mine).to(device)
            loss = cross_entropy(model, batch, 0.0)
            total, n = total + float(loss.nll), n + loss.n_tokens
    total, n_all = world.sum_numbers(total, n)
    return total / n_all


def translations(
    translator: Translator,
    validation: Validation,
    world: World,
    progress: Callable[[int, int], None],
    goes_on: Callable[[], bool],
) -> list[str] | None:
    """Greedy translations of all sources, on every rank.

    Args:
        translator: Of the model.
        validation: What to translate, the same on every rank.
        world: Who shares the work.
        progress: Told how many of this rank's share are done, and its size.
        goes_on: Asked while some are left, on all ranks together, and answers alike on all.

    Returns:
        None when it did not go on.
    """
    mine = validation.src[world.rank :: world.size]
    languages = validation.tgt_lang[world.rank :: world.size]
    greedy = SearchConfig(beam_size=1)
    texts: list[str] = []
    rows = _TRANSLATED_ROWS * (1 if translator.on_cpu else _MORE)
    largest = len(validation.src[:: world.size])  # of all shares
    for start in range(0, largest, rows):
        if start and not goes_on():
            return None
        window = slice(start, start + rows)
        found = translator.alternatives(mine[window], greedy, languages[window], with_scores=False)
        texts += [best.text for best, *_ in found]
        progress(len(texts), len(mine))
    results = [""] * len(validation.src)
    for rank, share in enumerate(world.gather(texts)):
        results[rank :: world.size] = share
    return results
