"""One batch of ids to ids, by our model and our search or by CTranslate2's.

    hypotheses, looping_lines = batch_translator(model).search(examples, config, keys)

It is all that a process needs that works on batches of another (`Workers`): no text, and no order.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from seq2seq.batch import Batch, Example, collate
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.decoder import new_step, target_log_probs
from seq2seq.engine import Engine
from seq2seq.hypotheses import Hypothesis, looping
from seq2seq.logits import max_loops
from seq2seq.model import Transformer
from seq2seq.search import search
from tokenizer.special import PAD

Found = tuple[list[list[Hypothesis]], list[int]]  # see `BatchTranslator.search`


class BatchTranslator(ABC):
    """What searches for outputs of a batch and scores given ones.

    Attributes:
        device: Where it takes its sentences.
        most_positions: The longest sequence that it can read, framing counted; None: any.
        has_threads: Whether it can do several batches at once by itself.
    """

    has_threads: ClassVar[bool]

    def __init__(self, device: torch.device, configs: Sequence[ModelConfig]) -> None:
        """Remember where it computes, and what models of these shapes can read."""
        self.device = device
        learned = [c.max_positions for c in configs if c.positions == "learned"]
        self.most_positions = min(learned, default=None)

    @torch.inference_mode()
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
            UserError: When CTranslate2 runs the model and has no such search.
        """
        batch = collate(examples).to(self.device)
        max_len = self._max_len(batch.src, batch.tgt_in[:, 1:], config)
        return self._search(examples, batch, max_len, config, keys, with_scores)

    def log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """Those of the tokens of each target, EOS last; what may follow means nothing."""
        return self._log_probs(examples)

    @abstractmethod
    def _search(
        self,
        examples: Sequence[Example],
        batch: Batch,
        max_len: Tensor,
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool,
    ) -> Found:
        """See `search`; `batch` are the examples, and `max_len` is the longest output of each, (B,)."""

    @abstractmethod
    def _log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """See `log_probs`."""

    def _max_len(self, src: Tensor, prefix: Tensor, config: SearchConfig) -> Tensor:
        """Longest output of each sentence: a multiple of its source and some more, (B,).

        However long the prefix, `max_len_extra` more tokens may follow it.
        """
        n_src, n_prefix = (src != PAD).sum(1), (prefix != PAD).sum(1)
        longest = (n_src * config.max_len_factor).long().maximum(n_prefix) + config.max_len_extra
        if self.most_positions is not None:
            longest = longest.clamp(max=self.most_positions - 1)
        return longest


class _ByModels(BatchTranslator):
    """One model of ours or an ensemble (`EnsembleStep`), in evaluation mode, of one device and precision."""

    has_threads = False

    def __init__(self, models: Sequence[Transformer]) -> None:
        super().__init__(models[0].tgt_embedding.weight.device, [m.config for m in models])
        self._models = models

    def _search(
        self,
        examples: Sequence[Example],
        batch: Batch,
        max_len: Tensor,
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool,
    ) -> Found:
        prefix, max_loop = batch.tgt_in[:, 1:], max_loops(batch.src, config)  # without BOS
        step = new_step(self._models, batch.src)
        found = search(step, len(examples), max_len, config, keys, prefix, max_loop)
        return found, sorted(looping(batch.index, found, max_loop))

    def _log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        batch = collate(examples).to(self.device)
        log_probs: list[list[float]] = target_log_probs(self._models, batch).tolist()
        return log_probs


class _ByEngine(BatchTranslator):
    """CTranslate2."""

    has_threads = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(torch.device("cpu"), [engine.config])
        self._engine = engine

    def _search(
        self,
        examples: Sequence[Example],
        batch: Batch,
        max_len: Tensor,
        config: SearchConfig,
        keys: Sequence[int],
        with_scores: bool,
    ) -> Found:
        sources, prefixes = zip(*(example.sides() for example in examples), strict=True)
        found = self._engine.search(sources, max_len.tolist(), config, prefixes, with_scores)
        return found, []

    def _log_probs(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        sources, targets = zip(*(example.sides() for example in examples), strict=True)
        return self._engine.score(sources, targets)


def batch_translator(
    model: Transformer | Engine, others: Sequence[Transformer] = ()
) -> BatchTranslator:
    """What translates with a model of ours, with several as one, or with one of CTranslate2."""
    return _ByEngine(model) if isinstance(model, Engine) else _ByModels((model, *others))
