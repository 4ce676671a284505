"""Several processes that train one model: who I am, sums over all, and what only one does.

Started by torchrun, or by `tfm train` itself on a CPU; the environment says which one this is (RANK,
WORLD_SIZE, LOCAL_RANK) and where to meet. Every rank does the same steps; decisions that must agree
(stop, non-finite numbers) ride on sums.
"""

import contextlib
import datetime
import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch import distributed as dist

from seq2seq.shared import SharedVectors, open_memory
from tokenizer.errors import UserError

# In the environment: the file by which processes that `tfm train` started find one another.
MEETING = "TFM_MEETING"
_PATIENCE = datetime.timedelta(days=2)
_TIMEOUT = datetime.timedelta(minutes=5)  # after it a rank that died without a word ends the others


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: 0 … size - 1; rank 0 writes and speaks.
        size: Number of processes.
        local_rank: Rank on this machine, which chooses the GPU.
        patient: Where to wait for work that may take hours; None before they have met.
        may_share_memory: Whether all of them compute on the CPU of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    patient: dist.ProcessGroup | None = None
    may_share_memory: bool = False
    _shared: dict[int, SharedVectors] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    @property
    def shares_memory(self) -> bool:
        """Whether `sum` works in memory that all processes see; it adds in another order then."""
        return bool(self._shared)

    def zeros(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A vector (n,) of zeros that `sum` sums fast; all ranks make it."""
        memory = None
        if self.may_share_memory and n:
            size = n * dtype.itemsize * self.size
            memory = open_memory(size, self.is_first, self.share, self._agree)
        if memory is None:
            return torch.zeros(n, dtype=dtype, device=device)
        vectors = SharedVectors(memory, self.size, self.rank, dtype)
        self._shared[id(vectors.mine)] = vectors
        return vectors.mine

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all ranks, in place."""
        if vectors := self._shared.get(id(tensor)):
            vectors.sum(self.wait)
        elif self.size > 1:
            dist.all_reduce(tensor)

    def _agree(self, is_so: bool) -> bool:
        """Whether it is so on all ranks."""
        return self.sum_numbers(is_so) == [self.size]

    def sum_numbers(self, *numbers: float) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(tensor)
        return [float(x) for x in tensor.cpu()]

    def wait(self, patiently: bool = False) -> None:
        """Let no rank go on before all have come here; `patiently` where that may take hours."""
        if patiently and self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self.patient)
        self.sum_numbers(0.0)

    def share(self, text: str) -> str:
        """What rank 0 said, on every rank."""
        return self.gather([text])[0][0]

    def gather(self, texts: list[str]) -> list[list[str]]:
        """The texts of each rank, in order of rank, on every rank."""
        if self.size == 1:
            return [texts]
        # As JSON, each in a row of its own; PyTorch's collectives for objects would pickle them.
        data = json.dumps(texts).encode()
        sizes = self.sum_numbers(*(len(data) if i == self.rank else 0 for i in range(self.size)))
        rows = torch.zeros(self.size, int(max(sizes)), dtype=torch.uint8)
        rows[self.rank, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = rows.to(_device())
        dist.all_reduce(rows)
        return [
            json.loads(bytes(row[: int(size)].tolist()))
            for row, size in zip(rows.cpu(), sizes, strict=True)
        ]


ALONE = World()


def _device() -> str:
    """Where tensors must be for the ranks to exchange them."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def place(environment: Mapping[str, str]) -> World:
    """Which process this is among those that torchrun started; alone, the only one.

    Args:
        environment: `os.environ`.

    Raises:
        UserError: When the environment is half set, or its numbers do not go together.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    try:
        size, rank, local = (int(environment[n]) for n in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE is set, but RANK or LOCAL_RANK is missing or not a number ({error}); "
            "start several processes by torchrun"
        ) from None
    if size < 1:
        raise UserError(f"WORLD_SIZE={size}: is the number of processes, 1 or more")
    for name, value in (("RANK", rank), ("LOCAL_RANK", local)):
        if value not in range(size):
            raise UserError(f"{name}={value}: is not one of 0 … {size - 1} (WORLD_SIZE={size})")
    return World(rank, size, local)


def join_world(environment: Mapping[str, str], device: str) -> World:
    """Meet the other processes; alone, there is nobody to meet.

    Those that torchrun started meet as it says; those that tfm started, by a file that only this user
    can read, where PyTorch would open a port to all networks.

    Args:
        environment: `os.environ`.
        device: `cuda` talks over NCCL, `cpu` over gloo.

    Raises:
        UserError: As `place`, or when the environment does not say where to meet, or they cannot there.
    """
    world = place(environment)
    if world.size == 1:
        return world
    meeting = environment.get(MEETING)
    if not meeting:
        _check_address(environment)
    # The processes of a command meet at once; those of torchrun may come late, or never.
    with contextlib.nullcontext() if meeting else _meeting_elsewhere(environment):
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            timeout=_TIMEOUT,
            store=dist.FileStore(meeting, world.size) if meeting else None,  # type: ignore[attr-defined]
            rank=world.rank,
            world_size=world.size,
        )
        # The text of a large corpus is read for longer; a rank that dies meanwhile is noticed at once.
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    may_share_memory = device == "cpu" and environment.get("LOCAL_WORLD_SIZE") == str(world.size)
    return replace(world, patient=patient, may_share_memory=may_share_memory)


def _check_address(environment: Mapping[str, str]) -> None:
    """Refuse a place to meet that is none."""
    if not environment.get("MASTER_ADDR"):
        raise UserError("MASTER_ADDR: is not set; start several processes by torchrun")
    port = environment.get("MASTER_PORT", "")
    if not re.fullmatch(r"0*[1-9]\d{0,4}", port, re.ASCII) or int(port) > 65535:
        raise UserError(f"MASTER_PORT={port}: is not a port, a number from 1 to 65535")


@contextlib.contextmanager
def _meeting_elsewhere(environment: Mapping[str, str]) -> Iterator[None]:
    """Explain why processes that torchrun started cannot meet; signals end the wait at once."""
    try:
        with _ended_by_signals():
            yield
    except RuntimeError as error:  # as PyTorch and gloo say it
        where = f"MASTER_ADDR={environment['MASTER_ADDR']} MASTER_PORT={environment['MASTER_PORT']}"
        why = str(error).partition("\n")[0]
        raise UserError(f"{where}: the processes cannot meet there ({why})") from None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end the process at once while it waits in PyTorch, where Python does not hear them."""
    if threading.current_thread() is not threading.main_thread():  # only there may they be set
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: h for n in numbers if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    try:
        for number in before:  # one that is ignored, as by nohup, stays so
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def joined_world(environment: Mapping[str, str], device: str) -> Iterator[World]:
    """Join the other processes (`join_world`), and leave them at the end, which may be an error.

    A process that ended in an error without leaving gloo was aborted in one of 75 trials (`terminate
    called`). NCCL is left only when all went well: it might wait for the others.
    """
    world = join_world(environment, device)
    try:
        yield world
    except BaseException:
        if device == "cpu":
            leave_world(world)
        raise
    leave_world(world)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def leave_world(world: World) -> None:
    """Say goodbye to the other processes."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
