"""A model as search sees it: rows of growing prefixes, with all that is remembered about them.

    step = ModelStep(model, batch.src)
    hypotheses = search(step, len(batch.src), max_len, config)

The loop around it is in `search.py`; it knows `Step` only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seq2seq.batch import Batch
from seq2seq.logits import log_sum_exp
from seq2seq.model import Transformer
from seq2seq.search import Step


class ModelStep:
    """One model, and the keys and values of the prefixes it has seen.

    Beams of one sentence mostly share their past: when they are reordered, only the positions at
    which they differ are copied. To know which, every position of every row carries the number of
    the row that wrote it; all layers share this table.
    """

    @torch.inference_mode()
    def __init__(self, model: Transformer, src: Tensor) -> None:
        """Read the sources.

        Args:
            model: In evaluation mode.
            src: Ids ending in EOS, padded on the right, (B, S).
        """
        self._model = model
        self._memory = model.encode(src)
        self._caches = model.new_caches()
        self._writers = src.new_empty(len(src), 0)  # (N, t)

    @torch.inference_mode()
    def __call__(self, last_ids: Tensor) -> Tensor:
        """See `Step`: logits (N, V)."""
        rows = torch.arange(len(last_ids), device=last_ids.device)
        self._writers = torch.cat((self._writers, rows[:, None]), 1)
        return self._model.decode(last_ids[:, None], self._memory, self._caches)[:, 0]

    @torch.inference_mode()
    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """See `Step`."""
        if sentences is not None:
            self._memory = self._memory.select(sentences)
            for cache in self._caches:
                cache.cross_attn.select(sentences)
        writers = self._writers[rows]
        n_rows = len(rows)
        if n_rows > len(self._writers):
            for cache in self._caches:
                cache.self_attn.select(rows)
        else:
            differ = writers != self._writers[:n_rows]
            targets, positions = differ.nonzero(as_tuple=True)
            for cache in self._caches:
                cache.self_attn.move(targets, positions, rows[targets], n_rows)
        self._writers = writers


class EnsembleStep:
    """Several steps over one vocabulary as one: the arithmetic mean of their probabilities.

    The mean is that of a mixture: what one model deems likely stays possible, where a product of
    probabilities would let each model veto. fairseq takes it too, and so does Sockeye by default.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        """Combine steps that read the same sentences; at least one."""
        self._steps = tuple(steps)

    def __call__(self, last_ids: Tensor) -> Tensor:
        """See `Step`: log-probabilities (N, V)."""
        each = [step(last_ids) for step in self._steps]
        dtype = torch.promote_types(each[0].dtype, torch.float32)
        log_probs = torch.stack([logits.log_softmax(-1, dtype=dtype) for logits in each])
        return _log_mean(log_probs)

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """See `Step`."""
        for step in self._steps:
            step.select(rows, sentences)


def new_step(models: Sequence[Transformer], src: Tensor) -> Step:
    """One model or an ensemble, about to translate.

    Args:
        models: In evaluation mode; at least one.
        src: Ids ending in EOS, padded on the right, (B, S).
    """
    steps = [ModelStep(model, src) for model in models]
    return steps[0] if len(steps) == 1 else EnsembleStep(steps)


@torch.inference_mode()
def target_log_probs(models: Sequence[Transformer], batch: Batch) -> Tensor:
    """The log-probability of each token of given targets, (B, T); meaningless where they are padded.

    Args:
        models: One model or an ensemble, as for `new_step`.
        batch: Sources and targets.
    """
    each = []
    for model in models:
        logits = model(batch.src, batch.tgt_in).flatten(0, 1)
        values = logits.gather(1, batch.tgt_out.flatten()[:, None]) - log_sum_exp(logits)
        each.append(values.view(batch.tgt_out.shape))
    return _log_mean(torch.stack(each))


def _log_mean(log_probs: Tensor) -> Tensor:
    """The logarithm of the mean of the probabilities of M models, (M, …) → (…)."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))
