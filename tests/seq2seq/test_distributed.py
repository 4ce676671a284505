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


def test_two_processes_exchange_text_and_numbers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]


def test_one_process_talks_to_itself() -> None:
    assert join_world({}, "cpu") == World() == ALONE
    assert ALONE.gather(["a", "b"]) == [["a", "b"]]
    assert ALONE.share("a") == "a"
    assert ALONE.sum_numbers(1, 2.5) == [1, 2.5]


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(UserError, match="start several processes by torchrun"):
        join_world({"WORLD_SIZE": "2", "RANK": "0"}, "cpu")
