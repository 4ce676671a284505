"""What training minimises: a model and a batch give a `Loss`.

    cross_entropy(model, batch, smoothing)        one pass
    r_drop(model, batch, smoothing, alpha)        two passes with different dropout, which should agree

A loss is a sum over target tokens, never a mean: the trainer divides once, over all micro-batches and
ranks. The largest tensor of a small model would be its logits, (B·T, V). It is never made: loss and
gradients are computed together for a slice of the positions at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, linalg

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
    states, targets = _states(model, batch)
    total, nll = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        states, model.output.weight, targets, smoothing, torch.is_grad_enabled()
    )
    return Loss(total, nll, targets.numel())


def r_drop(model: Transformer, batch: Batch, smoothing: float, alpha: float) -> Loss:
    """Cross-entropy of two passes, and what keeps them alike: R-Drop (Liang et al. 2021, eq. 4).

    Dropout makes of one model two, P and Q; per token the loss is

        ½ (CE(P) + CE(Q)) + α/4 (KL(P‖Q) + KL(Q‖P))

    half of the paper's sum, so that its size is that of `cross_entropy` and α is that of the paper
    (5 for translation). An update takes twice the time.

    Args:
        model: Evaluated twice on the batch, in training mode.
        batch: With targets.
        smoothing: ε of the cross-entropy.
        alpha: α.
    """
    (first, targets), (second, _) = _states(model, batch), _states(model, batch)
    total, nll = LinearRDrop.apply(  # type: ignore[no-untyped-call]
        first, second, model.output.weight, targets, smoothing, alpha
    )
    return Loss(total, nll, targets.numel())


def _states(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """The decoder's states at real positions, (N, D), and the tokens that follow, (N,)."""
    states = model.decode_states(batch.tgt_in, model.encode(batch.src))
    real = batch.tgt_out != PAD
    return states[real], batch.tgt_out[real]


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
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        with_gradients: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss and negative log-likelihood.

        Args:
            ctx: For `backward`.
            states: (N, D).
            weight: (V, D).
            targets: The right tokens, (N,).
            smoothing: ε.
            with_gradients: False saves the work where nobody will ask for them.

        Returns:
            Loss and negative log-likelihood, scalars in at least float32.
        """
        exact = torch.promote_types(states.dtype, torch.float32)
        kept = 1.0 - smoothing
        mean_row = weight.to(exact).mean(0)  # mean of logits = states · mean of rows
        total = torch.zeros((), dtype=exact, device=states.device)
        nll = torch.zeros_like(total)
        if with_gradients:
            d_states = torch.empty_like(states, dtype=_wide(states.dtype))
            d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device)
        for rows in _slices(states):
            h, y = states[rows], targets[rows]
            p, norm, right = _softmax(h @ weight.t(), y, exact, rounds=with_gradients)
            mean = h.to(exact) @ mean_row
            nll += (norm - right).sum()
            total += (norm - kept * right - smoothing * mean).sum()
            if with_gradients:
                d_states[rows] = p @ weight - (kept * weight[y] + smoothing * mean_row)
                _add_product(d_weight, p, h)
        if with_gradients:
            d_weight -= (smoothing / weight.size(0)) * states.to(exact).sum(0)
            d_weight.index_add_(0, targets, states.to(exact), alpha=-kept)
            ctx.save_for_backward(d_states, d_weight.to(_wide(weight.dtype)))
        ctx.dtype = states.dtype
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, d_total: Tensor, d_nll: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass prepared."""
        d_states, d_weight = ((d * d_total.to(d.dtype)).to(ctx.dtype) for d in ctx.saved_tensors)
        return d_states, d_weight, None, None, None


class LinearRDrop(torch.autograd.Function):
    """Projection to the vocabulary and the loss of `r_drop`, by slices of positions.

    With p, q the softmax of two rows of logits a, b and D = log p - log q, a position adds to the mean
    of both cross-entropies

        loss            α/4 Σ (p - q) D
        d loss / d a    α/4 (p (D - KL(p‖q)) + p - q)       and for b the same with p and q exchanged

    KL(p‖q) is small beside what rounding leaves of D in bf16, so logits are made float32 first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        alpha: float,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss and negative log-likelihood.

        Args:
            ctx: For `backward`.
            first: States of one pass, (N, D).
            second: States of the other, (N, D).
            weight: (V, D).
            targets: The right tokens, (N,).
            smoothing: ε.
            alpha: α.

        Returns:
            Loss and (mean) negative log-likelihood, scalars in at least float32.
        """
        exact = torch.promote_types(first.dtype, torch.float32)
        half_kept, share = 0.5 * (1.0 - smoothing), 0.25 * alpha
        mean_row = weight.to(exact).mean(0)
        total = torch.zeros((), dtype=exact, device=first.device)
        nll = torch.zeros_like(total)
        d_pair = tuple(torch.empty_like(h, dtype=_wide(h.dtype)) for h in (first, second))
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device)
        for rows in _slices(first, 16):
            y = targets[rows]
            h = torch.cat((first[rows], second[rows]))
            logits = (h @ weight.t()).to(exact)
            log_p, log_q = torch.log_softmax(logits, dim=1).chunk(2)
            right = (log_p.gather(1, y[:, None]) + log_q.gather(1, y[:, None]))[:, 0]
            mean_log = 0.5 * (log_p.mean(1) + log_q.mean(1))
            apart = (log_p - log_q).mul_(share)  # α/4 D
            p, q = log_p.exp_(), log_q.exp_()
            forth, back = linalg.vecdot(p, apart), -linalg.vecdot(q, apart)  # α/4 KL(p‖q), KL(q‖p)
            nll -= 0.5 * right.sum()
            total += (forth + back - half_kept * right - smoothing * mean_log).sum()
            d_a = (apart + (0.5 + share - forth)[:, None]).mul_(p).sub_(q, alpha=share)
            d_b = ((0.5 + share - back)[:, None] - apart).mul_(q).sub_(p, alpha=share)
            d_logits = torch.cat((d_a, d_b)).to(weight.dtype)
            wanted = half_kept * weight[y] + 0.5 * smoothing * mean_row
            for out, d in zip(d_pair, (d_logits @ weight).chunk(2), strict=True):
                out[rows] = d - wanted
            _add_product(d_weight, d_logits, h)
        both = first.to(exact) + second.to(exact)
        d_weight -= (0.5 * smoothing / weight.size(0)) * both.sum(0)
        d_weight.index_add_(0, targets, both, alpha=-half_kept)
        ctx.save_for_backward(*d_pair, d_weight.to(_wide(weight.dtype)))
        ctx.dtype = first.dtype
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, d_total: Tensor, d_nll: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass prepared."""
        scaled = ((d * d_total.to(d.dtype)).to(ctx.dtype) for d in ctx.saved_tensors)
        return *scaled, None, None, None


def _slices(states: Tensor, n: int = 1) -> list[slice]:
    """Cut the rows of `states` so that the logits of a slice fit `n` times where one has its place."""
    size = (_SLICE_CPU if states.device.type == "cpu" else _SLICE_GPU) // n
    return [slice(start, start + size) for start in range(0, len(states), size)]


def _softmax(
    logits: Tensor, right: Tensor, exact: torch.dtype, rounds: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax of logits (N, V), the logarithm of its norm (N,), and the right logits (N,).

    Gradients are made from a softmax that `rounds` to the dtype of the logits. The likeliest token of
    a sure model then has a probability of 1 in bf16, and its loss, near 0, an error of a third.
    """
    p = torch.softmax(logits, dim=1, dtype=logits.dtype if rounds else exact)
    # log p = logit - logsumexp, at the likeliest token, where p is far from rounding to 0
    norm = logits.amax(dim=1).to(exact) - p.amax(dim=1).to(exact).log()
    return p, norm, logits.gather(1, right[:, None])[:, 0].to(exact)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What gradients are kept in until they are scaled: small ones vanish in fp16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _add_product(total: Tensor, p: Tensor, h: Tensor) -> None:
    """Add pᵀ h to `total`, summed in the dtype of `total`."""
    if p.dtype == total.dtype:
        total.addmm_(p.t(), h)
    else:
        total += p.t() @ h
