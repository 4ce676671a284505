import os
import socket
import subprocess
import sys

import pytest

from seq2seq.distributed import ALONE, World, join_world
from tokenizer.errors import UserError

RANK = r"""
import os
from seq2seq.distributed import join_world, leave_world

world = join_world(os.environ, "cpu")
mine = [["ä\n"], ["", "💬\ud800"]][world.rank]
assert world.gather(mine) == [["ä\n"], ["", "💬\ud800"]]
assert world.gather([]) == [[], []]
assert world.share(f"said by {world.rank}") == "said by 0"
assert world.sum_numbers(world.rank, 2.5) == [1.0, 5.0]
world.wait()
leave_world(world)
"""
SUM = r"""
import os, sys
import torch
from seq2seq.distributed import join_world, leave_world

if sys.argv[1] == "refused" and os.environ["RANK"] == "0":
    del os.memfd_create
if sys.argv[1] == "unseen" and os.environ["RANK"] == "1":
    os.readlink = lambda path: "/memfd:other"
if sys.argv[1] == "remote":
    os.environ["LOCAL_WORLD_SIZE"] = "1"
world = join_world(os.environ, "cpu")
cpu = torch.device("cpu")
torch.manual_seed(world.rank)
for n, dtype in ((0, torch.float32), (1, torch.float32), (1000, torch.float64)):
    vector = world.zeros(n, dtype, cpu)
    assert vector.shape == (n,) and vector.dtype == dtype and not vector.any()
    for _ in range(50):
        vector.copy_(torch.randn(n))
        everyone = [torch.zeros_like(vector) for _ in range(world.size)]
        torch.distributed.all_gather(everyone, vector.clone())
        world.sum(vector)
        assert torch.allclose(vector, sum(everyone, torch.zeros_like(vector)))
        digests = world.gather([vector.numpy().tobytes().hex()])
        assert digests == [digests[0]] * world.size
assert bool(world._shared) == (sys.argv[1] == "shared" and hasattr(os, "memfd_create"))
leave_world(world)
"""


def run_ranks(n: int, script: str, *arguments: str) -> list[int]:
    """Exit codes of so many processes that meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    size = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), **size},
        )
        for rank in range(n)
    ]
    return [process.wait(60) for process in processes]


def test_two_processes_exchange_text_and_numbers() -> None:
    assert run_ranks(2, RANK) == [0, 0]


@pytest.mark.parametrize(
    ("n", "case"), [(2, "shared"), (3, "shared"), (2, "refused"), (2, "unseen"), (2, "remote")]
)
def test_vectors_are_summed_with_and_without_shared_memory(n: int, case: str) -> None:
    assert run_ranks(n, SUM, case) == [0] * n


def test_one_process_talks_to_itself() -> None:
    assert join_world({}, "cpu") == World() == ALONE
    assert ALONE.gather(["a", "b"]) == [["a", "b"]]
    assert ALONE.share("a") == "a"
    assert ALONE.sum_numbers(1, 2.5) == [1, 2.5]


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(UserError, match="start several processes by torchrun"):
        join_world({"WORLD_SIZE": "2", "RANK": "0"}, "cpu")
