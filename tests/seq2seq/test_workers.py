import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from seq2seq.workers import Workers
from tokenizer.errors import UserError

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="no copies of processes here")


def scaled(state: torch.Tensor, factor: int) -> float:
    return float((state * factor).sum())


def process_id(state: torch.Tensor, delay: float) -> int:
    time.sleep(delay)
    return os.getpid()


def refuse(state: torch.Tensor, number: int) -> None:
    raise UserError(f"no {number}")


def die(state: torch.Tensor, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def several_threads() -> Iterator[None]:
    """PyTorch with more threads than one, all of which have worked already."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    a = torch.ones(300, 300)
    a @ a
    torch.ones(1 << 20).exp_()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("in_processes", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(n: int, in_processes: bool) -> None:
    state = torch.ones(300, 300) @ torch.ones(300, 1)
    workers = Workers(state, n, in_processes)
    for _ in range(2):
        found = workers.map(scaled, [(i,) for i in range(20)])
        assert found == [90_000.0 * i for i in range(20)]


@needs_fork
def test_several_processes_work_and_a_single_task_is_done_here() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    found = workers.map(process_id, [(0.2,)] * 4)
    assert len({*found, os.getpid()}) == 3
    assert workers.map(process_id, [(0.0,)]) == [os.getpid()]


@pytest.mark.parametrize("in_processes", [False, True])
def test_errors_come_back(in_processes: bool) -> None:
    with pytest.raises(UserError, match="no 7"):
        Workers(torch.ones(1), 2, in_processes).map(refuse, [(7,), (7,)])


@needs_fork
def test_the_loss_of_a_process_is_an_error_and_no_hang() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    with pytest.raises(UserError, match="was killed"):
        workers.map(die, [(1,), (2,)])
    assert workers.map(scaled, [(1,), (2,)]) == [1.0, 2.0]
    for child in set(workers.map(process_id, [(0.2,)] * 4)):  # while nobody waits for them
        os.kill(child, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(UserError, match="was killed"):
        workers.map(scaled, [(1,), (2,)])


@needs_fork
@pytest.mark.parametrize("n_forks", [0, 1])
def test_threads_do_what_processes_cannot(n_forks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, made = os.fork, []

    def limited_fork() -> int:
        if len(made) == n_forks:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made.append(fork())
        return made[-1]

    monkeypatch.setattr(os, "fork", limited_fork)
    workers = Workers(torch.ones(1), 2, in_processes=True)
    assert workers.map(process_id, [(0.01,)] * 4) == [os.getpid()] * 4
    wait_for_the_end({pid for pid in made if pid})


def long_result(state: torch.Tensor, number: int) -> bytes:
    return bytes([number % 256]) * (8 << 20)  # far more than a pipe holds


@pytest.mark.parametrize("in_processes", [False, True])
def test_results_are_made_ahead_in_the_order_of_the_tasks(in_processes: bool) -> None:
    workers = Workers(torch.ones(3), 2, in_processes)
    for n in (0, 1, 2, 7):
        assert list(workers.ahead(scaled, ((i,) for i in range(n)))) == [3.0 * i for i in range(n)]
    with contextlib.closing(workers.ahead(long_result, zip(itertools.count()))) as results:
        assert [next(results)[:1] for _ in range(5)] == [bytes([i]) for i in range(5)]
    with pytest.raises(UserError, match="no 1"):
        list(workers.ahead(refuse, [(1,)] * 3))


@needs_fork
def test_copies_end_while_they_send_a_result() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    made = workers.ahead(process_id, ((0.0,) for _ in itertools.count()))
    children = {next(made) for _ in range(4)}
    made.close()
    wait_for_the_end(children)
    with contextlib.closing(workers.ahead(long_result, zip(itertools.count()))) as results:
        next(results)
        copies = list(workers._copies)
        time.sleep(0.1)  # the next ones are stuck in the pipes now
    wait_for_the_end({child.pid for child in copies})


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_left_to_the_parent(number: int) -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    children = set(workers.map(process_id, [(0.2,)] * 4))
    for child in children:
        os.kill(child, number)
    assert set(workers.map(process_id, [(0.2,)] * 4)) == children


def echo(state: torch.Tensor, name: str, number: int) -> tuple[str, int]:
    return name, number


@needs_fork
def test_threads_that_share_copies_get_their_own_results() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    found: dict[str, list[list[tuple[str, int]]]] = {"a": [], "b": []}

    def call(name: str) -> None:
        for _ in range(30):
            found[name].append(workers.map(echo, [(name, i) for i in range(5)]))

    threads = [threading.Thread(target=call, args=[name]) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, results in found.items():
        assert results == [[(name, i) for i in range(5)]] * 30


@needs_fork
def test_a_process_that_was_forked_by_others_makes_copies_of_its_own() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    ours = set(workers.map(process_id, [(0.1,)] * 4))
    pid = os.fork()
    if not pid:
        theirs = set(workers.map(process_id, [(0.1,)] * 4))
        os._exit(0 if len(theirs) == 2 and not theirs & ours else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert set(workers.map(process_id, [(0.1,)] * 4)) == ours


def unsendable(state: torch.Tensor, kind: str) -> object:
    if kind == "result":
        return lambda: None
    raise Unsendable("one", "two")


class Unsendable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


@needs_fork
@pytest.mark.parametrize(("kind", "message"), [("result", "pickle"), ("error", "Unsendable: one")])
def test_what_cannot_be_sent_is_named(kind: str, message: str) -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    with pytest.raises(Exception, match=message):
        workers.map(unsendable, [(kind,)] * 2)


@needs_fork
def test_nothing_to_do_needs_no_copies() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    assert workers.map(scaled, []) == []
    assert not workers._copies


@needs_fork
def test_the_loss_of_a_copy_that_works_ahead_is_an_error() -> None:
    made = Workers(torch.ones(1), 2, in_processes=True).ahead(die, zip(itertools.count()))
    with pytest.raises(UserError, match="was killed"):
        list(made)


@needs_fork
def test_an_interrupt_ends_what_is_under_way() -> None:
    workers = Workers(torch.ones(1), 2, in_processes=True)
    children = set(workers.map(process_id, [(0.2,)] * 4))
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        workers.map(process_id, [(60,)] * 4)
    wait_for_the_end(children)


PARENT = """
import os, signal, sys, time
import torch
from seq2seq.workers import Workers

def process_id(state, delay):
    time.sleep(delay)
    return os.getpid()

workers = Workers(torch.ones(1), 2, in_processes=True)
print(*workers.map(process_id, [(0.2,)] * 4), flush=True)
if sys.argv[1] == "busy":
    workers.map(process_id, [(60,)] * 4)
signal.pause()
"""


def is_alive(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rsplit(b")", 1)[1].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def wait_for_the_end(process_ids: set[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(is_alive, process_ids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, process_ids))


@needs_fork
@pytest.mark.parametrize(("state", "number"), [("idle", signal.SIGTERM), ("busy", signal.SIGKILL)])
def test_processes_end_with_the_one_they_work_for(state: str, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    children = {int(word) for word in parent.stdout.readline().split()}
    time.sleep(0.3)
    assert len(children) == 2
    assert all(map(is_alive, children))
    parent.send_signal(number)
    parent.wait(10)
    parent.stdout.close()
    wait_for_the_end(children)
