import dataclasses
import json
import struct
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import Tensor

from seq2seq.config import ModelConfig
from seq2seq.model import Transformer
from seq2seq.weights import build, read_tensors, tensor_shapes
from tokenizer.errors import UserError

TINY = ModelConfig(
    vocab_size=23, d_model=8, d_ff=12, n_heads=2, n_encoder_layers=3, n_decoder_layers=2
)
CONFIGS = [
    TINY,
    dataclasses.replace(TINY, tie_embeddings="target"),
    dataclasses.replace(TINY, tie_embeddings="none", norm="post"),
    dataclasses.replace(TINY, activation="swiglu", norm_type="rms"),
    dataclasses.replace(TINY, positions="learned", max_positions=7),
    dataclasses.replace(TINY, positions="rotary", n_encoder_layers=1, n_decoder_layers=12),
]
SHAPES = tensor_shapes(TINY)


def some_weights() -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_shapes_of_a_config_are_those_of_its_model(config: ModelConfig) -> None:
    model = Transformer(config)
    assert tensor_shapes(config) == {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_weights_of_a_model_make_the_same_model(config: ModelConfig) -> None:
    model = Transformer(config).eval()
    data = safetensors.torch.save(dict(model.named_parameters()))
    again = build(config, read_tensors(data, tensor_shapes(config), "w.safetensors"))
    src, tgt = torch.tensor([[7, 8, 3]]), torch.tensor([[2, 9]])
    assert torch.equal(again(src, tgt), model(src, tgt))
    assert dict(again.named_parameters()).keys() == dict(model.named_parameters()).keys()


FORGERIES: dict[str, tuple[Callable[[Tensor], Tensor | None], str]] = {
    "missing": (lambda w: None, "is missing"),
    "transposed": (lambda w: w.t().contiguous(), "not F32"),
    "too small": (lambda w: w[1:].clone(), "not F32"),
    "flat": (lambda w: w.flatten(), "not F32"),
    "narrow": (lambda w: w.bfloat16(), "BF16"),
    "of whole numbers": (lambda w: w.int(), "I32"),
    "no number": (lambda w: torch.full_like(w, torch.nan), "is not finite"),
    "infinite": (lambda w: torch.full_like(w, torch.inf), "is not finite"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_tensor_that_does_not_fit_is_refused_by_name(forgery: str) -> None:
    change, message = FORGERIES[forgery]
    weights = some_weights()
    name = "encoder.0.self_attn.kv_proj.weight"  # not square
    changed = change(weights.pop(name))
    weights |= {} if changed is None else {name: changed}
    data = safetensors.torch.save(weights)
    with pytest.raises(UserError, match=rf"w\.safetensors: tensor '{name}' .*{message}"):
        read_tensors(data, SHAPES, "w.safetensors")


def test_an_unknown_tensor_is_refused_by_name() -> None:
    data = safetensors.torch.save({**some_weights(), "rest": torch.zeros(2)})
    with pytest.raises(UserError, match=r"w\.safetensors: unknown tensor 'rest'"):
        read_tensors(data, SHAPES, "w.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x06exit 3\x85R.",  # a pickle
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 4) + b"{,,}",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_weights_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"w\.safetensors: "):
        read_tensors(data, SHAPES, "w.safetensors")


@pytest.mark.parametrize(
    "offsets", [[0, 1 << 40], [-4, 0], [8, 0], [0, 3], ["0", "4"], [0], None, [0, 1 << 70]]
)
def test_offsets_that_lie_are_refused(offsets: object) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    header = json.dumps({"a": entry}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(4)
    with pytest.raises(UserError, match="x: damaged"):
        read_tensors(data, {"a": torch.Size([1])}, "x")


def test_a_header_of_many_megabytes_is_not_parsed() -> None:
    header = b"{" + b" " * (99 << 20) + b"}"
    with pytest.raises(UserError, match="not a safetensors file"):
        read_tensors(struct.pack("<Q", len(header)) + header, {}, "x")
