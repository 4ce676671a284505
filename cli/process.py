"""What a command sets for its whole process: threads, how a GPU computes, what becomes of freed memory.

Each is global to PyTorch, its libraries or the C library.
"""

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ORDERED = (":4096:8", ":16:8")  # sizes of its workspace with which cuBLAS adds up in a fixed order


def use_threads(asked: int | None) -> int:
    """Settle how many threads this process computes with."""
    import torch

    from seq2seq.hardware import choose_threads

    threads = choose_threads(asked, os.environ)
    torch.set_num_threads(threads)
    # The tokenizers library has a pool of its own, which reads these when it is first used.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    return threads


def settle_gpu(device: "torch.device", precision: str) -> None:
    """Ask PyTorch to train on a GPU so that the same update gives the same bits every time.

    Sums whose parts a GPU would add up in the order in which they come are added up in a fixed one.
    Beside bf16 and fp16, what stays in float32 is multiplied in TF32, which has the range of float32
    and 10 bits of fraction, as fp16 has. On a CPU nothing changes.

    Args:
        device: To train on.
        precision: Of the training.
    """
    if device.type == "cpu":
        return
    import torch

    if os.environ.get(_CUBLAS) not in _ORDERED:  # cuBLAS would refuse
        os.environ[_CUBLAS] = _ORDERED[0]
    torch.set_deterministic_debug_mode("error")  # `use_deterministic_algorithms` imports a compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if precision in ("bf16", "fp16"):
        torch.set_float32_matmul_precision("high")
    avoid_cudnn_attention(device)


def avoid_cudnn_attention(device: "torch.device") -> None:
    """Use another attention than that of cuDNN, which prepares itself anew for every length, for tens of ms.

    In a search the length grows at each step. The other kernels that PyTorch has need no preparation.
    """
    if device.type != "cpu":
        import torch

        torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it allocates next.

    glibc returns a large block to the system as soon as it is free, and the system fills the pages
    of the next one with zeros: 1 to 8 % of the time of training a base model, more on a busy
    machine (examples/bench/README.md). With another C library nothing changes.
    """
    library = ctypes.CDLL(None)  # what this process has loaded already, no file
    if not hasattr(library, "mallopt"):
        return
    # Older versions take no more than 32 MB. To set only the second would fix the first where it is.
    if any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25)):
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
