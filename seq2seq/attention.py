"""Attention: who may look at whom, and the one layer that looks.

    Attention(x, context, mask)      self-attention, masked self-attention, cross-attention

Masks are boolean, **True = may be attended to**, and broadcast to (B, H, T, S). What surrounds the
layer (residual, normalisation) is in `model.py`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.dropout import Dropout, keep_mask
from tokenizer.special import PAD

_SHORT = 256  # keys


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

    One position of one row is contiguous memory, because that is what a search moves. On a CPU what
    is bf16 is kept in float32: attention over a few positions is then twice as fast.
    """

    def __init__(self, grows: bool) -> None:
        self.grows = grows
        self.length = 0
        self._keys: Tensor | None = None  # (N, capacity, H, d_head)
        self._values: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether there is nothing left to compute: cross-attention after its first call."""
        return not self.grows and self._keys is not None

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, (N, H, S, d_head) each."""
        assert self._keys is not None
        assert self._values is not None
        keys, values = self._keys[:, : self.length], self._values[:, : self.length]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add the keys and values of new positions, (N, H, T, d_head) each."""
        start, self.length = self.length, self.length + keys.size(2)
        capacity = max(self.length + self.length // 2, 16) if self.grows else self.length
        self._keys = _with_room(self._keys, keys, self.length, capacity)
        self._values = _with_room(self._values, values, self.length, capacity)
        self._keys[:, start : self.length] = keys.transpose(1, 2)
        self._values[:, start : self.length] = values.transpose(1, 2)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in that order (a row may be taken several times or not at all)."""
        if self._keys is not None and self._values is not None:
            self._keys = _select(self._keys, rows, self.length)
            self._values = _select(self._values, rows, self.length)

    def move(self, rows: Tensor, positions: Tensor, sources: Tensor, n_rows: int) -> None:
        """Keep the first `n_rows` rows, after some of their positions were copied from other rows.

        Args:
            rows: Where to, (M,).
            positions: Of the copied keys and values, in both rows, (M,).
            sources: The rows to copy from, as they are before any copy, (M,).
            n_rows: At most N.
        """
        if self._keys is None or self._values is None:
            return
        for buffer in (self._keys, self._values):
            vectors = buffer.flatten(0, 1)  # one a position: (N · capacity, H, d_head)
            copied = vectors.index_select(0, sources * buffer.size(1) + positions)
            vectors.index_copy_(0, rows * buffer.size(1) + positions, copied)
        self._keys, self._values = self._keys[:n_rows], self._values[:n_rows]


def _with_room(buffer: Tensor | None, new: Tensor, length: int, capacity: int) -> Tensor:
    """A buffer that holds `length` positions; a new one has room for `capacity`."""
    if buffer is not None and buffer.size(1) >= length:
        return buffer
    rows, heads, _, width = new.shape
    on_cpu = new.device.type == "cpu" and new.dtype == torch.bfloat16
    dtype = torch.float32 if on_cpu else new.dtype
    grown = torch.empty(rows, capacity, heads, width, dtype=dtype, device=new.device)
    if buffer is not None:
        grown[:, : buffer.size(1)] = buffer
    return grown


def _select(buffer: Tensor, rows: Tensor, length: int) -> Tensor:
    """The given rows of a buffer filled up to `length`; a row that keeps its place is not copied."""
    n = rows.size(0)
    if n > buffer.size(0):
        larger = buffer.new_empty(n, *buffer.shape[1:])
        larger[:, :length] = buffer[:, :length].index_select(0, rows)
        return larger
    moved = (rows != torch.arange(n, device=rows.device)).nonzero()[:, 0]
    if moved.numel():
        buffer.index_copy_(0, moved, buffer.index_select(0, rows[moved]))
    return buffer[:n]


def rotary_turns(start: int, n: int, d_head: int, like: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, §3.2): order as an angle.

    Pairs of dimensions (2i, 2i + 1) of queries and keys are turned by
    position · 10000^(-2i/d_head), so that their product depends on the distance of two positions
    only. All layers turn alike.

    Args:
        start: The first position.
        n: How many, T.
        d_head: Width of a head, even.
        like: Gives the device, and the precision where that is more than float32.

    Returns:
        Complex numbers of magnitude 1, (T, d_head / 2), for `turned`.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # no complex numbers have 16 bits
    positions = torch.arange(start, start + n, device=like.device, dtype=dtype)
    pairs = torch.arange(0, d_head, 2, device=like.device, dtype=dtype)
    angles = positions[:, None] * 10_000.0 ** (-pairs / d_head)
    return torch.polar(torch.ones_like(angles), angles)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys (N, H, T, d_head), each pair taken for a complex number, which a product turns."""
    pairs = x.to(turns.real.dtype).view(*x.shape[:-1], -1, 2)
    return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(x.dtype)


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
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = Dropout(dropout)
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.kv_proj = nn.Linear(d_model, 2 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor,
        cache: LayerCache | None = None,
        turns: Tensor | None = None,
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
            turns: Of the positions of `x` and `context`, which are the same ones; see `rotary_turns`.

        Returns:
            (B, T, D). With a cache the result equals that of the full sequence, up to rounding
            (test_cached_equals_uncached).
        """
        q, k, v = self._queries_keys_values(x, context, cache, turns)
        heads = attend(q, k, v, mask, self.dropout.p if self.training else 0.0)
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (B, H, T, d_head) → (B, T, D)

    def weights(
        self, x: Tensor, context: Tensor, mask: Tensor, turns: Tensor | None = None
    ) -> Tensor:
        """The attention weights themselves, by the textbook formula, for plots and alignments.

        Args:
            x: As in `forward`.
            context: As in `forward`.
            mask: As in `forward`.
            turns: As in `forward`.

        Returns:
            (B, H, T, S); every row sums to 1.
        """
        q, k, _ = self._queries_keys_values(x, context, None, turns)
        return attention_weights(q, k, mask)

    def _queries_keys_values(
        self, x: Tensor, context: Tensor, cache: LayerCache | None, turns: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project and cut into heads, (B, H, T or S, d_head) each."""
        q = self._split(self.q_proj(x))
        if cache is not None and cache.filled:
            return q, *cache.read()
        k, v = (self._split(half) for half in self.kv_proj(context).chunk(2, dim=-1))
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        if cache is None:
            return q, k, v
        cache.append(k, v)
        return q, *cache.read()

    def _split(self, x: Tensor) -> Tensor:
        # (B, T, D) → (B, H, T, d_head)
        return x.view(*x.shape[:-1], self.n_heads, -1).transpose(1, 2)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·k / √d_head) over the keys that `mask` allows (Vaswani et al. 2017, eq. 1).

    Args:
        q: (B, H, T, d_head).
        k: (B, H, S, d_head).
        mask: True where a query may see a key; broadcasts to (B, H, T, S).

    Returns:
        (B, H, T, S); every row sums to 1.
    """
    forbidden = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(
        ~mask, -math.inf
    )
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)
    return (scores + forbidden).softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of heads that are already projected.

    Args:
        q: (B, H, T, d_head).
        k: (B, H, S, d_head).
        v: (B, H, S, d_head).
        mask: True where a query may see a key; broadcasts to (B, H, T, S).
        dropout: On the weights; 0 outside training.

    Returns:
        (B, H, T, d_head), in the dtype of `q`; computed in that of `k` (see `LayerCache`).
    """
    if q.dtype != k.dtype:
        return attend(q.to(k.dtype), k, v, mask, dropout).to(q.dtype)
    if q.device.type == "cpu" and torch.is_grad_enabled() and k.size(2) <= _SHORT:
        # Training on a CPU: at the lengths of sentences two batched products and their backward pass
        # take a fraction of the fused kernel's time in bf16, and about as much in float32 (examples/bench).
        weights = attention_weights(q, k, mask)
        if dropout:
            weights = weights * keep_mask(weights.shape, dropout, weights)
        return weights @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
