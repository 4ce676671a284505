"""Several processes that train one model: who I am, sums over all, and what only one does.

Started by torchrun, which sets RANK, WORLD_SIZE, LOCAL_RANK and where to meet. Every rank does the same
steps; decisions that must agree (stop, non-finite numbers) ride on sums.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from tokenizer.errors import UserError

_TIMEOUT = datetime.timedelta(
    minutes=5
)  # a rank that died without a word ends the others after this


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: 0 … size - 1; rank 0 writes and speaks.
        size: Number of processes.
        local_rank: Rank on this machine, which chooses the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def sum_numbers(self, *numbers: float) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return [float(x) for x in tensor.cpu()]

    def wait(self) -> None:
        """Let no rank go on before all have come here."""
        self.sum_numbers(0.0)

    def share(self, text: str) -> str:
        """What rank 0 said, on every rank."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, texts: list[str]) -> list[list[str]]:
        """The texts of each rank, in order of rank, on every rank."""
        if self.size == 1:
            return [texts]
        shares: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shares, texts)
        return shares


ALONE = World()


def join_world(environment: Mapping[str, str], device: str) -> World:
    """Meet the other processes that torchrun started; alone, there is nobody to meet.

    Args:
        environment: `os.environ`.
        device: `cuda` talks over NCCL, `cpu` over gloo.

    Raises:
        UserError: When the environment is half set.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return World()
    try:
        world = World(
            int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"])
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE is set but not {error}; start several processes by torchrun"
        ) from None
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
    return world


def leave_world(world: World) -> None:
    """Say goodbye to the other processes."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
