from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seq2seq.batch import Example, collate
from seq2seq.checkpoint import save_model
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.decoder import ModelStep
from seq2seq.hardware import DTYPES, multiplies_int8
from seq2seq.model import Transformer
from seq2seq.packed import Int8Linear, pack, usual_rows
from seq2seq.search import search
from seq2seq.translator import Translator
from tokenizer.base import Tokenizer
from tokenizer.special import N_SPECIAL

V = 40
needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="no VNNI")


def tiny_model(precision: str = "fp64") -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=V, d_model=16, d_ff=32, n_heads=2, n_encoder_layers=1, n_decoder_layers=2
    )
    return Transformer(config).to(DTYPES[precision]).eval().requires_grad_(False)


def packed_model(precision: str) -> Transformer:
    model = tiny_model(precision)
    if not pack(model, precision):
        pytest.skip("oneDNN has no such products here")
    return model


def levels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as integers of at most 127 and what 1 means in each, in float64."""
    unit = x.double().abs().amax(1, keepdim=True) / 127
    return (x.double() / unit).round(), unit


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("bf16", 0.1), ("int8", 0.5)])
def test_a_packed_model_gives_the_same_logits(precision: str, atol: float) -> None:
    if precision == "int8" and not multiplies_int8():
        pytest.skip("no VNNI")
    plain, packed = tiny_model(precision), packed_model(precision)
    rows = torch.randint(N_SPECIAL, V, (12, 8)).tolist()
    batch = collate([Example(row[: 1 + i % 8], row[::-1], i) for i, row in enumerate(rows)])
    with torch.inference_mode():
        expected, found = plain(batch.src, batch.tgt_in), packed(batch.src, batch.tgt_in)
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, rtol=0, atol=atol)


def test_a_model_in_float64_is_not_packed() -> None:
    model = tiny_model()
    assert not pack(model, "fp64")
    assert isinstance(model.output, nn.Linear)


def test_a_model_in_bf16_is_not_packed_where_onednn_has_no_such_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = tiny_model("bf16")
    assert not pack(model, "bf16")
    assert isinstance(model.output, nn.Linear)


def test_few_numbers_of_rows_are_usual_and_none_is_much_larger_than_needed() -> None:
    usual = [usual_rows(n) for n in range(1, 4097)]
    assert len(set(usual)) < 50
    assert all(n <= rows < 1.25 * n for n, rows in enumerate(usual, start=1))


def test_rows_to_spare_change_no_other_row() -> None:
    packed = packed_model("fp32")
    x = torch.randn(17, 16)
    with torch.inference_mode():
        assert packed.output(x[:0]).shape == (0, V)
        assert packed.output(x[None]).shape == (1, 17, V)
        assert torch.allclose(packed.output(x), torch.cat([packed.output(row[None]) for row in x]))


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_integers_are_multiplied_and_scaled_back(bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(96, 33, bias=bias)
    linear.weight[:7] *= 50  # outputs of quite different sizes
    x = torch.randn(21, 96) * torch.logspace(-3, 3, 21)[:, None]  # and rows
    (x_levels, x_unit), (w_levels, w_unit) = levels(x), levels(linear.weight)
    expected = (x_levels @ w_levels.T) * x_unit * w_unit.T
    if bias:
        expected += linear.bias.double()
    assert torch.allclose(Int8Linear(linear)(x).double(), expected, rtol=1e-4, atol=1e-6)
    largest = expected.abs().amax(1, keepdim=True)
    assert float(((linear(x) - expected) / largest).abs().max()) < 0.03


@needs_int8
@torch.inference_mode()
def test_a_row_of_integers_does_not_depend_on_the_others() -> None:
    layer = Int8Linear(nn.Linear(48, 70))
    x = torch.randn(45, 48)
    together = layer(x)
    assert all(torch.equal(together[i], layer(x[i : i + 1])[0]) for i in range(len(x)))
    assert torch.equal(layer(x.view(5, 9, 48)), together.view(5, 9, 70))
    assert layer(x[:0]).shape == (0, 70)
    x[3] *= 1e6
    assert torch.equal(layer(x)[:3], together[:3])


@needs_int8
@torch.inference_mode()
def test_what_is_zero_stays_zero_and_what_is_not_finite_stays_so() -> None:
    linear = nn.Linear(48, 16)
    linear.weight[5] = 0
    x = torch.randn(4, 48)
    x[1], x[2, 7], x[3, 7] = 0, torch.nan, torch.inf
    y = Int8Linear(linear)(x)
    assert torch.equal(y[1], linear.bias)
    assert torch.equal(y[:2, 5], linear.bias[5].expand(2))
    assert y[:2].isfinite().all()
    assert not y[2:].isfinite().any()


@needs_int8
def test_a_model_of_integers_searches() -> None:
    model = packed_model("int8")
    assert isinstance(model.output, Int8Linear)
    src = torch.randint(N_SPECIAL, V, (6, 5))
    config = SearchConfig(beam_size=4)
    found = search(ModelStep(model, src), 6, torch.full((6,), 9), config)
    alone = [search(ModelStep(model, row[None]), 1, torch.full((1,), 9), config)[0] for row in src]
    assert [h[0].ids for h in found] == [h[0].ids for h in alone]


@needs_int8
def test_a_wide_model_translates_in_int8_by_itself(
    tmp_path: Path, small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    shape = {"d_ff": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    kinds = []
    for width in (64, 512):
        config = ModelConfig(vocab_size=small_tokenizer.vocab_size, d_model=width, **shape)
        weights = dict(Transformer(config).named_parameters())
        save_model(tmp_path / str(width), config, weights, small_tokenizer)
        translator = Translator.load(tmp_path / str(width), "cpu")
        kinds.append(translator.precision == "int8")
        assert isinstance(translator.model, Transformer)
        assert isinstance(translator.model.output, Int8Linear) == kinds[-1]
    assert kinds == [False, True]
