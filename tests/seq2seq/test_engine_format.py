import dataclasses
import itertools
import struct
from pathlib import Path

import pytest
import torch

from seq2seq.checkpoint import ENGINE_VOCABULARY, ENGINE_WEIGHTS, load_model
from seq2seq.config import ModelConfig
from seq2seq.engine_format import (
    QUANTIZATIONS,
    check_weights,
    engine_files,
    load_engine_model,
    specification,
    vocabulary,
)
from seq2seq.export import export_engine
from seq2seq.model import Transformer
from seq2seq.storage import manifest
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError

TINY = ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, n_heads=2, n_encoder_layers=1, n_decoder_layers=1
)
OTHERS = [
    dataclasses.replace(TINY, d_ff=25),
    dataclasses.replace(TINY, n_heads=4),
    dataclasses.replace(TINY, n_decoder_layers=2),
    dataclasses.replace(TINY, norm="post"),
    dataclasses.replace(TINY, activation="gelu"),
    dataclasses.replace(TINY, vocab_size=41),
]


def weights_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: w.detach() for name, w in Transformer(config).named_parameters()}


def weights_file(
    tokenizer: Tokenizer, scratch: Path, quantization: str = "float32", config: ModelConfig = TINY
) -> bytes:
    files = engine_files(config, weights_of(config), tokenizer, quantization, scratch)
    return files[ENGINE_WEIGHTS]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_what_is_written_is_what_is_expected(
    quantization: str, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    check_weights(TINY, weights_file(small_tokenizer, tmp_path, quantization), "model.bin")


def test_a_model_with_a_weight_that_the_engine_would_leave_out_is_refused() -> None:
    weights = {**weights_of(TINY), "encoder.0.ffn.gate.weight": torch.zeros(24, 16)}
    with pytest.raises(UserError, match=r"no place for encoder\.0\.ffn\.gate\.weight"):
        specification(TINY, weights)


@pytest.mark.parametrize("other", OTHERS)
def test_weights_of_another_shape_are_refused(
    other: ModelConfig, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = weights_file(small_tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"model\.bin: "):
        check_weights(other, data, "model.bin")


def test_a_file_that_is_cut_anywhere_is_refused(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = weights_file(small_tokenizer, tmp_path)
    for n in [*range(40), *range(40, len(data), 1999), len(data) - 1]:
        with pytest.raises(UserError):
            check_weights(TINY, data[:n], "model.bin")
    with pytest.raises(UserError, match="follows its end"):
        check_weights(TINY, data + b"\0", "model.bin")


def counted(name: str) -> bytes:
    """A name as the file has it: its length with the zero behind it, and both."""
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def test_whole_numbers_without_their_scale_are_refused(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = weights_file(small_tokenizer, tmp_path, "int8")
    name = counted("encoder/layer_0/ffn/linear_0/weight_scale")
    assert data.count(name) == 1
    forged = data.replace(name, counted("encoder/layer_0/ffn/linear_0/weight_xcale"))
    with pytest.raises(UserError, match="unknown variable"):
        check_weights(TINY, forged, "model.bin")
    forged = data.replace(name, counted("encoder/layer_0/ffn/linear_0/bias_scale"))
    with pytest.raises(UserError, match=r"linear_0/(weight|bias)' is missing"):
        check_weights(TINY, forged, "model.bin")


@pytest.mark.parametrize(
    "name",
    [
        "encoder/layer_0/ffn/linear_0_noact/weight",  # these CTranslate2 takes up
        "decoder/project_in/weight",
        "decoder/project_in/weight_scale",
        "encoder/layer_0/ffn/linear_0/weight_scale_scale",
        "encoder/layer_0/ffn/linear_0/weight_scale",  # of numbers that are not quantised
        "encoder/num_heads_scale",
    ],
)
def test_what_the_shape_has_no_place_for_is_refused(
    name: str, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = weights_file(small_tokenizer, tmp_path)
    start = 4 + len(counted("TransformerSpec")) + 4  # behind the version, the name and the revision
    (n,) = struct.unpack_from("<I", data, start)
    extra = counted(name) + struct.pack("<BIIBI", 2, 1, 24, 0, 96) + struct.pack("<f", 3) * 24
    forged = data[:start] + struct.pack("<I", n + 1) + extra + data[start + 4 :]
    with pytest.raises(UserError, match=r"unknown variable|is missing or not"):
        check_weights(TINY, forged, "model.bin")


def test_a_setting_that_contradicts_the_config_is_refused(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = weights_file(small_tokenizer, tmp_path)
    start = data.index(b"encoder/num_heads\0") + len(b"encoder/num_heads\0") + 1 + 1 + 4
    assert struct.unpack_from("<h", data, start) == (TINY.n_heads,)
    forged = data[:start] + struct.pack("<h", 0) + data[start + 2 :]
    with pytest.raises(UserError, match="encoder/num_heads"):
        check_weights(TINY, forged, "model.bin")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_numbers_that_are_not_finite_are_refused(
    quantization: str, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for number in (float("nan"), float("inf"), -float("inf")):
        weights = {name: w.clone() for name, w in weights_of(TINY).items()}
        weights["encoder_norm.bias"][3] = number
        with pytest.raises(UserError, match="encoder/layer_norm/beta' holds numbers that are not"):
            engine_files(TINY, weights, small_tokenizer, quantization, tmp_path)


def test_a_weight_too_large_for_its_quantization_is_refused(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    weights = {name: w.clone() for name, w in weights_of(TINY).items()}
    weights["encoder.0.ffn.up.weight"][3, 3] = 1e5
    with pytest.raises(UserError, match=r"--quantization float16: .*linear_0/weight' holds"):
        engine_files(TINY, weights, small_tokenizer, "float16", tmp_path)
    assert engine_files(TINY, weights, small_tokenizer, "bfloat16", tmp_path)


def test_names_of_ids_differ_and_are_those_that_encode_prints() -> None:
    names = vocabulary(1000)
    assert len(set(names)) == 1000
    assert names[5:] == [str(i) for i in range(5, 1000)]


def test_every_shape_of_model_has_a_specification() -> None:
    choices = {
        f.name: f.metadata["choices"]
        for f in dataclasses.fields(ModelConfig)
        if f.metadata["choices"] is not None
    }
    for values in itertools.product(*choices.values()):
        config = dataclasses.replace(TINY, **dict(zip(choices, values, strict=True)))
        meta = {name: w.to("meta") for name, w in weights_of(config).items()}
        specification(config, meta).validate()


@pytest.mark.parametrize("name", [ENGINE_WEIGHTS, ENGINE_VOCABULARY])
def test_a_forged_file_is_refused_even_with_its_manifest(
    name: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    export_engine(load_model(model_folder), "float32", folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"6", b"7").replace(b"norm", b"nurm"))
    with pytest.raises(UserError, match=f"{name}: damaged"):
        load_engine_model(folder)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    (folder / "manifest.json").write_bytes(
        manifest({str(p.relative_to(folder)): p.read_bytes() for p in files})
    )
    with pytest.raises(UserError, match=name):
        load_engine_model(folder)
