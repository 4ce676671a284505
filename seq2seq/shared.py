"""Sums over the processes of one machine, through memory that all of them see.

    vectors = SharedVectors(open_memory(size_in_bytes), n_processes, rank, torch.float32)
    vectors.mine += ...
    vectors.sum(wait)          every process; then `mine` is the sum of all

Between processes of one machine a socket only copies: 48 million gradients take 130 to 250 ms over
gloo, and a third of that in shared memory (examples/bench/README.md).
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import torch


class SharedVectors:
    """A vector of each process, all in memory that all processes see.

    Attributes:
        mine: The vector of this process, (N,).
    """

    def __init__(self, memory: mmap.mmap, n_processes: int, rank: int, dtype: torch.dtype) -> None:
        vectors = torch.frombuffer(memory, dtype=dtype).view(n_processes, -1)
        self._rank = rank
        self._parts = vectors.tensor_split(n_processes, dim=1)  # a process sums up one of them
        self.mine = vectors[rank]

    def sum(self, wait: Callable[[], None]) -> None:
        """Replace the vector of every process by the sum of all; the same numbers everywhere.

        Args:
            wait: Returns when every process has called it.
        """
        me, others = self._rank, [i for i in range(len(self._parts)) if i != self._rank]
        wait()  # until all vectors are written
        for other in others:
            self._parts[me][me].add_(self._parts[me][other])
        wait()  # until all parts are summed up
        for other in others:
            self._parts[other][me].copy_(self._parts[other][other])
        wait()  # nobody writes on before all have read


def offer_memory(size: int) -> tuple[mmap.mmap | None, str]:
    """Memory of so many bytes, all zero, and where other processes find it; None where it cannot be had.

    It has no name that could outlive them: the system frees it when the last of them ends.
    """
    try:
        file = os.memfd_create("tfm")
        os.posix_fallocate(file, 0, size)
        return mmap.mmap(file, size), f"/proc/{os.getpid()}/fd/{file}"
    except (AttributeError, OSError):  # not on Linux; or no memory
        return None, ""


def find_memory(place: str, size: int) -> mmap.mmap | None:
    """The memory that another process of this machine offered; None if it is not to be had here."""
    try:
        file = os.open(place, os.O_RDWR)
    except OSError:
        return None
    try:
        is_it = (
            str(Path(place).readlink()).startswith("/memfd:tfm") and os.fstat(file).st_size == size
        )
        return mmap.mmap(file, size) if is_it else None
    except OSError:
        return None
    finally:
        os.close(file)
