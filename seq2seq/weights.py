"""From a file of weights, which is not to be trusted, to a Transformer.

    shapes = tensor_shapes(config)            what a model of this shape must have
    weights = read_tensors(data, shapes, "model.safetensors")
    model = build(config, weights)

Names, shapes, types and sizes are compared with the shape of the model before a tensor is made.
"""

import dataclasses
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seq2seq.config import ModelConfig
from seq2seq.model import Transformer
from tokenizer.errors import UserError
from tokenizer.files import read_json

HEADER = 1 << 22  # bytes that a file of weights may take besides the weights


def build(config: ModelConfig, weights: Mapping[str, Tensor]) -> Transformer:
    """A Transformer of this shape with these weights, in evaluation mode."""
    with torch.device("meta"), _NoValues():
        transformer = Transformer(config)
    transformer.load_state_dict(weights, strict=False, assign=True)
    transformer.tie()
    return transformer.eval()


def tensor_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Names and shapes of all weights of a model of this shape, without making one.

    Layers are alike, so two are made to learn from, whatever number a file may claim.
    """
    few = dataclasses.replace(config, n_encoder_layers=1, n_decoder_layers=1)
    with torch.device("meta"), _NoValues():
        sample = {name: p.shape for name, p in Transformer(few).named_parameters()}
    shapes: dict[str, torch.Size] = {}
    for name, shape in sample.items():
        stack, _, rest = name.partition(".0.")
        depth = {"encoder": config.n_encoder_layers, "decoder": config.n_decoder_layers}.get(stack)
        if depth is None or not rest:
            shapes[name] = shape
        else:
            shapes.update({f"{stack}.{i}.{rest}": shape for i in range(depth)})
    return shapes


def read_tensors(data: bytes, shapes: Mapping[str, torch.Size], where: str) -> dict[str, Tensor]:
    """Read exactly these tensors, float32 and finite, from safetensors.

    Raises:
        UserError: Naming the tensor that is missing, unknown, of another shape or type, or not finite.
    """
    header = _read_header(data, where)
    for name in header.keys() - {"__metadata__"}:
        if name not in shapes:
            raise UserError(f"{where}: unknown tensor {name!r}")
    for name, shape in shapes.items():
        entry = header.get(name)
        if not isinstance(entry, dict):
            raise UserError(f"{where}: tensor {name!r} is missing")
        if entry.get("shape") != list(shape) or entry.get("dtype") != "F32":
            raise UserError(
                f"{where}: tensor {name!r} is {entry.get('dtype')} {entry.get('shape')}, "
                f"not F32 {list(shape)}"
            )
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{where}: damaged ({error})") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: tensor {name!r} is not finite")
    return tensors


def _read_header(data: bytes, where: str) -> dict[str, Any]:
    """The list of tensors at the front of safetensors: 8 bytes of length, then JSON."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
    if not 0 < length <= min(len(data) - 8, HEADER):
        raise UserError(f"{where}: is not a safetensors file")
    header = read_json(data[8 : 8 + length], where)
    if not isinstance(header, dict):
        raise UserError(f"{where}: is not a safetensors file")
    return header


class _NoValues(TorchFunctionMode):
    """Makes modules without random weights, which are not wanted.

    PyTorch imports its compiler to fill a tensor that has a shape only: longer than all else that
    happens before a translation.
    """

    _RANDOM = frozenset(
        (
            nn.init.normal_,
            nn.init.uniform_,
            nn.init.kaiming_uniform_,
            Tensor.normal_,
            Tensor.uniform_,
        )
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Leave the tensor, first of the arguments, as it is; do anything else."""
        if func in self._RANDOM:
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))
