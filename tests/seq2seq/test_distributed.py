import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

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
import os, random, sys, time
import torch
from seq2seq.distributed import World, join_world, leave_world

def slow_wait(world):
    wait(world)
    time.sleep(0.02 * random.random())

case, rank = sys.argv[1], os.environ["RANK"]
if case == "refused" and rank == "0" and hasattr(os, "memfd_create"):
    del os.memfd_create
if case == "remote":
    os.environ["LOCAL_WORLD_SIZE"] = "1"
world = join_world(os.environ, "cpu")
if case == "unseen" and rank == "1":
    from seq2seq import shared
    shared._find = lambda place: None
vectors = [world.zeros(n, torch.float64, torch.device("cpu")) for n in (0, 1, 1000)]
assert not any(v.any() for v in vectors)
wait, World.wait = World.wait, slow_wait
for i in range(8):  # what is compared is known, so that nothing but `sum` keeps the ranks in step
    for vector in vectors:
        numbers = torch.arange(len(vector)) + i
        vector.copy_(numbers * (world.rank + 1))
        world.sum(vector)
        assert torch.equal(vector, numbers.double() * sum(range(1, world.size + 1)))
part = vectors[2][:2]
part.fill_(1.0)
world.sum(part)  # another tensor, even if in the same place
assert part.tolist() == [world.size] * 2
assert world.shares_memory == (case == "shared" and hasattr(os, "memfd_create"))
leave_world(world)
"""
NOWHERE = """
import os
import pytest
from seq2seq.distributed import join_world
from tokenizer.errors import UserError

os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"
with pytest.raises(UserError, match="the processes cannot meet there .*nowhere0"):
    join_world(os.environ, "cpu")
"""
WAIT = """
import os, signal
from seq2seq.distributed import join_world

signal.signal(signal.SIGTERM, lambda *_: None)
join_world(os.environ, "cpu")
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
    try:
        return [process.wait(60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_processes_exchange_text_and_numbers() -> None:
    assert run_ranks(2, RANK) == [0, 0]


@pytest.mark.parametrize(
    ("n", "case"), [(3, "shared"), (2, "refused"), (2, "unseen"), (2, "remote")]
)
def test_vectors_are_summed_with_and_without_shared_memory(n: int, case: str) -> None:
    assert run_ranks(n, SUM, case) == [0] * n


def test_a_network_that_is_not_there_is_named() -> None:
    assert run_ranks(2, NOWHERE) == [0, 0]


def test_one_process_talks_to_itself() -> None:
    assert join_world({}, "cpu") == World() == ALONE
    assert ALONE.gather(["a", "b"]) == [["a", "b"]]
    assert ALONE.share("a") == "a"
    assert ALONE.sum_numbers(1, 2.5) == [1, 2.5]


def test_half_an_environment_is_refused() -> None:
    with pytest.raises(UserError, match="start several processes by torchrun"):
        join_world({"WORLD_SIZE": "2", "RANK": "0"}, "cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "-1"),
        ("RANK", "5"),
        ("RANK", "-1"),
        ("LOCAL_RANK", "2"),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", ""),
        ("MASTER_PORT", "abc"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "99999"),
    ],
)
def test_an_environment_in_which_nobody_could_meet_is_refused(name: str, value: str) -> None:
    good = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    good |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with pytest.raises(UserError, match=f"^{name}"):
        join_world({**good, name: value}, "cpu")


def test_a_port_that_another_program_has_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        world = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
        for name, value in {**world, "MASTER_ADDR": host, "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        message = f"MASTER_PORT={port}: the processes cannot meet there .*address already in use"
        with pytest.raises(UserError, match=message):
            join_world(os.environ, "cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_others_is_ended_by_a_signal(number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
    world = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    world |= {"MASTER_ADDR": place[0], "MASTER_PORT": str(place[1])}
    with subprocess.Popen([sys.executable, "-c", WAIT], env={**os.environ, **world}) as process:
        try:
            while True:
                assert process.poll() is None
                with contextlib.suppress(OSError), socket.create_connection(place, 1):
                    break
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(number)
            assert process.wait(20) == -number
        finally:
            process.kill()
