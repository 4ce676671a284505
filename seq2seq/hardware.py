"""What this machine computes on and in: device, precision, threads.

Each is resolved once, by the command, and passed down.
"""

import os
import time
from collections.abc import Mapping

import torch

from tokenizer.errors import UserError

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,  # of all but the products of linear layers, when translating
}
_MOST_THREADS = 1024
_MOST_SPARE = 8  # copies that make batches: each takes some 200 MB
_WORTHWHILE = 1.5  # bf16 must multiply this many times faster than float32 before `auto` takes it
_FULL = ("tried to allocate", "cuda error: out of memory", "cublas_status_alloc_failed")
_WIDE = 512  # d_model from which int8 translates faster than bf16 (examples/bench/README.md)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        UserError: When a GPU is asked for and there is none, or there are fewer than processes.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= (n := torch.cuda.device_count()):
        raise UserError(
            f"process {local_rank + 1} of this machine has no GPU, as it sees {n}; "
            "start one process for each GPU"
        )
    return torch.device("cuda", local_rank)


def choose_precision(name: str, device: torch.device, d_model: int = 0) -> tuple[str, str]:
    """The precision that `auto` or a name means on a device, and why.

    Args:
        name: What was asked for.
        device: To compute on.
        d_model: Of a model that will only be used; 0 for one that is to be trained.

    Raises:
        UserError: When the device cannot compute in it.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--precision {name}: is not one of auto, {', '.join(DTYPES)}")
        if name == "fp16" and device.type == "cpu":
            raise UserError("--precision fp16: needs a GPU; use bf16 or fp32 on a CPU")
        if name == "int8" and not (device.type == "cpu" and multiplies_int8()):
            raise UserError("--precision int8: needs a CPU with AVX-512 VNNI; use bf16 or fp32")
        return name, "as asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU multiplies bf16 fastest"
        return "fp32", "this GPU has no bf16 units"
    if d_model >= _WIDE and multiplies_int8() and not torch.cpu._is_amx_tile_supported():
        return "int8", "this CPU multiplies integers fastest for so wide a model"
    if multiplies_bf16() and bf16_speedup() >= _WORTHWHILE:
        return "bf16", "this CPU has fast bf16 units"
    return "fp32", "this CPU has no fast bf16 units"


def device_name(device: torch.device) -> str:
    """What a device is: cpu, or the model of the GPU, as another one computes other bits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def has_onednn() -> bool:
    """Whether PyTorch was built with oneDNN."""
    return torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def multiplies_int8() -> bool:
    """Whether this CPU has units that multiply integers of 8 bits, and oneDNN to use them."""
    return has_onednn() and torch.cpu._is_vnni_supported()


def multiplies_bf16() -> bool:
    """Whether oneDNN multiplies in bf16 on this CPU; without it products take 30 times as long."""
    return has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def bf16_speedup() -> float:
    """How many times faster this CPU multiplies matrices in bf16 than in float32, measured now."""
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(512, 512).to(dtype)
        a @ a
        best = min(_seconds_of_product(a) for _ in range(5))
        times.append(best)
    return times[0] / times[1]


def _seconds_of_product(a: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    what = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in what for sign in _FULL)


def choose_threads(asked: int | None, environment: Mapping[str, str]) -> int:
    """Threads for this process: as asked, else OMP_NUM_THREADS, else its share of the cores it may use.

    Args:
        asked: By the user.
        environment: `os.environ`; torchrun says there how many processes share the cores.

    Raises:
        UserError: When more are asked for than any machine has use for.
    """
    if asked is not None:
        if asked > _MOST_THREADS:
            raise UserError(f"--threads {asked}: is more than {_MOST_THREADS}; leave it out")
        return asked
    if (given := _count(environment.get("OMP_NUM_THREADS", ""))) is not None:
        return given
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(cores // (_count(environment.get("LOCAL_WORLD_SIZE", "")) or 1), 1)


def _count(text: str) -> int | None:
    """A number from the environment, from 1 to `_MOST_THREADS`; None where it is none."""
    if not text.isdecimal():
        return None
    number = int(text) if len(text) < 10 else _MOST_THREADS  # int() refuses thousands of digits
    return min(max(number, 1), _MOST_THREADS)


def spare_processes(device: torch.device) -> int:
    """How many copies of this process make batches: none beside training on a CPU, which needs its cores."""
    return 0 if device.type == "cpu" else min(max(torch.get_num_threads() - 1, 1), _MOST_SPARE)
