"""Held-out pairs, by which the best model of a run is chosen."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from seq2seq.batch import Example
from seq2seq.batching import stable_seed
from seq2seq.corpus import Corpus
from tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out pairs.

    Attributes:
        src: Source text.
        tgt: Target text.
        examples: The pairs as ids, for the loss; those longer than `data.max_len` are left out.
    """

    src: list[str]
    tgt: list[str]
    examples: list[Example]

    def digest(self) -> str:
        """SHA-256 of the text: scores on other text cannot be compared."""
        text = "".join(f"{s}\n{t}\n" for s, t in zip(self.src, self.tgt, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()


def hold_out(
    corpus: Corpus, tokenizer: Tokenizer, most: int, seed: int
) -> tuple[Corpus, Validation]:
    """Set a small part of the corpus aside for validation: at most `most`, at most a twentieth.

    Returns:
        The rest, and what was set aside.
    """
    n = max(1, min(most, len(corpus) // 20))
    chosen = sorted(random.Random(stable_seed(seed, len(corpus))).sample(range(len(corpus)), n))
    kept = np.ones(len(corpus), dtype=bool)
    kept[chosen] = False
    examples = [corpus[i] for i in chosen]
    if len(corpus) > n:
        corpus = replace(corpus, starts=corpus.starts[kept], lengths=corpus.lengths[kept])
    return corpus, validation_of(examples, tokenizer)


def validation_of(examples: Sequence[Example], tokenizer: Tokenizer) -> Validation:
    """Held-out examples with their text."""
    sides = [e.sides() for e in examples]
    src, tgt = (tokenizer.decode_batch([side[i] for side in sides]) for i in (0, 1))
    return Validation(src, tgt, list(examples))
