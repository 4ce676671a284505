"""Attention: who may look at whom, and the one layer that looks.

    Attention(x, context, mask)      self-attention, masked self-attention, cross-attention

Masks are boolean, **True = may be attended to**, and broadcast to (B, H, T, S). What surrounds the
layer (residual, normalisation) is in `model.py`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.special import PAD


def padding_mask(ids: Tensor) -> Tensor:
    """Which positions of a padded batch are real: ids (B, S) → mask (B, 1, 1, S)."""
    return (ids != PAD)[:, None, None, :]


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Which earlier positions, and itself, a position may see: mask (1, 1, T, S).

    The queries are the last `n_queries` of `n_keys` positions, so that one new token (T = 1) sees
    all that a cache holds.

    >>> causal_mask(2, 3, torch.device("cpu"))[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    visible = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return visible.tril(n_keys - n_queries)[None, None]


class LayerCache:
    """Keys and values that one attention layer has already computed, (N, H, S, d_head) each.

    The cache of self-attention `grows` by the positions of each call; that of cross-attention is
    filled by the first call and stays, since the memory does not change.
    """

    def __init__(self, grows: bool) -> None:
        self.grows = grows
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether there is nothing left to compute: cross-attention after its first call."""
        return not self.grows and self._keys is not None

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, (N, H, S, d_head) each."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add the keys and values of new positions, (N, H, T, d_head) each."""
        start, end = self.length, self.length + keys.size(2)
        if not self.grows:
            self._keys, self._values = keys, values
        else:
            self._keys = _with_room(self._keys, keys, end)
            self._values = _with_room(self._values, values, end)
            self._keys[:, :, start:end] = keys
            self._values[:, :, start:end] = values
        self.length = end

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in that order (a row may be taken several times or not at all)."""
        if self._keys is not None and self._values is not None:
            self._keys = self._keys[:, :, : self.length].index_select(0, rows)
            self._values = self._values[:, :, : self.length].index_select(0, rows)


def _with_room(buffer: Tensor | None, new: Tensor, length: int) -> Tensor:
    """A buffer that holds `length` positions; grown by half, so that appending stays cheap."""
    if buffer is not None and buffer.size(2) >= length:
        return buffer
    rows, heads, _, width = new.shape
    grown = new.new_empty(rows, heads, max(length + length // 2, 16), width)
    if buffer is not None:
        grown[:, :, : buffer.size(2)] = buffer
    return grown


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, §3.2): order as an angle.

    Pairs of dimensions (2i, 2i + 1) of queries and keys are turned by
    position · 10000^(-2i/d_head), so that their product depends on the distance of two positions
    only.
    """

    def __init__(self, d_head: int) -> None:
        super().__init__()
        self.d_head = d_head

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Turn `x` (N, H, T, d_head), whose first position is `start`."""
        positions = torch.arange(start, start + x.size(2), device=x.device, dtype=torch.float32)
        pairs = torch.arange(0, self.d_head, 2, device=x.device, dtype=torch.float32)
        angles = positions[:, None] * 10_000.0 ** (-pairs / self.d_head)  # (T, d_head / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, §3.2).

    Each position of `x` looks at the positions of `context` it is allowed to see and takes a
    weighted mean of what it finds. The weights are softmax(q·k / √d_head), computed separately by
    each of `n_heads` heads in its own d_head = d_model / n_heads dimensions.

    The layer serves all three uses in the Transformer; only the arguments differ:

        encoder self-attention    context = x         mask = padding of src
        decoder self-attention    context = x         mask = causal
        cross-attention           context = memory    mask = padding of src

    Keys and values come from one matrix, `kv_proj`: its first half makes keys, its second values.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.kv_proj = nn.Linear(d_model, 2 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        self.rotary = Rotary(d_model // n_heads) if rotary else None

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        """Gather, for every position of `x`, what it attends to in `context`.

        Args:
            x: Where we look from, (B, T, D).
            context: Where we look, (B, S, D).
            mask: True where a position of `x` may see a position of `context`; broadcasts to
                (B, H, T, S). Every row must allow at least one position, or its softmax is
                undefined.
            cache: Keys and values already computed, for decoding one token at a time.
                Self-attention appends to it, so S counts earlier positions too; cross-attention
                fills it once, then ignores `context`.

        Returns:
            (B, T, D). With a cache the result equals that of the full sequence, up to rounding
            (test_cached_equals_uncached).
        """
        q, k, v = self._queries_keys_values(x, context, cache)
        heads = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, H, T, d_head) → (B, T, D)

    def weights(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """The attention weights themselves, by the textbook formula, for plots and alignments.

        Args:
            x: As in `forward`.
            context: As in `forward`.
            mask: As in `forward`.

        Returns:
            (B, H, T, S); every row sums to 1.
        """
        q, k, _ = self._queries_keys_values(x, context, None)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        return scores.masked_fill(~mask, -math.inf).softmax(-1)

    def _queries_keys_values(
        self, x: Tensor, context: Tensor, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project and cut into heads, (B, H, T or S, d_head) each."""
        start = cache.length if cache is not None and cache.grows else 0
        q = self._split(self.q_proj(x))
        if self.rotary is not None:
            q = self.rotary(q, start)
        if cache is not None and cache.filled:
            return q, *cache.read()
        k, v = (self._split(half) for half in self.kv_proj(context).chunk(2, dim=-1))
        if self.rotary is not None:
            k = self.rotary(k, start)
        if cache is None:
            return q, k, v
        cache.append(k, v)
        return q, *cache.read()

    def _split(self, x: Tensor) -> Tensor:
        # (B, T, D) → (B, H, T, d_head)
        return x.view(*x.shape[:-1], self.n_heads, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of heads that are already projected.

    Args:
        q: (B, H, T, d_head).
        k: (B, H, S, d_head).
        v: (B, H, S, d_head).
        mask: True where a query may see a key; broadcasts to (B, H, T, S).
        dropout: On the weights; 0 outside training.

    Returns:
        (B, H, T, d_head), in the dtype of `q`.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        # On a CPU the backward pass in bf16 is several times slower than in float32 with casts.
        return attend(q.float(), k.float(), v.float(), mask, dropout).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
