from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seq2seq.batch import Example, collate
from seq2seq.batching import START
from seq2seq.config import ModelConfig, RunConfig
from seq2seq.gradients import Gradients, Update
from seq2seq.model import Memory, Transformer
from seq2seq.optim import FlatParameters

SHAPE = ModelConfig(
    vocab_size=23, d_model=8, d_ff=12, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, dropout=0
)
EXAMPLES = [Example([5 + i % 7] * (1 + i % 4), [6 + i % 9] * (1 + i % 3), i) for i in range(12)]


class CrampedTransformer(Transformer):
    """A model on a machine that cannot hold more than so many sentences."""

    most = 1 << 30

    def encode(self, src: Tensor) -> Memory:
        if src.size(0) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().encode(src)


def gradients(
    config: RunConfig, batches: list[list[Example]], most: int = 1 << 30
) -> tuple[Tensor, list[str], list[float]]:
    """The summed gradient, the warnings, and the sums of the loss."""
    torch.manual_seed(0)
    model = CrampedTransformer(config.model).double()
    model.most = most
    flat = FlatParameters(model, torch.float64)
    warnings: list[str] = []
    update = Update(tuple(enumerate(map(collate, batches))), START)
    sums = Gradients(model, flat, config, warnings.append).compute(update, 1)
    return flat.grad, warnings, [sums.total, sums.nll, sums.n_tokens]


@pytest.mark.parametrize("r_drop", [0.0, 5.0])
@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_an_update_that_does_not_fit_is_the_same_update_in_pieces(most: int, r_drop: float) -> None:
    config = RunConfig(model=SHAPE)
    config = replace(config, optim=replace(config.optim, r_drop=r_drop))
    batches = [EXAMPLES[:3], EXAMPLES[3:]]
    whole, no_warnings, sums = gradients(config, batches)
    pieces, warnings, piece_sums = gradients(config, batches, most)
    torch.testing.assert_close(pieces, whole)
    assert piece_sums == pytest.approx(sums)
    assert no_warnings == []
    assert all("the update stays the same" in w for w in warnings)
    assert warnings


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_update_that_fails_on_its_way_back_leaves_nothing_behind(dtype: torch.dtype) -> None:
    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    class Late(Transformer):
        most = 1 << 30

        def decode_states(self, tgt_in: Tensor, memory: Memory) -> Tensor:
            states = super().decode_states(tgt_in, memory)
            if len(tgt_in) > self.most:
                states.register_hook(fail)
            return states

    def gradient(most: int) -> Tensor:
        torch.manual_seed(0)
        model = Late(config.model)  # whose output layer has its gradient before the rest fails
        model.most = most
        flat = FlatParameters(model.to(torch.promote_types(dtype, torch.float32)), dtype)
        update = Update(((0, collate(EXAMPLES)),), START)
        Gradients(model, flat, config, lambda _: None).compute(update, 1)
        return flat.grad

    config = RunConfig(model=replace(SHAPE, tie_embeddings="none"))
    whole = gradient(len(EXAMPLES))
    error = (gradient(len(EXAMPLES) - 1) - whole).norm() / whole.norm()
    assert error < (1e-10 if dtype == torch.float64 else 0.02)


def test_a_size_that_failed_is_not_tried_again() -> None:
    torch.manual_seed(0)
    config = RunConfig(model=SHAPE)
    model = CrampedTransformer(SHAPE)
    model.most = 6
    flat = FlatParameters(model, torch.float32)
    warnings: list[str] = []
    made = Gradients(model, flat, config, warnings.append)
    for step in (1, 2):
        made.compute(Update(((0, collate(EXAMPLES)),), START), step)
    assert len(warnings) == 1


def test_one_pair_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        gradients(RunConfig(model=SHAPE), [EXAMPLES], most=0)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    far = [Example([10_000], [6], 0), Example([5], [6], 1)]
    with pytest.raises(IndexError):
        gradients(RunConfig(model=SHAPE), [far])


def test_dropout_follows_from_seed_step_and_number_alone() -> None:
    config = RunConfig(model=replace(SHAPE, dropout=0.3))
    torch.manual_seed(0)
    model = Transformer(config.model).train()
    flat = FlatParameters(model, torch.float32)
    made = Gradients(model, flat, config, print)
    batch = collate(EXAMPLES)
    totals = []
    for step, number in ((1, 0), (1, 0), (1, 1), (2, 0)):
        flat.discard()
        totals.append(made.compute(Update(((number, batch),), START), step).total)
    assert totals[0] == totals[1]
    assert len(set(totals)) == 3
