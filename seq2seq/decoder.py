"""A model as search sees it: rows of growing prefixes, with all that is remembered about them.

    step = ModelStep(model, batch.src)
    hypotheses = search(step, len(batch.src), max_len, config)

The loop around it is in `search.py`; it knows `Step` only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.batch import Batch
from seq2seq.logits import log_sum_exp
from seq2seq.model import Transformer
from seq2seq.search import Step

_USUAL_ROWS = 320  # 64 sentences, 5 beams each


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


class PackedLinear(nn.Module):
    """A linear layer for use only, its weight laid out in the blocks that oneDNN multiplies.

    `nn.Linear` leaves float32 to MKL, which on AMD reaches less than half of oneDNN's speed, and
    lays bf16 weights out anew at every call. These are the operators that `torch.compile` puts in the
    place of a linear layer with constant weights.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _USUAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D'), as the layer it replaces up to rounding."""
        rows = x.flatten(0, -2)
        n = len(rows)
        if n < (usual := usual_rows(n)):
            rows = F.pad(rows, (0, 0, 0, usual - n))
        y = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return y[:n].view(*x.shape[:-1], y.size(-1))


def usual_rows(n: int) -> int:
    """The number of rows to compute n of: less than a quarter more, one of few.

    oneDNN compiles a product for each number of rows that it meets. While sentences are done one by
    one, it would meet them all: that takes longer than the rows to spare, and memory without end.

    >>> [usual_rows(n) for n in (1, 7, 9, 17, 31, 33, 320, 1000)]
    [1, 7, 10, 20, 32, 40, 320, 1024]
    """
    step = 1 << max(n.bit_length() - 3, 0)
    return -(-n // step) * step


def pack(model: nn.Module) -> bool:
    """Replace the linear layers of a model that will only be used by packed ones, in place.

    Returns:
        Whether it could: on a CPU with oneDNN, in float32 or bf16. Else the model is as before.
    """
    weight = next(model.parameters())
    packable = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if not packable or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child))
    return True
