"""Our models in the format of CTranslate2: written, and read without trust.

    files = engine_files(config, weights, tokenizer, "int8", scratch)     to be published
    model = load_engine_model(folder)                                     checked, to be run


CTranslate2 (Klein et al. 2020, github.com/OpenNMT/CTranslate2) is an optional package; it is
imported where it is used. What runs such a model is in `engine.py`; whether it still translates as the
original does, `export.py` says.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seq2seq.checkpoint import (
    CONFIG,
    CONFIG_LIMIT,
    ENGINE_VOCABULARY,
    ENGINE_WEIGHTS,
    describe,
    read_config,
    read_parts,
    tokenizer_files,
)
from seq2seq.config import ModelConfig
from seq2seq.model import NORM_EPS, sinusoids
from seq2seq.weights import HEADER, tensor_shapes
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import read_file, write_json
from tokenizer.special import BOS, EOS, MASK, N_SPECIAL, PAD, UNK

QUANTIZATIONS = (
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
)
N_POSITIONS = 1024  # rows of the table of sinusoids
_CONTROL = {PAD: "<pad>", UNK: "<unk>", BOS: "<s>", EOS: "</s>", MASK: "<mask>"}
_TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
_ITEM_SIZES = (4, 1, 2, 4, 2, 2)  # bytes, in that order
_FLOATS = (_TYPES["float32"], _TYPES["float16"], _TYPES["bfloat16"])
_SCALE = "_scale"

Get = Callable[[str], Tensor]


@dataclass(frozen=True)
class EngineModel:
    """A model for CTranslate2 as it lies in a folder.

    Attributes:
        config: Its shape.
        files: The engine's files, by name.
        tokenizer: Its tokenizer.
        folder: Where it came from.
    """

    config: ModelConfig
    files: dict[str, bytes]
    tokenizer: Tokenizer
    folder: Path


def require_engine() -> None:
    """Say what to do where CTranslate2 is not installed.

    Raises:
        UserError: When it is not.
    """
    try:
        import ctranslate2  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"CTranslate2 is not installed ({error}); pip install 'tfm[ctranslate2]'"
        ) from None


def load_engine_model(folder: Path) -> EngineModel:
    """Read a model for CTranslate2, trusting nothing in it.

    Raises:
        UserError: Naming the file that is missing, damaged or impossible.
    """
    require_engine()
    config = read_config(folder)
    n_weights = sum(shape.numel() for shape in tensor_shapes(config).values())
    limits = {
        CONFIG: CONFIG_LIMIT,
        ENGINE_WEIGHTS: HEADER + 4 * (n_weights + N_POSITIONS * config.d_model),
        ENGINE_VOCABULARY: 64 * config.vocab_size,
    }
    contents, tokenizer = read_parts(folder, config, limits)
    check_weights(config, contents[ENGINE_WEIGHTS], str(folder / ENGINE_WEIGHTS))
    if contents[ENGINE_VOCABULARY] != write_json(vocabulary(config.vocab_size)):
        raise UserError(f"{folder / ENGINE_VOCABULARY}: is not the vocabulary of such a model")
    files = {name: contents[name] for name in limits}
    files[CONFIG] = write_json(_engine_config(config))  # whatever else the file may ask for
    return EngineModel(config, files, tokenizer, folder)


def engine_files(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    quantization: str,
    scratch: Path,
) -> dict[str, bytes]:
    """The files of a model folder for CTranslate2, manifest apart: names and contents.

    Args:
        config: The shape.
        weights: By plain name, as in a checkpoint.
        tokenizer: The model's tokenizer.
        quantization: One of `QUANTIZATIONS`: how the weights are stored.
        scratch: An empty folder that the engine may write into.

    Raises:
        UserError: When a weight is larger than such a number can be.
    """
    spec = specification(config, weights)
    spec.validate()
    with np.errstate(all="ignore"):  # what overflows is refused below
        spec.optimize(quantization)
    spec.save(str(scratch))
    content = read_file(scratch / ENGINE_WEIGHTS, 1 << 40)
    check_weights(config, content, f"--quantization {quantization}")
    engine = {"name": "ctranslate2", "quantization": quantization}
    return {
        CONFIG: write_json({**describe(config), "engine": engine, **_engine_config(config)}),
        ENGINE_WEIGHTS: content,
        ENGINE_VOCABULARY: write_json(vocabulary(config.vocab_size)),
        **tokenizer_files(tokenizer),
    }


def _engine_config(config: ModelConfig) -> dict[str, Any]:
    """What CTranslate2 reads in its config.json: our framing, and the constant of the norms."""
    return {
        "unk_token": _CONTROL[UNK],
        "bos_token": _CONTROL[BOS],
        "eos_token": _CONTROL[EOS],
        "decoder_start_token": _CONTROL[BOS],
        "add_source_bos": False,
        "add_source_eos": True,
        "layer_norm_epsilon": NORM_EPS[config.norm_type],
        "multi_query_attention": False,
    }


def vocabulary(size: int) -> list[str]:
    """The names of all ids: those of the control ids, else the id itself, as `tfm encode` prints it.

    Pieces themselves would not do: a piece may read `</s>`, and two may read alike.

    >>> vocabulary(7)
    ['<pad>', '<unk>', '<s>', '</s>', '<mask>', '5', '6']
    """
    return [_CONTROL[i] if i < N_SPECIAL else str(i) for i in range(size)]


def positions_limit(config: ModelConfig) -> int | None:
    """How many positions an exported model knows, BOS or EOS counted; None where any number."""
    tables = {"sinusoidal": N_POSITIONS, "learned": config.max_positions}
    return tables.get(config.positions)


def specification(config: ModelConfig, weights: Mapping[str, Tensor]) -> Any:
    """A `ctranslate2.specs.TransformerSpec` of this shape with these weights.

    Args:
        config: The shape.
        weights: By plain name, tied ones once, as in a checkpoint.

    Returns:
        Not validated, optimised or quantised yet.

    Raises:
        UserError: When a weight has no place in it.
    """
    from ctranslate2.specs import TransformerDecoderSpec, TransformerEncoderSpec, TransformerSpec
    from ctranslate2.specs.common_spec import Activation

    weights = _Noting(weights)
    activations = {"relu": Activation.RELU, "gelu": Activation.GELU, "swiglu": Activation.SWISH}
    is_rotary = config.positions == "rotary"
    depths = (config.n_encoder_layers, config.n_decoder_layers)
    encoder, decoder = (
        stack(
            depth,
            config.n_heads,
            pre_norm=config.norm == "pre",
            activation=activations[config.activation],
            ffn_glu=config.activation == "swiglu",
            rms_norm=config.norm_type == "rms",
            rotary_dim=0 if is_rotary else None,  # 0: all dimensions of a head
            rotary_interleave=True,  # pairs (2i, 2i + 1)
        )
        for stack, depth in zip(
            (TransformerEncoderSpec, TransformerDecoderSpec), depths, strict=True
        )
    )
    spec = TransformerSpec(encoder, decoder)
    names = vocabulary(config.vocab_size)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)

    tied = {"all": "src_embedding.weight", "target": "tgt_embedding.weight"}
    target = weights[tied["all"] if config.tie_embeddings == "all" else tied["target"]]
    encoder.embeddings[0].weight = weights["src_embedding.weight"]
    decoder.embeddings.weight = target
    decoder.projection.weight = (
        weights["output.weight"] if config.tie_embeddings == "none" else target
    )
    for stack, name in ((encoder, "encoder"), (decoder, "decoder")):
        _fill_stack(stack, name, config, weights)
    if weights.unread:
        raise UserError(f"CTranslate2 has no place for {min(weights.unread)} of this model")
    return spec


class _Noting(dict[str, Tensor]):
    """Weights that know which of them nobody has read: a model without them would be another one."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.unread = set(weights)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return super().__getitem__(name)


def _fill_stack(stack: Any, name: str, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Set all of an encoder or decoder but its matrices of embeddings."""
    side = "src" if name == "encoder" else "tgt"
    device = weights["src_embedding.weight"].device
    if config.positions == "learned":
        stack.position_encodings.encodings = weights[f"{side}_embedding.position_weight"]
    elif config.positions == "sinusoidal":  # its own table begins at 1 and has other wavelengths
        table = sinusoids(torch.arange(N_POSITIONS, device=device), config.d_model)
        stack.position_encodings.encodings = table
    if config.norm == "pre":
        _fill_norm(stack.layer_norm, lambda rest: weights[f"{name}_norm.{rest}"], config)
    for i, layer in enumerate(stack.layer):

        def get(rest: str, prefix: str = f"{name}.{i}.") -> Tensor:
            return weights[prefix + rest]

        _fill_attention(layer.self_attention, "self_attn", get, config)
        if name == "decoder":
            _fill_attention(layer.attention, "cross_attn", get, config)
        _fill_ffn(layer.ffn, get, config)


def _fill_attention(spec: Any, name: str, get: Get, config: ModelConfig) -> None:
    """Queries, keys and values in one matrix for self-attention; queries apart for cross-attention."""
    _fill_norm(spec.layer_norm, lambda rest: get(f"{name}_residual.norm.{rest}"), config)
    inputs = [["q_proj", "kv_proj"]] if name == "self_attn" else [["q_proj"], ["kv_proj"]]
    for linear, parts in zip(spec.linear, [*inputs, ["out_proj"]], strict=True):
        linear.weight = torch.cat([get(f"{name}.{part}.weight") for part in parts])
        linear.bias = torch.cat([get(f"{name}.{part}.bias") for part in parts])


def _fill_ffn(spec: Any, get: Get, config: ModelConfig) -> None:
    _fill_norm(spec.layer_norm, lambda rest: get(f"ffn_residual.norm.{rest}"), config)
    parts = [(spec.linear_0, "up"), (spec.linear_1, "down")]
    if config.activation == "swiglu":  # linear_0 is the one whose output is bent
        parts = [(spec.linear_0, "gate"), (spec.linear_0_noact, "up"), (spec.linear_1, "down")]
    for linear, name in parts:
        linear.weight, linear.bias = get(f"ffn.{name}.weight"), get(f"ffn.{name}.bias")


def _fill_norm(spec: Any, get: Get, config: ModelConfig) -> None:
    spec.gamma = get("weight")
    if config.norm_type == "layer":
        spec.beta = get("bias")


def check_weights(config: ModelConfig, data: bytes, where: str) -> None:
    """Refuse a `model.bin` whose variables are not those of this shape.

    CTranslate2 trusts its files: one matrix smaller than another says it is, and it reads beyond.

    Raises:
        UserError: Naming what is missing, unknown or of another shape.
    """
    meta = {
        name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(config).items()
    }
    spec = specification(config, meta)
    spec.validate()
    expected = spec.variables()
    try:
        found, aliases = _read_variables(data, (spec.name, spec.revision))
    except (struct.error, ValueError, IndexError) as error:
        raise UserError(f"{where}: not a model that CTranslate2 can run ({error})") from None
    for alias, name in aliases.items():
        if alias in found or name not in found:
            raise UserError(f"{where}: {alias!r} stands for {name!r}, which it cannot")
        found[alias] = found[name]
        if name + _SCALE in found:  # goes with it
            found[alias + _SCALE] = found[name + _SCALE]
    for name in found:  # the engine takes up layers that we do not have by their names alone
        if name not in expected and name.removesuffix(_SCALE) not in expected:
            raise UserError(f"{where}: unknown variable {name!r}")
    for name, variable in expected.items():
        wanted = _Variable(_TYPES[variable.dtype], tuple(variable.shape), b"")
        if not wanted.shape:
            wanted = replace(wanted, content=variable.to_bytes())
        if name not in found or not _fits(found[name], wanted, found.get(name + _SCALE)):
            raise UserError(f"{where}: variable {name!r} is missing or not {list(wanted.shape)}")


@dataclass(frozen=True, slots=True)
class _Variable:
    """One variable of a `model.bin`; the content only of a single number."""

    kind: int
    shape: tuple[int, ...]
    content: bytes


def _fits(found: _Variable, wanted: _Variable, scale: _Variable | None) -> bool:
    """Whether a variable is the wanted one: a setting with this value, or weights of this shape."""
    if not wanted.shape:
        return found == wanted and scale is None
    if found.shape != wanted.shape:
        return False
    scale_shapes = {_TYPES["int8"]: wanted.shape[:1], _TYPES["int16"]: ()}
    if found.kind in scale_shapes and len(wanted.shape) == 2:
        is_float = scale is not None and scale.kind == _TYPES["float32"]
        return is_float and scale is not None and scale.shape == scale_shapes[found.kind]
    return found.kind in _FLOATS and scale is None


def _is_finite(data: bytes, kind: int, offset: int, n: int) -> bool:
    """Whether n numbers of a type, from an offset on, are neither infinite nor NaN."""
    if kind == _TYPES["bfloat16"]:  # which numpy lacks: the upper half of a float32
        exponent = np.frombuffer(data, "<u2", n, offset) & 0x7F80
        return bool((exponent != 0x7F80).all())
    values = np.frombuffer(data, "<f4" if kind == _TYPES["float32"] else "<f2", n, offset)
    return bool(np.isfinite(values).all())


def _read_variables(
    data: bytes, model_kind: tuple[str, int]
) -> tuple[dict[str, _Variable], dict[str, str]]:
    """Read what a `model.bin` lists: version, kind of model, variables, aliases.

    Raises:
        ValueError: When sizes do not agree, numbers are not finite, or it is a model of another kind.
        IndexError: When it has numbers of an unknown type.
        struct.error: When it ends too early.
    """
    offset = 0

    def number(code: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{code}", data, offset)
        offset += struct.calcsize(code)
        return int(value)

    def string() -> str:
        nonlocal offset
        length = number("H")
        offset += length
        return data[offset - length : offset - 1].decode()

    version, name = number("I"), string()
    if (name, number("I")) != model_kind:
        raise ValueError(f"{name!r} of format {version} is not what this CTranslate2 writes")
    variables: dict[str, _Variable] = {}
    for _ in range(number("I")):
        name = string()
        shape = tuple(number("I") for _ in range(number("B")))
        kind = number("B")
        size = _ITEM_SIZES[kind] * math.prod(shape)
        if name in variables or number("I") != size or size > len(data) - offset:
            raise ValueError(f"the size of {name!r} is not that of its shape")
        if kind in _FLOATS and not _is_finite(data, kind, offset, math.prod(shape)):
            raise ValueError(f"{name!r} holds numbers that are not finite")
        variables[name] = _Variable(kind, shape, b"" if shape else data[offset : offset + size])
        offset += size
    aliases: dict[str, str] = {}
    for _ in range(number("I")):
        alias = string()
        aliases[alias] = string()
    if offset != len(data):
        raise ValueError("something follows its end")
    return variables, aliases
