import dataclasses

import pytest
import torch
from torch import Tensor, nn

from seq2seq.config import ModelConfig, OptimConfig
from seq2seq.model import Transformer
from seq2seq.optim import FlatParameters, LossScale, Optimizer, learning_rate

TINY = ModelConfig(
    vocab_size=23, d_model=8, d_ff=12, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, dropout=0
)


def new_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TINY)


def backward(model: nn.Module, seed: int) -> None:
    """Add a gradient that depends on the seed and the weights."""
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(5, 23, (2, 4), generator=generator)
    model(src, src).double().square().mean().backward()


# Flat parameters


def test_the_weights_of_the_module_are_parts_of_the_vector() -> None:
    model = new_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    flat = FlatParameters(model, torch.float32)
    assert {name: torch.equal(p, before[name]) for name, p in model.named_parameters()} == (
        dict.fromkeys(before, True)
    )
    flat.master.fill_(3.0)
    flat.grad.fill_(4.0)
    for p in model.parameters():
        assert (p == 3.0).all()
        assert p.grad is not None
        assert (p.grad == 4.0).all()


def test_matrices_come_first_and_every_number_has_its_place() -> None:
    model = new_model()
    flat = FlatParameters(model, torch.float32)
    parameters = dict(model.named_parameters())
    assert sorted(flat.names) == sorted(parameters)
    flat.master.zero_()
    for p in parameters.values():
        p.data.add_(1.0)
    assert flat.master.max() == 1.0  # no two overlap
    assert flat.master.sum() == sum(p.numel() for p in parameters.values())
    n_matrices = sum(p.numel() for p in parameters.values() if p.dim() > 1)
    assert flat.master[: flat.n_matrices].sum() == n_matrices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_module_computes_in_its_precision_and_the_master_is_wide(dtype: torch.dtype) -> None:
    model = new_model()
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = FlatParameters(model, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert flat.master.dtype == torch.promote_types(dtype, torch.float32)
    for name, view in flat.views(flat.master):
        assert torch.equal(view.float(), exact[name])


def test_gradients_of_narrow_weights_are_summed_wide() -> None:
    model = new_model()
    flat = FlatParameters(model, torch.bfloat16)
    backward(model, 1)
    assert not flat.grad.any()  # nothing there before collect
    flat.collect()
    once = flat.grad.clone()
    backward(model, 1)
    flat.collect()
    assert flat.grad.dtype == torch.float32
    assert once.any()
    assert torch.equal(flat.grad, 2 * once)


def test_other_weights_can_be_used_for_a_while() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = new_model()
        flat = FlatParameters(model, dtype)
        before = flat.master.clone()
        live = model.output.weight.clone()
        with flat.using(torch.ones_like(flat.master)):
            assert (model.output.weight == 1).all()
        assert torch.equal(flat.master, before)
        assert torch.equal(model.output.weight, live)
        with flat.using(None):
            assert torch.equal(model.output.weight, live)


def test_the_weights_come_back_after_an_error() -> None:
    model = new_model()
    flat = FlatParameters(model, torch.float32)
    before = flat.master.clone()
    with pytest.raises(RuntimeError, match="x"), flat.using(torch.ones_like(before)):
        raise RuntimeError("x")
    assert torch.equal(flat.master, before)


# Updates


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_adamw_for_each_parameter(weight_decay: float) -> None:
    # Keys' biases have a gradient of 0 in theory: a larger eps keeps their rounding errors small.
    config = OptimConfig(weight_decay=weight_decay, clip_norm=0.0, eps=1e-4)
    model, other = new_model().double(), new_model().double()
    flat = FlatParameters(model, torch.float64)
    optimizer = Optimizer(flat, config, ema=0.0)
    matrices = [p for p in other.parameters() if p.dim() > 1]
    vectors = [p for p in other.parameters() if p.dim() < 2]
    adam = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=weight_decay,
    )
    for step in range(1, 6):
        backward(model, step)
        flat.collect()
        optimizer.update(0.01 * step, optimizer.gradient_norm())
        adam.zero_grad()
        backward(other, step)
        for group in adam.param_groups:
            group["lr"] = 0.01 * step
        adam.step()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, rtol=1e-9, atol=1e-12)
    assert (flat.grad == 0).all()


def test_large_gradients_are_clipped_as_torch_does() -> None:
    config = OptimConfig(clip_norm=0.001)
    model, other = new_model().double(), new_model().double()
    flat = FlatParameters(model, torch.float64)
    optimizer = Optimizer(flat, config, ema=0.0)
    adam = torch.optim.AdamW(
        other.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0
    )
    for step in range(1, 4):
        backward(model, step)
        backward(other, step)
        expected = nn.utils.clip_grad_norm_(other.parameters(), 0.001)
        norm = optimizer.gradient_norm()
        assert norm == pytest.approx(expected.item())
        optimizer.update(0.01, norm)
        adam.step()
        adam.zero_grad()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-7)


def test_small_updates_of_narrow_weights_add_up_in_the_master() -> None:
    model = new_model()
    flat = FlatParameters(model, torch.bfloat16)
    optimizer = Optimizer(flat, OptimConfig(), ema=0.0)
    start = flat.master.clone()
    for _ in range(10):
        flat.grad.fill_(1.0)
        optimizer.update(1e-6, 1.0)
    moved = (start - flat.master)[: flat.n_matrices]
    assert moved.max() == pytest.approx(1e-5, rel=0.1)
    for name, view in flat.views(flat.master):
        assert torch.equal(dict(model.named_parameters())[name], view.bfloat16())


def test_the_average_follows_the_weights() -> None:
    flat = FlatParameters(new_model(), torch.float32)
    optimizer = Optimizer(flat, OptimConfig(), ema=0.5)
    assert optimizer.ema is not None
    expected = flat.master.clone()
    for step in range(1, 20):
        flat.grad.fill_(1.0)
        optimizer.update(0.01, 1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * flat.master
    torch.testing.assert_close(optimizer.ema, expected)


def test_an_optimizer_goes_on_from_its_tensors() -> None:
    config = OptimConfig(weight_decay=0.1)
    runs: list[tuple[Transformer, FlatParameters, Optimizer]] = []
    for _ in range(2):
        model = new_model()
        flat = FlatParameters(model, torch.float32)
        runs.append((model, flat, Optimizer(flat, config, ema=0.9)))

    def train(run: tuple[Transformer, FlatParameters, Optimizer], steps: range) -> None:
        for step in steps:
            backward(run[0], step)
            run[2].update(0.01, run[2].gradient_norm())

    whole, resumed = runs
    train(whole, range(5))
    saved: dict[str, Tensor] = {k: v.clone() for k, v in whole[2].tensors().items()}
    weights = whole[1].master.clone()
    train(whole, range(5, 10))

    for name, tensor in resumed[2].tensors().items():
        tensor.copy_(saved[name])
    resumed[1].master.copy_(weights)
    resumed[2].reload()
    train(resumed, range(5, 10))

    assert torch.equal(resumed[1].master, whole[1].master)
    assert resumed[2].ema is not None
    assert whole[2].ema is not None
    assert torch.equal(resumed[2].ema, whole[2].ema)


# Schedules

BASE = OptimConfig(lr=1.0, warmup_steps=10, min_lr=0.2)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "constant"])
def test_every_schedule_rises_linearly_to_its_peak(schedule: str) -> None:
    config = dataclasses.replace(BASE, schedule=schedule)
    rates = [learning_rate(config, step, 110) for step in range(1, 11)]
    assert rates == pytest.approx([step / 10 for step in range(1, 11)])


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("inverse_sqrt", 40, 0.5),  # √(10 / 40)
        ("inverse_sqrt", 1000, 0.1),
        ("cosine", 60, 0.6),  # half-way from 1 to 0.2
        ("cosine", 110, 0.2),
        ("cosine", 500, 0.2),
        ("constant", 1000, 1.0),
    ],
)
def test_schedules_at_chosen_steps(schedule: str, step: int, rate: float) -> None:
    config = dataclasses.replace(BASE, schedule=schedule)
    assert learning_rate(config, step, 110) == pytest.approx(rate)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "constant"])
def test_schedules_without_warmup_begin_at_their_peak(schedule: str) -> None:
    config = dataclasses.replace(BASE, schedule=schedule, warmup_steps=0)
    assert learning_rate(config, 1, 100) == pytest.approx(1.0, abs=1e-3)


def test_the_loss_scale_doubles_after_clean_updates_and_halves_on_overflow() -> None:
    scale = LossScale()
    for _ in range(LossScale.PATIENCE):
        assert scale.value == LossScale.START
        scale.clean()
    assert scale.value == 2 * LossScale.START
    scale.clean()
    assert scale.overflowed()
    assert scale.state.tolist() == [LossScale.START, 0]


def test_the_loss_scale_gives_up_in_the_end() -> None:
    scale = LossScale()
    assert sum(1 for _ in iter(scale.overflowed, False)) < 40
