"""What training minimises: a model and a batch give a `Loss`.

A loss is a sum over target tokens, never a mean: the trainer divides once, over all micro-batches and
ranks. The largest tensor of a small model would be its logits, (B·T, V). It is never made: loss and
gradients are computed together for a slice of the positions at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seq2seq.batch import Batch
from seq2seq.model import Transformer
from tokenizer.special import PAD

_SLICE_CPU = 512  # positions whose logits exist at once: fits the cache of a CPU
_SLICE_GPU = 8192


@dataclass(frozen=True, slots=True)
class Loss:
    """Summed over the target tokens of a batch, in nats.

    Attributes:
        total: What is minimised; carries the gradient.
        nll: Negative log-likelihood, without smoothing or other terms.
        n_tokens: Target tokens, EOS included.
    """

    total: Tensor
    nll: Tensor
    n_tokens: int


def cross_entropy(model: Transformer, batch: Batch, smoothing: float) -> Loss:
    """Label-smoothed cross-entropy (Szegedy et al. 2016, §7; Vaswani et al. 2017, §5.4).

    The wanted distribution gives 1 - ε to the right token and spreads ε evenly over all V, as
    `torch.nn.functional.cross_entropy(label_smoothing=ε)` has it.

    Args:
        model: Evaluated on the batch.
        batch: With targets.
        smoothing: ε.
    """
    states = model.decode_states(batch.tgt_in, model.encode(batch.src))
    real = batch.tgt_out != PAD
    targets = batch.tgt_out[real]
    total, nll = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        states[real], model.output.weight, targets, smoothing
    )
    return Loss(total, nll, targets.numel())


class LinearCrossEntropy(torch.autograd.Function):
    """Projection to the vocabulary and smoothed cross-entropy, by slices of positions.

    With p the softmax of the logits, y the right token, and means over the V tokens, a position has

        loss              logsumexp - (1 - ε) logit[y] - ε mean(logits)
        d loss / d logit  p - (1 - ε) 1[y] - ε / V

    so its gradients need p, two sums and the rows of the right tokens; p is all that is ever stored of
    size (slice, V). Gradients are made in the forward pass and scaled in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Summed loss and negative log-likelihood.

        Args:
            ctx: For `backward`.
            states: (N, D).
            weight: (V, D).
            targets: The right tokens, (N,).
            smoothing: ε.

        Returns:
            Loss and negative log-likelihood, scalars in at least float32.
        """
        exact = torch.promote_types(states.dtype, torch.float32)
        kept = 1.0 - smoothing
        mean_row = weight.to(exact).mean(0)  # mean of logits = states · mean of rows
        total = torch.zeros((), dtype=exact, device=states.device)
        nll = torch.zeros_like(total)
        d_states = torch.empty_like(states)
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device)
        size = _SLICE_CPU if states.device.type == "cpu" else _SLICE_GPU
        for start in range(0, len(states), size):
            rows = slice(start, start + size)
            h, y = states[rows], targets[rows]
            logits = h @ weight.t()
            right = logits.gather(1, y[:, None])[:, 0].to(exact)
            p = torch.softmax(logits, dim=1)
            # log p = logit - logsumexp, at the likeliest token, where p is far from rounding to 0
            norm = logits.amax(dim=1).to(exact) - p.amax(dim=1).to(exact).log()
            mean = h.to(exact) @ mean_row
            nll += (norm - right).sum()
            total += (norm - kept * right - smoothing * mean).sum()
            d_states[rows] = p @ weight - (kept * weight[y] + smoothing * mean_row)
            _add_product(d_weight, p, h)
        d_weight -= (smoothing / weight.size(0)) * states.to(exact).sum(0)
        d_weight.index_add_(0, targets, states.to(exact), alpha=-kept)
        ctx.save_for_backward(d_states, d_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, d_total: Tensor, d_nll: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale what the forward pass prepared."""
        d_states, d_weight = ctx.saved_tensors
        return (
            d_states * d_total.to(d_states.dtype),
            d_weight * d_total.to(d_weight.dtype),
            None,
            None,
        )


def _add_product(total: Tensor, p: Tensor, h: Tensor) -> None:
    """Add pᵀ h to `total`, summed in the dtype of `total`."""
    if p.dtype == total.dtype:
        total.addmm_(p.t(), h)
    else:
        total += p.t() @ h
