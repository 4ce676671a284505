import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.attention import causal_mask, padding_mask
from seq2seq.config import ModelConfig
from seq2seq.dropout import scale_dropout
from seq2seq.model import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    FeedForward,
    Memory,
    Residual,
    Transformer,
    count_parameters,
    embed,
    sinusoids,
)
from tokenizer.special import BOS, EOS, PAD

M = TypeVar("M", bound=nn.Module)

CPU = torch.device("cpu")
TINY = ModelConfig(
    vocab_size=23,
    d_model=12,
    d_ff=20,
    n_heads=3,
    n_encoder_layers=2,
    n_decoder_layers=2,
    dropout=0.0,
    max_positions=32,
)

# Every value of every choice, and the three that meet in one place in all combinations.
SHAPES = [
    dataclasses.replace(TINY, norm=norm, positions=positions, activation=activation)
    for norm in ("pre", "post")
    for positions in ("sinusoidal", "learned", "rotary")
    for activation in ("relu", "gelu", "swiglu")
] + [dataclasses.replace(TINY, norm_type="rms"), dataclasses.replace(TINY, tie_embeddings="none")]
POSITIONS = [dataclasses.replace(TINY, positions=p) for p in ("sinusoidal", "learned", "rotary")]


def name_of(config: ModelConfig) -> str:
    return f"{config.norm}-{config.norm_type}-{config.positions}-{config.activation}"


every_shape = pytest.mark.parametrize("config", SHAPES, ids=name_of)
every_position = pytest.mark.parametrize("config", POSITIONS, ids=name_of)

SRC = torch.tensor([[7, 8, 9, 10, EOS], [11, 12, EOS, PAD, PAD], [13, EOS, PAD, PAD, PAD]])
TGT_IN = torch.tensor([[BOS, 5, 6, 7, 8, 9], [BOS, 9, 8, PAD, PAD, PAD], [BOS, 20, 5, 5, 5, 21]])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """In float64 every difference that shows is a bug, not rounding."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_weights(module: M) -> M:
    """Weights unlike any initialisation, biases and norms included, so that each one matters."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.5)
    return module.eval()


# Positions and embeddings


@pytest.mark.parametrize("d_model", [2, 6, 16])
def test_sinusoids_follow_the_formula_of_the_paper(d_model: int) -> None:
    table = sinusoids(torch.arange(50), d_model)
    assert table.shape == (50, d_model)
    for pos in (0, 1, 2, 17, 49):
        for i in range(d_model // 2):
            angle = pos / 10_000 ** (2 * i / d_model)
            assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_shift_of_sinusoids_is_a_rotation() -> None:
    # §3.5: PE(pos + k) is a linear function of PE(pos), so products depend on the distance only.
    table = sinusoids(torch.arange(40), 16)
    products = table @ table.T
    torch.testing.assert_close(products[5, 8], products[30, 33], atol=1e-4, rtol=0)


@every_position
def test_an_embedding_is_a_scaled_row_plus_its_position(config: ModelConfig) -> None:
    embedding, ids = Embedding(config).eval(), torch.tensor([[5, 6, 5]])
    rows = embedding.weight[ids] * math.sqrt(config.d_model)
    added = {
        "sinusoidal": lambda: sinusoids(torch.arange(3), config.d_model).double(),
        "learned": lambda: embedding.position_weight[:3],
        "rotary": lambda: torch.zeros(3, config.d_model),
    }[config.positions]()
    torch.testing.assert_close(embedding(ids), rows + added)


@every_position
def test_start_is_the_position_of_the_first_id(config: ModelConfig) -> None:
    embedding = Embedding(config).eval()
    torch.testing.assert_close(embedding(TGT_IN[:, 2:], start=2), embedding(TGT_IN)[:, 2:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_a_frequent_word_do_not_stop_growing_in_half_precision(
    dtype: torch.dtype,
) -> None:
    # A sum of ones in bf16 stays at 256, where the next number is 258; in fp16 at 2048.
    weight = torch.zeros(4, 2, dtype=dtype, requires_grad=True)
    embed(torch.full((1, 8192), 3), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
    assert weight.grad.tolist() == [[0, 0], [0, 0], [0, 0], [8192, 8192]]


# The parts of a layer


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_feed_forward_follows_its_formula_at_every_position_alone(activation: str) -> None:
    ffn = random_weights(FeedForward(dataclasses.replace(TINY, activation=activation)))
    x = torch.randn(2, 5, TINY.d_model)
    up = x @ ffn.up.weight.T + ffn.up.bias
    if ffn.gate is not None:
        gate = x @ ffn.gate.weight.T + ffn.gate.bias
        inner = gate * gate.sigmoid() * up
    elif activation == "gelu":
        inner = up * (1 + torch.erf(up / math.sqrt(2))) / 2
    else:
        inner = up.clamp(min=0)
    torch.testing.assert_close(ffn(x), inner @ ffn.down.weight.T + ffn.down.bias)
    torch.testing.assert_close(ffn(x)[:, 2:3], ffn(x[:, 2:3]))


@pytest.mark.parametrize("norm_type", ["layer", "rms"])
def test_pre_norm_reads_the_norm_and_post_norm_gives_it(norm_type: str) -> None:
    x, y = torch.randn(2, 2, 5, TINY.d_model)
    for norm in ("pre", "post"):
        residual = Residual(dataclasses.replace(TINY, norm=norm, norm_type=norm_type)).eval()
        entered, left = residual.enter(x), residual.leave(x, y)
        if norm == "pre":
            torch.testing.assert_close(entered, residual.norm(x))
            torch.testing.assert_close(left, x + y)
        else:
            torch.testing.assert_close(entered, x)
            torch.testing.assert_close(left, residual.norm(x + y))


def test_rms_norm_scales_to_a_mean_square_of_one_and_layer_norm_shifts_too() -> None:
    x = torch.randn(3, TINY.d_model) * 5 + 2
    rms = Residual(dataclasses.replace(TINY, norm_type="rms")).norm(x)
    layer = Residual(TINY).norm(x)
    ones, zeros = torch.ones(3), torch.zeros(3)
    torch.testing.assert_close(rms.square().mean(-1), ones, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.square().mean(-1), ones, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.mean(-1), zeros, atol=1e-12, rtol=0)


# Layers against PyTorch's


def copy_attention(ours: nn.Module, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.data = torch.cat((ours.q_proj.weight, ours.kv_proj.weight)).detach()
    theirs.in_proj_bias.data = torch.cat((ours.q_proj.bias, ours.kv_proj.bias)).detach()
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def copy_feed_forward(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.linear1.load_state_dict(ours.ffn.up.state_dict())
    theirs.linear2.load_state_dict(ours.ffn.down.state_dict())


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_encoder_layer_equals_that_of_pytorch(norm: str, activation: str) -> None:
    ours = random_weights(EncoderLayer(dataclasses.replace(TINY, norm=norm, activation=activation)))
    theirs = nn.TransformerEncoderLayer(
        TINY.d_model,
        TINY.n_heads,
        TINY.d_ff,
        activation=activation,
        batch_first=True,
        norm_first=norm == "pre",
    ).eval()
    copy_attention(ours.self_attn, theirs.self_attn)
    copy_feed_forward(ours, theirs)
    theirs.norm1.load_state_dict(ours.self_attn_residual.norm.state_dict())
    theirs.norm2.load_state_dict(ours.ffn_residual.norm.state_dict())

    x = torch.randn(*SRC.shape, TINY.d_model)
    expected = theirs(x, src_key_padding_mask=SRC == PAD)
    torch.testing.assert_close(ours(x, padding_mask(SRC)), expected)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoder_layer_equals_that_of_pytorch(norm: str, activation: str) -> None:
    ours = random_weights(DecoderLayer(dataclasses.replace(TINY, norm=norm, activation=activation)))
    theirs = nn.TransformerDecoderLayer(
        TINY.d_model,
        TINY.n_heads,
        TINY.d_ff,
        activation=activation,
        batch_first=True,
        norm_first=norm == "pre",
    ).eval()
    copy_attention(ours.self_attn, theirs.self_attn)
    copy_attention(ours.cross_attn, theirs.multihead_attn)
    copy_feed_forward(ours, theirs)
    theirs.norm1.load_state_dict(ours.self_attn_residual.norm.state_dict())
    theirs.norm2.load_state_dict(ours.cross_attn_residual.norm.state_dict())
    theirs.norm3.load_state_dict(ours.ffn_residual.norm.state_dict())

    n = TGT_IN.size(1)
    x, states = torch.randn(3, n, TINY.d_model), torch.randn(*SRC.shape, TINY.d_model)
    mask = causal_mask(n, n, CPU)
    expected = theirs(x, states, tgt_mask=~mask[0, 0], memory_key_padding_mask=SRC == PAD)
    torch.testing.assert_close(ours(x, Memory(states, padding_mask(SRC)), mask), expected)


# What must hold for any weights


@every_shape
def test_padding_does_not_change_logits(config: ModelConfig) -> None:
    model = random_weights(Transformer(config))
    wider_src, wider_tgt = F.pad(SRC, (0, 3), value=PAD), F.pad(TGT_IN, (0, 2), value=PAD)
    logits = model(wider_src, wider_tgt)[:, : TGT_IN.size(1)]
    torch.testing.assert_close(logits, model(SRC, TGT_IN))


@every_shape
def test_other_sentences_of_the_batch_do_not_change_logits(config: ModelConfig) -> None:
    model = random_weights(Transformer(config))
    together = model(SRC, TGT_IN)
    for row, (src, tgt_in) in enumerate(zip(SRC, TGT_IN, strict=True)):
        alone = model(src[src != PAD][None], tgt_in[tgt_in != PAD][None])
        torch.testing.assert_close(together[row : row + 1, : alone.size(1)], alone)


@every_shape
def test_a_future_token_changes_no_earlier_logit_but_its_own(config: ModelConfig) -> None:
    model = random_weights(Transformer(config))
    before = model(SRC, TGT_IN)
    for t in range(1, TGT_IN.size(1)):
        changed = TGT_IN.clone()
        changed[:, t] = 22
        after = model(SRC, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@every_position
def test_word_order_matters_on_both_sides(config: ModelConfig) -> None:
    model = random_weights(Transformer(config))
    logits = model(SRC[:1], TGT_IN[:1])
    assert not torch.allclose(model(SRC[:1, [1, 0, 2, 3, 4]], TGT_IN[:1]), logits)
    swapped = model(SRC[:1], TGT_IN[:1, [0, 2, 1, 3, 4, 5]])
    assert not torch.allclose(swapped[:, -1], logits[:, -1])


@every_shape
@pytest.mark.parametrize("steps", [[1] * 6, [4, 2], [1, 3, 2]])
def test_cached_equals_uncached(config: ModelConfig, steps: list[int]) -> None:
    model = random_weights(Transformer(config))
    memory, caches = model.encode(SRC), model.new_caches()
    with torch.no_grad():
        parts = [model.decode(part, memory, caches) for part in TGT_IN.split(steps, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.decode(TGT_IN, memory))


@every_shape
@pytest.mark.parametrize("cached", [False, True])
def test_beams_over_one_memory_equal_repeated_memories(config: ModelConfig, cached: bool) -> None:
    model = random_weights(Transformer(config))
    n_beams, length = 4, 5
    memory = model.encode(SRC)
    tgt_in = torch.randint(5, 23, (len(SRC) * n_beams, length))
    repeated = memory.select(torch.arange(len(SRC)).repeat_interleave(n_beams))
    expected = model.decode(tgt_in, repeated)
    if not cached:
        torch.testing.assert_close(model.decode(tgt_in, memory), expected)
        return
    caches = model.new_caches()
    with torch.no_grad():
        parts = [model.decode(tgt_in[:, t : t + 1], memory, caches) for t in range(length)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


@every_position
def test_selected_rows_go_on_as_if_they_had_always_been_there(config: ModelConfig) -> None:
    # Beam search: after three tokens, rows are reordered within their sentences.
    model, n_beams = random_weights(Transformer(config)), 2
    memory, caches = model.encode(SRC), model.new_caches()
    tgt_in = torch.randint(5, 23, (len(SRC) * n_beams, 4))
    rows = torch.tensor([1, 1, 2, 3, 5, 4])
    with torch.no_grad():
        model.decode(tgt_in[:, :3], memory, caches)
        for cache in caches:
            cache.self_attn.select(rows)
        logits = model.decode(tgt_in[:, 3:], memory, caches)
    prefixes = torch.cat((tgt_in[rows, :3], tgt_in[:, 3:]), dim=1)
    torch.testing.assert_close(logits, model.decode(prefixes, memory)[:, 3:])


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], [1, 1]])
def test_a_memory_is_selected_with_its_mask(rows: list[int]) -> None:
    model = random_weights(Transformer(TINY))
    selected = model.encode(SRC).select(torch.tensor(rows))
    alone = model.encode(SRC[rows])
    torch.testing.assert_close(selected.states, alone.states)
    assert torch.equal(selected.mask, alone.mask)


@every_shape
def test_encode_and_decode_are_what_forward_does(config: ModelConfig) -> None:
    model = random_weights(Transformer(config))
    logits = model(SRC, TGT_IN)
    assert logits.shape == (*TGT_IN.shape, config.vocab_size)
    memory = model.encode(SRC)
    assert torch.equal(model.decode(TGT_IN, memory), logits)
    assert torch.equal(model.output(model.decode_states(TGT_IN, memory)), logits)


# Parameters


@pytest.mark.parametrize(("tie", "n_matrices"), [("all", 1), ("target", 2), ("none", 3)])
def test_tied_matrices_are_one_parameter(tie: str, n_matrices: int) -> None:
    model = Transformer(dataclasses.replace(TINY, tie_embeddings=tie))
    source, target, output = (
        model.src_embedding.weight,
        model.tgt_embedding.weight,
        model.output.weight,
    )
    assert (source is target) == (tie == "all")
    assert (output is target) == (tie != "none")
    assert len({id(source), id(target), id(output)}) == n_matrices


@pytest.mark.parametrize(("tie", "n_matrices"), [("all", 1), ("target", 2), ("none", 3)])
def test_parameters_are_counted_as_in_the_paper(tie: str, n_matrices: int) -> None:
    v, d, f = TINY.vocab_size, TINY.d_model, TINY.d_ff
    attention, ffn, norm = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
    encoder = 2 * (attention + ffn + 2 * norm) + norm
    decoder = 2 * (2 * attention + ffn + 3 * norm) + norm
    model = Transformer(dataclasses.replace(TINY, tie_embeddings=tie))
    assert count_parameters(model) == n_matrices * v * d + encoder + decoder


def test_tie_restores_what_a_replaced_matrix_broke() -> None:
    model = Transformer(TINY)
    model.src_embedding.weight = nn.Parameter(torch.ones(TINY.vocab_size, TINY.d_model))
    model.tie()
    assert model.output.weight is model.src_embedding.weight is model.tgt_embedding.weight
    assert (model.output.weight == 1).all()


def test_a_copy_of_a_tied_model_is_tied() -> None:
    model = copy.deepcopy(Transformer(TINY))
    assert model.output.weight is model.src_embedding.weight is model.tgt_embedding.weight


@every_shape
def test_every_parameter_has_a_gradient(config: ModelConfig) -> None:
    model = Transformer(config).train()
    model(SRC, TGT_IN).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@every_shape
def test_logits_of_an_untrained_model_are_about_one_in_size(config: ModelConfig) -> None:
    wider = dataclasses.replace(config, d_model=48, d_ff=96, vocab_size=500)
    assert 0.7 < Transformer(wider)(SRC, TGT_IN).std().item() < 1.4


# Dropout


def test_evaluation_is_deterministic_and_training_follows_the_seed() -> None:
    config = dataclasses.replace(TINY, dropout=0.2, attention_dropout=0.2, activation_dropout=0.2)
    model = random_weights(Transformer(config))

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(SRC, TGT_IN)

    assert torch.equal(logits(1), logits(2))
    model.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.allclose(logits(1), logits(2))


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_kind_of_dropout_reaches_the_logits(name: str) -> None:
    model = random_weights(Transformer(dataclasses.replace(TINY, **{name: 0.5})))
    exact = model(SRC, TGT_IN)
    assert not torch.allclose(model.train()(SRC, TGT_IN), exact)
    scale_dropout(model, 0.0)
    assert torch.allclose(model(SRC, TGT_IN), exact)
    scale_dropout(model, 1.0)
    assert not torch.allclose(model(SRC, TGT_IN), exact)


# Learning


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_three_pairs_are_learnt_by_heart(norm: str) -> None:
    torch.set_default_dtype(torch.float32)
    model = Transformer(dataclasses.replace(TINY, norm=norm)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tgt_out = torch.tensor([[5, 6, 7, 8, 9, EOS], [9, 8, EOS, 0, 0, 0], [20, 5, 5, 5, 21, EOS]])
    for _ in range(80):
        loss = F.cross_entropy(model(SRC, TGT_IN).transpose(1, 2), tgt_out, ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real = tgt_out != PAD
    assert torch.equal(model.eval()(SRC, TGT_IN).argmax(-1)[real], tgt_out[real])
