import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from seq2seq.attention import (
    Attention,
    LayerCache,
    attend,
    causal_mask,
    padding_mask,
    rotary_turns,
    turned,
)
from tokenizer.special import PAD

CPU = torch.device("cpu")
B, S, T, D, H = 3, 5, 4, 12, 3


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """In float64 every difference that shows is a bug, not rounding."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_attention(dropout: float = 0.0) -> Attention:
    layer = Attention(D, H, dropout=dropout).eval()
    for weight in layer.parameters():
        nn.init.normal_(weight)
    return layer


def turns_of(start: int, n: int) -> torch.Tensor:
    return rotary_turns(start, n, D // H, torch.zeros(0))


def with_the_weights_of(layer: Attention) -> nn.MultiheadAttention:
    reference = nn.MultiheadAttention(D, H, batch_first=True).eval()
    reference.load_state_dict(
        {
            "in_proj_weight": torch.cat((layer.q_proj.weight, layer.kv_proj.weight)),
            "in_proj_bias": torch.cat((layer.q_proj.bias, layer.kv_proj.bias)),
            "out_proj.weight": layer.out_proj.weight,
            "out_proj.bias": layer.out_proj.bias,
        }
    )
    return reference


def everything(n_queries: int, n_keys: int) -> Tensor:
    return torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool)


# Masks


@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (4, 4), (1, 7), (2, 7), (0, 3)])
def test_a_query_sees_itself_and_what_came_before(n_queries: int, n_keys: int) -> None:
    mask = causal_mask(n_queries, n_keys, CPU)
    assert mask.shape == (1, 1, n_queries, n_keys)
    for query in range(n_queries):
        position = n_keys - n_queries + query
        assert mask[0, 0, query].tolist() == [key <= position for key in range(n_keys)]


def test_the_padding_mask_is_true_at_real_positions() -> None:
    ids = torch.tensor([[7, 3, PAD], [7, 8, 3]])
    assert padding_mask(ids).tolist() == [[[[True, True, False]]], [[[True, True, True]]]]


# Against PyTorch. With and without gradients: on a CPU these are two kernels.

with_and_without_gradients = pytest.mark.parametrize("gradients", [True, False])


@with_and_without_gradients
def test_self_attention_equals_multihead_attention(gradients: bool) -> None:
    layer, x = random_attention(), torch.randn(B, T, D)
    expected, weights = with_the_weights_of(layer)(x, x, x, average_attn_weights=False)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(x, x, everything(T, T)), expected)
    torch.testing.assert_close(layer.weights(x, x, everything(T, T)), weights)


@with_and_without_gradients
def test_masked_self_attention_equals_multihead_attention(gradients: bool) -> None:
    layer, x = random_attention(), torch.randn(B, T, D)
    mask = causal_mask(T, T, CPU)
    expected, weights = with_the_weights_of(layer)(
        x, x, x, attn_mask=~mask[0, 0], average_attn_weights=False
    )
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(x, x, mask), expected)
    torch.testing.assert_close(layer.weights(x, x, mask), weights)


@with_and_without_gradients
def test_cross_attention_over_padding_equals_multihead_attention(gradients: bool) -> None:
    layer, x, memory = random_attention(), torch.randn(B, T, D), torch.randn(B, S, D)
    src = torch.tensor([[7, 8, 9, 5, 3], [7, 3, PAD, PAD, PAD], [7, 8, 9, 3, PAD]])
    expected, weights = with_the_weights_of(layer)(
        x, memory, memory, key_padding_mask=src == PAD, average_attn_weights=False
    )
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(x, memory, padding_mask(src)), expected)
    torch.testing.assert_close(layer.weights(x, memory, padding_mask(src)), weights)


def test_gradients_equal_those_of_multihead_attention() -> None:
    layer, x = random_attention(), torch.randn(B, T, D)
    reference, mask = with_the_weights_of(layer), causal_mask(T, T, CPU)
    layer(x, x, mask).square().sum().backward()
    reference(x, x, x, attn_mask=~mask[0, 0])[0].square().sum().backward()
    both = torch.cat((layer.q_proj.weight.grad, layer.kv_proj.weight.grad))
    torch.testing.assert_close(both, reference.in_proj_weight.grad)
    torch.testing.assert_close(layer.out_proj.weight.grad, reference.out_proj.weight.grad)


@with_and_without_gradients
@pytest.mark.parametrize("n", [1, 7, 64, 300])
def test_attend_follows_its_formula_at_every_length(n: int, gradients: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, n, 4)
    mask = causal_mask(n, n, CPU)
    scores = (q @ k.transpose(-2, -1) / 2).masked_fill(~mask, -torch.inf)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(attend(q, k, v, mask), scores.softmax(-1) @ v)


# The weights


@pytest.mark.parametrize("rotary", [False, True])
def test_forward_is_the_mean_of_values_by_the_weights(rotary: bool) -> None:
    layer, x, mask = random_attention(), torch.randn(B, T, D), causal_mask(T, T, CPU)
    turns = turns_of(0, T) if rotary else None
    weights = layer.weights(x, x, mask, turns)
    values = layer.kv_proj(x)[..., D:].unflatten(-1, (H, D // H)).transpose(1, 2)
    heads = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x, x, mask, turns=turns), layer.out_proj(heads))


def test_weights_have_sum_one_and_are_zero_where_masked() -> None:
    layer, x, mask = random_attention(), torch.randn(B, T, D), causal_mask(T, T, CPU)
    weights = layer.weights(x, x, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
    assert (weights[~mask.expand_as(weights)] == 0).all()


def test_what_is_masked_changes_nothing() -> None:
    layer, x, memory = random_attention(), torch.randn(1, T, D), torch.randn(1, S, D)
    mask = torch.tensor([True, True, False, True, False])[None, None, None]
    other = memory.clone()
    other[:, ~mask.flatten()] = 1e6
    assert torch.equal(layer(x, memory, mask), layer(x, other, mask))


def test_without_positions_the_order_of_the_context_does_not_matter() -> None:
    layer, x, memory = random_attention(), torch.randn(B, T, D), torch.randn(B, S, D)
    shuffled = memory[:, torch.randperm(S)]
    mask = everything(T, S)
    torch.testing.assert_close(layer(x, memory, mask), layer(x, shuffled, mask))


# Precision and dropout


def test_bfloat16_training_on_a_cpu_stays_near_float32() -> None:
    q, k, v = (torch.randn(B, H, n, 4, dtype=torch.float32) for n in (T, S, S))
    low = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    out = attend(*low, everything(T, S))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in low)
    torch.testing.assert_close(out.float(), attend(q, k, v, everything(T, S)), atol=0.03, rtol=0)


def test_dropout_is_for_training_only() -> None:
    layer, x, mask = random_attention(dropout=0.5), torch.randn(B, T, D), everything(T, T)
    exact = layer(x, x, mask)
    assert torch.equal(layer(x, x, mask), exact)
    assert not torch.equal(layer.train()(x, x, mask), exact)


# The cache


@pytest.mark.parametrize("steps", [[1] * 40, [3, 1, 20, 1, 1], [17, 17], [1]])
def test_a_growing_cache_gives_back_all_that_was_appended(steps: list[int]) -> None:
    cache = LayerCache(grows=True)
    keys, values = torch.randn(2, B, H, sum(steps), 4)
    for k, v in zip(keys.split(steps, dim=2), values.split(steps, dim=2), strict=True):
        cache.append(k, v)
    assert cache.length == sum(steps)
    assert not cache.filled
    assert all(torch.equal(a, b) for a, b in zip(cache.read(), (keys, values), strict=True))


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], [1, 1, 1, 0]])
def test_select_keeps_the_given_rows_in_that_order(rows: list[int], grows: bool) -> None:
    cache = LayerCache(grows)
    keys, values = torch.randn(2, B, H, S, 4)
    cache.append(keys, values)
    cache.select(torch.tensor(rows))
    assert torch.equal(cache.read()[0], keys[rows])
    assert torch.equal(cache.read()[1], values[rows])


def test_a_cache_grows_on_after_select() -> None:
    cache = LayerCache(grows=True)
    expected = torch.empty(B, H, 0, 4)
    for _ in range(40):
        new, rows = torch.randn(B, H, 1, 4), torch.randint(B, (B,))
        cache.append(new, -new)
        cache.select(rows)
        expected = torch.cat((expected, new), dim=2)[rows]
    assert torch.equal(cache.read()[0], expected)
    assert torch.equal(cache.read()[1], -expected)


def test_move_copies_single_positions_between_rows_and_drops_the_last_rows() -> None:
    cache = LayerCache(grows=True)
    keys, values = torch.randn(2, B, H, S, 4)
    cache.append(keys, values)
    # Position 1 of row 0 comes from row 2, and at once position 1 of row 2's from row 0.
    rows, positions, sources = torch.tensor([[0, 2, 1], [1, 1, 4], [2, 0, 2]])
    expected = [x.clone() for x in (keys, values)]
    for new, old in zip(expected, (keys, values), strict=True):
        new[rows, :, positions] = old[sources, :, positions]
    cache.move(rows, positions, sources, n_rows=2)
    assert all(torch.equal(a, b[:2]) for a, b in zip(cache.read(), expected, strict=True))


def test_move_of_an_empty_cache_leaves_it_empty() -> None:
    cache = LayerCache(grows=True)
    none = torch.zeros(0, dtype=torch.int64)
    cache.move(none, none, none, n_rows=0)
    assert cache.length == 0


def test_a_cache_in_bfloat16_gives_what_attention_without_one_gives() -> None:
    layer, x = random_attention().bfloat16(), torch.randn(B, 5, D).bfloat16() / 4
    cache = LayerCache(grows=True)
    with torch.no_grad():
        parts = [layer(p, p, causal_mask(1, cache.length + 1, CPU), cache) for p in x.split(1, 1)]
        expected = layer(x, x, causal_mask(5, 5, CPU))
    assert parts[0].dtype == torch.bfloat16
    error = (torch.cat(parts, dim=1) - expected).float().norm() / expected.float().norm()
    assert error < 0.02


def test_select_of_an_empty_cache_leaves_it_empty() -> None:
    cache = LayerCache(grows=True)
    cache.select(torch.tensor([0]))
    assert cache.length == 0
    assert not cache.filled


def test_cross_attention_reads_its_context_once() -> None:
    layer, x, memory = random_attention(), torch.randn(B, T, D), torch.randn(B, S, D)
    cache, mask = LayerCache(grows=False), everything(T, S)
    expected = layer(x, memory, mask)
    first = layer(x, memory, mask, cache)
    again = layer(x, torch.full_like(memory, torch.nan), mask, cache)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert cache.filled


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("steps", [[1, 1, 1, 1, 1], [3, 2], [5], [1, 3, 1]])
def test_cached_equals_uncached(steps: list[int], rotary: bool) -> None:
    layer, x = random_attention(), torch.randn(B, 5, D)
    cache, parts = LayerCache(grows=True), []
    for part in x.split(steps, dim=1):
        start, n = cache.length, part.size(1)
        turns = turns_of(start, n) if rotary else None
        parts.append(layer(part, part, causal_mask(n, start + n, CPU), cache, turns))
    turns = turns_of(0, 5) if rotary else None
    whole = layer(x, x, causal_mask(5, 5, CPU), turns=turns)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


# Rotary positions


def turned_at(start: int, x: torch.Tensor) -> torch.Tensor:
    return turned(x, rotary_turns(start, x.size(2), x.size(3), x))


@pytest.mark.parametrize("distance", [0, 1, 7])
def test_a_product_of_turned_vectors_depends_on_the_distance_only(distance: int) -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)
    products = torch.stack(
        [(turned_at(at + distance, q) * turned_at(at, k)).sum() for at in (0, 1, 10, 100)]
    )
    torch.testing.assert_close(products, products[:1].expand(4))


def test_turning_keeps_lengths_and_position_zero_stays() -> None:
    x = torch.randn(2, H, 6, 8)
    torch.testing.assert_close(turned_at(0, x).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned_at(0, x)[:, :, 0], x[:, :, 0])


def test_start_is_the_position_of_the_first_vector() -> None:
    x = torch.randn(2, H, 6, 8)
    torch.testing.assert_close(turned_at(4, x[:, :, 4:]), turned_at(0, x)[:, :, 4:])


def test_pairs_turn_by_the_angles_of_the_paper() -> None:
    # Position p turns pair i by p · 10000^(-2i/d).
    x, d, p = torch.randn(1, 1, 1, 6), 6, 5
    expected = []
    for i in range(d // 2):
        angle = p * 10_000 ** (-2 * i / d)
        cos, sin = math.cos(angle), math.sin(angle)
        expected.append(torch.tensor([[cos, -sin], [sin, cos]]) @ x.view(-1, 2)[i])
    torch.testing.assert_close(turned_at(p, x).flatten(), torch.cat(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_turning_keeps_the_type_and_loses_no_more_than_it_must(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, H, 8, dtype=torch.float64).to(dtype).transpose(1, 2)
    some, exact = turned_at(2, x), turned_at(2, x.double())
    assert some.dtype == dtype
    assert torch.equal(some, exact.to(dtype)) or dtype.itemsize == 2
    torch.testing.assert_close(some.double(), exact, atol=0, rtol=torch.finfo(dtype).eps)
