import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.batch import Batch, Example, collate
from seq2seq.config import ModelConfig
from seq2seq.model import Transformer
from seq2seq.objectives import LinearCrossEntropy, LinearRDrop, cross_entropy, r_drop
from tokenizer.special import PAD

TINY = ModelConfig(
    vocab_size=23, d_model=8, d_ff=12, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, dropout=0
)
EXAMPLES = [
    Example([7, 8, 9], [10, 11], 0),
    Example([5], [6, 7, 8, 9, 12], 1),
    Example([9, 9], [], 2),
]


def inputs(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, 8), weight (23, 8), targets (N,)."""
    generator = torch.Generator().manual_seed(n)
    states = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(23, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 23, (n,), generator=generator)
    return (
        states.to(dtype).requires_grad_(),
        weight.to(dtype).requires_grad_(),
        targets,
    )


def reference_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The same loss by PyTorch's own function, from logits (B, T, V)."""
    return F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
        reduction="sum",
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("n", [1, 7, 512, 513, 1300])  # 512 positions make a slice
def test_loss_and_gradients_are_those_of_torch(n: int, smoothing: float) -> None:
    states, weight, targets = inputs(n, torch.float64)
    expected = F.cross_entropy(
        states @ weight.t(), targets, label_smoothing=smoothing, reduction="sum"
    )
    grads = torch.autograd.grad(3 * expected, (states, weight))

    total, nll = LinearCrossEntropy.apply(states, weight, targets, smoothing)
    found = torch.autograd.grad(3 * total, (states, weight))

    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, F.cross_entropy(states @ weight.t(), targets, reduction="sum"))
    torch.testing.assert_close(found, grads)


def test_gradients_agree_with_finite_differences() -> None:
    states, weight, targets = inputs(5, torch.float64)
    assert torch.autograd.gradcheck(
        lambda s, w: LinearCrossEntropy.apply(s, w, targets, 0.1)[0], (states, weight)
    )


def test_narrow_numbers_give_nearly_the_same() -> None:
    states, weight, targets = inputs(600, torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in (states, weight)]
    expected = F.cross_entropy(
        exact[0] @ exact[1].t(), targets, label_smoothing=0.1, reduction="sum"
    )
    expected.backward()
    total, _ = LinearCrossEntropy.apply(states, weight, targets, 0.1)
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=5e-3)
    for narrow, wide in zip((states, weight), exact, strict=True):
        assert narrow.grad is not None
        assert wide.grad is not None
        error = (narrow.grad - wide.grad).norm() / wide.grad.norm()
        assert error < 0.01


def test_confident_models_lose_no_precision() -> None:
    states = torch.tensor([[200.0, -200.0]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    total, _ = LinearCrossEntropy.apply(states, weight, torch.tensor([1]), 0.0)
    assert total.item() == 400.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", [5.0, 8.0])
def test_the_loss_of_a_sure_model_is_not_rounded_away_in_validation(
    margin: float, dtype: torch.dtype
) -> None:
    states, weight = torch.tensor([[margin, 0.0]], dtype=dtype), torch.eye(2, dtype=dtype)
    _, nll = LinearCrossEntropy.apply(states, weight, torch.tensor([0]), 0.0, False)
    assert nll.item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_model_is_that_of_its_logits(smoothing: float) -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY).double(), collate(EXAMPLES)
    loss = cross_entropy(model, batch, smoothing)
    logits = model(batch.src, batch.tgt_in)
    torch.testing.assert_close(
        loss.total, reference_cross_entropy(logits, batch.tgt_out, smoothing)
    )
    torch.testing.assert_close(loss.nll, reference_cross_entropy(logits, batch.tgt_out, 0.0))
    assert loss.n_tokens == 3 + 6 + 1


def test_the_gradient_of_a_model_is_that_of_its_logits() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY).double(), collate(EXAMPLES)
    weights = list(model.parameters())
    logits = model(batch.src, batch.tgt_in)
    expected = torch.autograd.grad(reference_cross_entropy(logits, batch.tgt_out, 0.1), weights)
    found = torch.autograd.grad(cross_entropy(model, batch, 0.1).total, weights)
    torch.testing.assert_close(found, expected)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY).double(), collate(EXAMPLES)
    wider = Batch(*(F.pad(t, (0, 5)) for t in batch.tensors()[:3]), batch.index)
    before, after = cross_entropy(model, batch, 0.1), cross_entropy(model, wider, 0.1)
    torch.testing.assert_close(after.total, before.total)
    assert after.n_tokens == before.n_tokens


def test_the_loss_of_a_batch_is_the_sum_over_its_sentences() -> None:
    torch.manual_seed(0)
    model = Transformer(TINY).double()
    parts = [cross_entropy(model, collate([example]), 0.1) for example in EXAMPLES]
    whole = cross_entropy(model, collate(EXAMPLES), 0.1)
    torch.testing.assert_close(whole.total, torch.stack([p.total for p in parts]).sum())
    assert whole.n_tokens == sum(p.n_tokens for p in parts)


def reference_r_drop(
    first: Tensor, second: Tensor, targets: Tensor, smoothing: float, alpha: float
) -> Tensor:
    """R-Drop from two sets of logits (N, V), by PyTorch's own functions."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    likelihood = sum(
        F.cross_entropy(x, targets, label_smoothing=smoothing, reduction="sum")
        for x in (first, second)
    )
    apart = sum(F.kl_div(x, y, log_target=True, reduction="sum") for x, y in ((p, q), (q, p)))
    return likelihood / 2 + alpha / 4 * apart


@pytest.mark.parametrize("alpha", [0.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, 32, 33, 100])  # 32 positions make a slice
def test_r_drop_and_its_gradients_are_those_of_torch(
    n: int, smoothing: float, alpha: float
) -> None:
    first, weight, targets = inputs(n, torch.float64)
    second = (first + 0.5 * inputs(n + 1, torch.float64)[0][:n]).detach().requires_grad_()
    logits = first @ weight.t(), second @ weight.t()
    expected = reference_r_drop(*logits, targets, smoothing, alpha)
    grads = torch.autograd.grad(3 * expected, (first, second, weight))

    total, nll = LinearRDrop.apply(first, second, weight, targets, smoothing, alpha)
    found = torch.autograd.grad(3 * total, (first, second, weight))

    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, reference_r_drop(*logits, targets, 0.0, 0.0))
    torch.testing.assert_close(found, grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_r_drop_of_narrow_numbers_is_nearly_the_same(dtype: torch.dtype) -> None:
    first, weight, targets = inputs(200, dtype)
    second = (first + 0.5 * inputs(201, dtype)[0][:200]).detach().requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (first, second, weight)]
    logits = exact[0] @ exact[2].t(), exact[1] @ exact[2].t()
    reference_r_drop(*logits, targets, 0.1, 5.0).backward()
    total, _ = LinearRDrop.apply(first, second, weight, targets, 0.1, 5.0)
    total.backward()
    for narrow, wide in zip((first, second, weight), exact, strict=True):
        assert narrow.grad is not None
        assert wide.grad is not None
        assert (narrow.grad - wide.grad).norm() / wide.grad.norm() < 0.01


def test_without_dropout_r_drop_is_the_cross_entropy() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY).double(), collate(EXAMPLES)
    weights = list(model.parameters())
    plain, agreed = cross_entropy(model, batch, 0.1), r_drop(model, batch, 0.1, 5.0)
    torch.testing.assert_close(agreed.total, plain.total)
    torch.testing.assert_close(agreed.nll, plain.nll)
    torch.testing.assert_close(
        torch.autograd.grad(agreed.total, weights), torch.autograd.grad(plain.total, weights)
    )


def test_a_step_against_r_drop_brings_the_passes_together() -> None:
    first, weight, targets = inputs(5, torch.float64)
    second = inputs(6, torch.float64)[0][:5].detach().requires_grad_()

    def distance(a: Tensor, b: Tensor) -> float:
        p, q = ((x @ weight.t()).softmax(1) for x in (a, b))
        return float((p - q).detach().abs().sum())

    total, _ = LinearRDrop.apply(first, second, weight, targets, 0.0, 100.0)
    d_first, d_second = torch.autograd.grad(total, (first, second))
    moved = distance(first - 1e-4 * d_first, second - 1e-4 * d_second)
    assert moved < distance(first, second)


def test_small_gradients_survive_fp16_when_the_loss_is_scaled() -> None:
    states = torch.tensor([[8.0, -8.0]], dtype=torch.float16, requires_grad=True)
    weight = torch.eye(2, dtype=torch.float16, requires_grad=True)
    total, _ = LinearCrossEntropy.apply(states, weight, torch.tensor([0]), 0.0)
    (total * 2.0**15).backward()  # p of the wrong token is 1e-7, two steps above 0 in fp16
    assert states.grad is not None
    assert states.grad[0, 1].item() == pytest.approx(2.0**15 / (1 + math.exp(16)), rel=0.1)


def test_where_nobody_asks_for_gradients_the_loss_is_the_same() -> None:
    torch.manual_seed(0)
    model, batch = Transformer(TINY).double(), collate(EXAMPLES)
    expected = cross_entropy(model, batch, 0.1)
    with torch.no_grad():
        found = cross_entropy(model, batch, 0.1)
    torch.testing.assert_close((found.total, found.nll), (expected.total, expected.nll))
