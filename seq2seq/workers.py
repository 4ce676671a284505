"""Several batches at once, by threads or by copies of this process.

    workers = Workers(translator, 2, in_processes=True)
    results = workers.map(Translator.some_method, [(batch,), (batch,)])

The steps of a small model are so short that threads spend a third of their time waiting for Python's
one interpreter lock. Copies of the process (fork) have a lock each, and share the memory of the model.
"""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from tokenizer.errors import UserError

T = TypeVar("T")
_LOST = (
    "a process that translates was killed, perhaps for lack of memory; "
    "use a smaller --batch-tokens, or --threads 1"
)
_state: Any = None  # of the copy that this process is


class Workers:
    """Calls functions of one object, several at a time.

    Copies are made when they are first needed, and remember the object as it is then. They end with
    this process, however it ends.
    """

    def __init__(self, state: object, n: int, in_processes: bool) -> None:
        """Nothing happens yet.

        Args:
            state: The first argument of all calls.
            n: Calls at once; with 1 they are made here.
            in_processes: By copies of this process, where the system can make them (Linux), else by
                threads. The state must compute on the CPU, and is not changed by calls.
        """
        self._state = state
        self._n = n
        self._in_processes = in_processes and sys.platform == "linux"
        self._pool: Executor | None = None

    def map(self, work: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> list[T]:
        """What `work(state, *task)` returns for each task, in their order.

        Args:
            work: A function that has a name of its own; processes find it by that.
            tasks: Their further arguments; what goes to a process and back is copied.

        Raises:
            UserError: When a process was killed; and whatever `work` raises.
        """
        if self._n == 1 or len(tasks) == 1:
            return [work(self._state, *task) for task in tasks]
        if self._pool is None:
            self._pool = self._new_pool()
        if isinstance(self._pool, ThreadPoolExecutor):
            return list(self._pool.map(lambda task: work(self._state, *task), tasks))
        try:
            try:
                results = self._pool.map(_call, [work] * len(tasks), tasks)
            except OSError:  # the system makes no more processes
                self._end()
                self._in_processes = False
                return self.map(work, tasks)
            return list(results)
        except BrokenProcessPool:  # now, or since the last call
            self._end()
            raise UserError(_LOST) from None
        except BaseException:  # Ctrl-C too: nobody waits for what is under way
            self._end()
            raise

    def _new_pool(self) -> Executor:
        if not self._in_processes:
            return ThreadPoolExecutor(self._n)
        # Nothing is ever written into this pipe: it closes when this process ends, or says so.
        pipe = os.pipe()
        self._close = weakref.finalize(self, _close, *pipe)
        context = multiprocessing.get_context("fork")
        try:
            return ProcessPoolExecutor(self._n, context, _begin, (self._state, *pipe))
        except (OSError, ImportError, NotImplementedError):  # a system without semaphores
            self._close()
            return ThreadPoolExecutor(self._n)

    def _end(self) -> None:
        """End the processes now."""
        if self._pool is not None:
            self._close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


def _begin(state: object, ended: int, of_parent: int) -> None:
    """Make this process one that works for its parent alone."""
    global _state
    _state = state
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(of_parent)
    threading.Thread(target=_end_with_parent, args=[ended], daemon=True).start()


def _end_with_parent(ended: int) -> None:
    os.read(ended, 1)
    os._exit(1)


def _call(work: Callable[..., T], task: tuple[Any, ...]) -> T:
    return work(_state, *task)
