"""One batch of ids to ids, by our model and our search or by CTranslate2's.

    hypotheses, looping_lines = ModelBatches([model]).search(examples, config, keys)

It is all that a process needs that works on batches of another (`Workers`): no text, and no order.
`translator.py` chooses one of the two, and sees a `BatchTranslator` from then on.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from seq2seq.batch import Batch, Example, collate
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.constraints import Constraints
from seq2seq.decoder import new_step, target_log_probs
from seq2seq.engine import Engine, check_search
from seq2seq.hypotheses import Hypothesis, looping
from seq2seq.logits import max_loops
from seq2seq.model import Transformer
from seq2seq.search import search
from tokenizer.special import N_SPECIAL, PAD

Found = tuple[list[list[Hypothesis]], list[int]]


class BatchTranslator(Protocol):
    """What searches for outputs and scores given ones.

    Attributes:
        device: Where it takes its sentences.
        most_positions: The longest sequence that it can read, framing counted; None: any.
        has_threads: Whether it works on several batches at once by itself; copies of the process
            would not have them.
    """

    device: torch.device
    most_positions: int | None
    has_threads: bool

    def check(self, config: SearchConfig, guard_is_asked_for: bool = False) -> None:
        """Refuse a search that it does not have.

        Args:
            config: How to search.
            guard_is_asked_for: Whether the user speaks of `max_repeats`, whatever it is.

        Raises:
            UserError: Naming the option.
        """

    def search(
        self,
        examples: Sequence[Example],
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool = True,
    ) -> Found:
        """Search for the best outputs of some sentences.

        Args:
            examples: The targets are what each output must begin with. The index is the line that a
                sentence is of.
            config: How to search.
            keys: Of each sentence, see `sample`.
            with_scores: Whether single tokens need theirs, of which CTranslate2's search has none.

        Returns:
            Hypotheses of each sentence, best first, none where the model computes numbers that are
            not finite; and the indices of those whose output is in a loop.

        Raises:
            UserError: As `check`.
        """

    def log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """Those of the tokens of each target, EOS last; what may follow means nothing."""


class ModelBatches:
    """One model of ours or an ensemble (`EnsembleStep`); see `BatchTranslator`."""

    has_threads = False

    def __init__(self, models: Sequence[Transformer], n_control: int = N_SPECIAL) -> None:
        """Wrap models.

        Args:
            models: In evaluation mode, of one device and precision; at least one.
            n_control: Of ids that are control ids, the first of the vocabulary.
        """
        self._models = models
        self._n_control = n_control
        self.device = models[0].tgt_embedding.weight.device
        self.most_positions = _most_positions([model.config for model in models])

    def check(self, config: SearchConfig, guard_is_asked_for: bool = False) -> None:
        """See `BatchTranslator`; it has all."""

    @torch.inference_mode()
    def search(
        self,
        examples: Sequence[Example],
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool = True,
    ) -> Found:
        """See `BatchTranslator`."""
        batch = collate(examples).to(self.device)
        max_loop = max_loops(batch.src, config)
        constraints = Constraints(_prefix(batch), max_loop, self._n_control)
        step, max_len = new_step(self._models, batch.src), _max_len(batch, config, self)
        results = search(step, len(examples), max_len, config, keys, constraints)
        return results, sorted(looping(batch.index, results, max_loop))

    def log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """See `BatchTranslator`."""
        batch = collate(examples).to(self.device)
        log_probs: list[list[float]] = target_log_probs(self._models, batch).tolist()
        return log_probs


class EngineBatches:
    """A model that CTranslate2 runs; see `BatchTranslator`."""

    has_threads = True

    def __init__(self, engine: Engine) -> None:
        """Wrap the engine, which takes its sentences as lists."""
        self._engine = engine
        self.device = torch.device("cpu")
        self.most_positions = _most_positions([engine.config])

    def check(self, config: SearchConfig, guard_is_asked_for: bool = False) -> None:
        """See `BatchTranslator`."""
        check_search(config, guard_is_asked_for)

    def search(
        self,
        examples: Sequence[Example],
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool = True,
    ) -> Found:
        """See `BatchTranslator`; loops are not noticed."""
        max_len = _max_len(collate(examples), config, self).tolist()
        sources, prefixes = zip(*(example.sides() for example in examples), strict=True)
        return self._engine.search(sources, max_len, config, prefixes, with_scores), []

    def log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """See `BatchTranslator`."""
        sources, targets = zip(*(example.sides() for example in examples), strict=True)
        return self._engine.score(sources, targets)


def _most_positions(configs: Sequence[ModelConfig]) -> int | None:
    """The longest sequence that all of these models can read; None: any."""
    learned = [c.max_positions for c in configs if c.positions == "learned"]
    return min(learned, default=None)


def _prefix(batch: Batch) -> Tensor:
    """What each output must begin with, (B, P): the targets without BOS."""
    return batch.tgt_in[:, 1:]


def _max_len(batch: Batch, config: SearchConfig, batches: BatchTranslator) -> Tensor:
    """Longest output of each sentence: a multiple of its source and some more, (B,).

    However long the prefix, `max_len_extra` more tokens may follow it.
    """
    n_src, n_prefix = (batch.src != PAD).sum(1), (_prefix(batch) != PAD).sum(1)
    longest = (n_src * config.max_len_factor).long().maximum(n_prefix) + config.max_len_extra
    if batches.most_positions is not None:
        longest = longest.clamp(max=batches.most_positions - 1)
    return longest
