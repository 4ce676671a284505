"""The Transformer (Vaswani et al. 2017): encoder, decoder, and what joins them.

    memory = model.encode(src)                      read the source once
    logits = model.decode(tgt_in, memory)           predict what follows each target position
    logits = model(src, tgt_in)                     both

Attention is in `attention.py`; framing in `batch.py`; choosing words from logits in `search.py`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.attention import Attention, LayerCache, causal_mask, padding_mask, rotary_turns
from seq2seq.config import ModelConfig
from seq2seq.dropout import Dropout

NORM_EPS = {"layer": 1e-5, "rms": 1e-6}  # what keeps a norm from dividing by 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the encoder made of the source; it never travels without its mask.

    Attributes:
        states: (B, S, D).
        mask: True at real positions, (B, 1, 1, S).
    """

    states: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> "Memory":
        """The given sentences, in that order."""
        return Memory(self.states.index_select(0, rows), self.mask.index_select(0, rows))


@dataclass(frozen=True, slots=True)
class DecoderLayerCache:
    """The two caches of one decoder layer."""

    self_attn: LayerCache
    cross_attn: LayerCache


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Sinusoidal positions (Vaswani et al. 2017, §3.5).

        PE(pos, 2i) = sin(pos / 10000^(2i / d_model))      PE(pos, 2i + 1) = cos(the same)

    Args:
        positions: Counted from 0, (T,).
        d_model: D, even.

    Returns:
        (T, D), float32.
    """
    pairs = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * torch.exp(pairs * (-math.log(10_000.0) / d_model))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class Embedding(nn.Module):
    """Ids to vectors: a row of the matrix, scaled by √D, plus its position (Vaswani §3.4, §3.5)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = config.positions
        self.scale = math.sqrt(config.d_model)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        nn.init.normal_(self.weight, std=config.d_model**-0.5)
        if config.positions == "learned":
            self.position_weight = nn.Parameter(torch.empty(config.max_positions, config.d_model))
            nn.init.normal_(self.position_weight, std=0.02)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed ids (B, T) whose first position is `start` → (B, T, D)."""
        x = embed(ids, self.weight) * self.scale
        positions = torch.arange(start, start + ids.size(1), device=ids.device)
        if self.positions == "sinusoidal":
            x = x + sinusoids(positions, x.size(-1)).to(x.dtype)
        elif self.positions == "learned":
            x = x + embed(positions, self.position_weight)
        return self.dropout(x)


def embed(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` (V, D); gradients of a row that occurs often are summed in float32.

    In bf16 the sum over a batch of a frequent word would stop growing after a few hundred terms.
    """
    if weight.dtype in (torch.bfloat16, torch.float16) and torch.is_grad_enabled():
        return F.embedding(ids, weight.float()).to(weight.dtype)
    return F.embedding(ids, weight)


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over D."""
    kind = nn.RMSNorm if config.norm_type == "rms" else nn.LayerNorm
    return kind(config.d_model, eps=NORM_EPS[config.norm_type])


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity between them, at every position alone (Vaswani §3.3).

    With `swiglu` the nonlinearity is a gate: down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.gate = (
            nn.Linear(config.d_model, config.d_ff) if config.activation == "swiglu" else None
        )
        self.down = nn.Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        if self.gate is not None:
            inner = F.silu(self.gate(x)) * self.up(x)
        elif self.activation == "gelu":
            inner = F.gelu(self.up(x))
        else:
            inner = F.relu(self.up(x))
        return self.down(self.dropout(inner))


class Residual(nn.Module):
    """Add & norm around a sublayer.

    before (pre, Xiong et al. 2020):  x + dropout(f(norm(x)))
    after (post, Vaswani §3.1):       norm(x + dropout(f(x)))

    A sublayer calls `enter` on its way in and `leave` on its way out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.pre = config.norm == "pre"
        self.dropout = Dropout(config.dropout)

    def enter(self, x: Tensor) -> Tensor:
        """What the sublayer reads, (B, T, D)."""
        return self.norm(x) if self.pre else x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """What goes on, from the stream `x` and the sublayer's output `y`, (B, T, D)."""
        out = self.dropout.add(x, y)
        return out if self.pre else self.norm(out)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = _attention(config)
        self.self_attn_residual = Residual(config)
        self.ffn = FeedForward(config)
        self.ffn_residual = Residual(config)

    def forward(self, x: Tensor, mask: Tensor, turns: Tensor | None = None) -> Tensor:
        """(B, S, D) → (B, S, D); `mask` is the padding mask of the source, `turns` as for attention."""
        y = self.self_attn_residual.enter(x)
        x = self.self_attn_residual.leave(x, self.self_attn(y, y, mask, turns=turns))
        return self.ffn_residual.leave(x, self.ffn(self.ffn_residual.enter(x)))


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention to the memory, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = _attention(config)
        self.self_attn_residual = Residual(config)
        self.cross_attn = _attention(config)
        self.cross_attn_residual = Residual(config)
        self.ffn = FeedForward(config)
        self.ffn_residual = Residual(config)

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        mask: Tensor,
        cache: DecoderLayerCache | None = None,
        turns: Tensor | None = None,
    ) -> Tensor:
        """One layer of the decoder.

        Args:
            x: (N, T, D). N is B, or K times B when K beams share each sentence of the memory.
            memory: The source, of B sentences.
            mask: Causal, broadcasting to (N, H, T, S).
            cache: For decoding token by token.
            turns: Of the positions of `x`, where they are rotary.

        Returns:
            (N, T, D).
        """
        y = self.self_attn_residual.enter(x)
        own = cache.self_attn if cache else None
        x = self.self_attn_residual.leave(x, self.self_attn(y, y, mask, own, turns))

        # K beams of a sentence are K query rows over its one memory: (B·K, T, D) → (B, K·T, D).
        y = self.cross_attn_residual.enter(x)
        queries = y.reshape(memory.mask.size(0), -1, y.size(-1))
        cross = cache.cross_attn if cache else None
        seen = self.cross_attn(queries, memory.states, memory.mask, cross)
        x = self.cross_attn_residual.leave(x, seen.reshape(y.shape))

        return self.ffn_residual.leave(x, self.ffn(self.ffn_residual.enter(x)))


def _attention(config: ModelConfig) -> Attention:
    return Attention(config.d_model, config.n_heads, dropout=config.attention_dropout)


class Transformer(nn.Module):
    """Encoder and decoder over one vocabulary of V ids.

    `config.tie_embeddings` says which of the source embedding, the target embedding and the output
    projection are one matrix (Press and Wolf 2017; Vaswani §3.4).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.src_embedding = Embedding(config)
        self.tgt_embedding = Embedding(config)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        pre = config.norm == "pre"
        self.encoder_norm = make_norm(config) if pre else nn.Identity()
        self.decoder_norm = make_norm(config) if pre else nn.Identity()
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if name.endswith("proj.weight") or (".ffn." in name and weight.dim() == 2):
                nn.init.xavier_uniform_(weight)
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)
        nn.init.normal_(self.output.weight, std=config.d_model**-0.5)
        self.tie()

    def tie(self) -> None:
        """Make tied matrices one parameter again, the first of them, after something replaced it."""
        if self.config.tie_embeddings == "all":
            self.tgt_embedding.weight = self.src_embedding.weight
        if self.config.tie_embeddings != "none":
            self.output.weight = self.tgt_embedding.weight

    def encode(self, src: Tensor) -> Memory:
        """Read the source.

        Args:
            src: Ids ending in EOS, padded on the right, (B, S).

        Returns:
            States (B, S, D) with their padding mask.
        """
        mask = padding_mask(src)
        x = self.src_embedding(src)
        turns = self._turns(x)
        for layer in self.encoder:
            x = layer(x, mask, turns)
        return Memory(self.encoder_norm(x), mask)

    def decode(
        self, tgt_in: Tensor, memory: Memory, caches: list[DecoderLayerCache] | None = None
    ) -> Tensor:
        """Predict what follows each position of the target.

        Args:
            tgt_in: Ids beginning with BOS, (N, T); with caches only those not yet seen. N is B, or
                a multiple K·B whose rows K·b … K·b + K - 1 belong to sentence b.
            memory: The source, B sentences.
            caches: From `new_caches`, one a layer; they are updated.

        Returns:
            Logits (N, T, V).
        """
        return self.output(self.decode_states(tgt_in, memory, caches))

    def decode_states(
        self, tgt_in: Tensor, memory: Memory, caches: list[DecoderLayerCache] | None = None
    ) -> Tensor:
        """As `decode`, before the projection to the vocabulary: (N, T, D)."""
        start = caches[0].self_attn.length if caches else 0
        mask = causal_mask(tgt_in.size(1), start + tgt_in.size(1), tgt_in.device)
        x = self.tgt_embedding(tgt_in, start)
        turns = self._turns(x, start)
        for i, layer in enumerate(self.decoder):
            x = layer(x, memory, mask, caches[i] if caches else None, turns)
        return self.decoder_norm(x)

    def _turns(self, x: Tensor, start: int = 0) -> Tensor | None:
        """What turns the queries and keys of all layers for x (B, T, D); None unless rotary."""
        if self.config.positions != "rotary":
            return None
        return rotary_turns(start, x.size(1), self.config.d_model // self.config.n_heads, x)

    def new_caches(self) -> list[DecoderLayerCache]:
        """Empty caches for `decode`, one a decoder layer."""
        return [DecoderLayerCache(LayerCache(True), LayerCache(False)) for _ in self.decoder]

    def forward(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        """Logits (B, T, V) of each next target token, given the source and the tokens before it."""
        return self.decode(tgt_in, self.encode(src))


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers, tied ones once."""
    return sum(p.numel() for p in model.parameters())
