"""A model as search sees it: rows of growing prefixes, with all that is remembered about them.

    step = ModelStep(model, batch.src)
    hypotheses = search(step, len(batch.src), max_len, config)

The loop around it is in `search.py`; it knows `Step` only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    """Several steps over one vocabulary as one: the mean of their probabilities."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """Combine steps that read the same sentences; at least one."""
        self._steps = tuple(steps)

    def __call__(self, last_ids: Tensor) -> Tensor:
        """See `Step`: log-probabilities (N, V)."""
        each = [step(last_ids) for step in self._steps]
        dtype = torch.promote_types(each[0].dtype, torch.float32)
        log_probs = torch.stack([logits.log_softmax(-1, dtype=dtype) for logits in each])
        return log_probs.logsumexp(0) - torch.tensor(len(each), dtype=dtype).log()

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """See `Step`."""
        for step in self._steps:
            step.select(rows, sentences)


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
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


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
