import math

import pytest
import torch
from torch import Tensor

from seq2seq.dropout import Dropout, keep_mask

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
N = 400_000


def training(p: float) -> Dropout:
    return Dropout(p).train()


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_the_share_of_zeros_is_p(p: float) -> None:
    torch.manual_seed(0)
    dropped = (training(p)(torch.ones(N)) == 0).float().mean().item()
    standard_error = math.sqrt(p * (1 - p) / N)
    assert abs(dropped - p) < 4 * standard_error + 1 / 65536


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("p", [0.001, 0.05, 0.1, 0.15, 0.3, 0.5, 0.9])
def test_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(N, dtype=dtype)
    for y in (training(p)(ones), training(p).add(0 * ones, ones)):
        share = (y == 0).double().mean().item()
        standard_error = math.sqrt(share / (1 - share) / N)
        is_scaled = p > 0.004 or dtype in (torch.float32, torch.float64, torch.float16)
        mean = 1 if is_scaled else 1 - p
        assert y.double().mean().item() == pytest.approx(mean, abs=4 * standard_error)
        assert abs(share - p) < 0.008


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.9])
def test_the_scale_is_exact_for_the_rounded_probability(p: float) -> None:
    scale = training(p)(torch.ones(N, dtype=torch.float64)).max().item()
    rounded = round(p * 65536) / 65536
    assert scale == pytest.approx(1 / (1 - rounded), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4), (0, 4)])
def test_shape_and_type_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(shape, dtype=dtype)
    y = training(0.5)(x)
    assert y.shape == x.shape
    assert y.dtype == dtype


def test_what_is_kept_is_scaled_and_nothing_else() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000)
    y = training(0.25)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.75)


def test_neighbours_are_dropped_independently() -> None:
    # Sixteen bits of one word decide each of four neighbours: no two may share them.
    torch.manual_seed(0)
    kept = (keep_mask(torch.Size((N // 8, 8)), 0.5, torch.ones(1)) > 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(N // 8)


def test_same_seed_same_mask_and_another_seed_another_mask() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return training(0.5)(torch.ones(1000))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_two_calls_draw_two_masks() -> None:
    dropout = training(0.5)
    assert not torch.equal(dropout(torch.ones(1000)), dropout(torch.ones(1000)))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_is_x_plus_dropout_of_y(p: float, dtype: torch.dtype) -> None:
    dropout = training(p)
    x, y = torch.randn(2, 50, 7, dtype=dtype)
    torch.manual_seed(3)
    apart = x + dropout(y)
    torch.manual_seed(3)
    torch.testing.assert_close(dropout.add(x, y), apart)


def test_evaluation_is_the_identity_and_draws_nothing() -> None:
    dropout = Dropout(0.5).eval()
    x, y = torch.randn(2, 10)
    before = torch.get_rng_state()
    assert dropout(x) is x
    assert torch.equal(dropout.add(x, y), x + y)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_passes_where_the_value_did() -> None:
    dropout = training(0.5)
    x = torch.randn(100, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), y.detach())
