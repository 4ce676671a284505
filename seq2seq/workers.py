"""Several batches at once, by threads or by copies of this process.

    workers = Workers(translator, 2, in_processes=True)
    results = workers.map(Translator.some_method, [(batch,), (batch,)])
    for result in workers.ahead(Translator.some_method, endless_tasks): ...

The steps of a small model are so short that threads spend a third of their time waiting for Python's
one interpreter lock. Copies of the process (fork) have a lock each, and share the memory of the model.

Each copy has a pipe of its own, so that it can be ended at any time, even while it sends a result:
`ProcessPoolExecutor`, with one pipe for all, would wait for ever for the rest.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NoReturn, TypeVar

import torch

from tokenizer.errors import UserError

T = TypeVar("T")
_SIGNALS = [n for n in signal.Signals if n.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")]
_LOST = (
    "a process that does part of the work was killed, perhaps for lack of memory; "
    "use fewer --threads, or a smaller --batch-tokens"
)


class Workers:
    """Calls functions of one object, several at a time.

    Copies are made when they are first needed, and remember the object as it is then. They end with
    this process, however it ends.
    """

    def __init__(self, state: object, n: int, in_processes: bool) -> None:
        """Nothing happens yet.

        Args:
            state: The first argument of all calls.
            n: Calls at once.
            in_processes: By copies of this process, where the system can make them (Linux), else by
                threads. The state must compute on the CPU, and is not changed by calls.
        """
        self._state = state
        self._n = n
        self._in_processes = in_processes and sys.platform == "linux"
        self._copies: list[_Copy] = []
        self._end: Callable[[], object] = _nothing
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def map(self, work: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> list[T]:
        """What `work(state, *task)` returns for each task, in their order; a single call is made here.

        Args:
            work: A function that has a name of its own; processes find it by that.
            tasks: Their further arguments; what goes to a process and back is copied.

        Raises:
            UserError: When a process was killed; and whatever `work` raises.
        """
        if self._n == 1 or len(tasks) <= 1:
            return [work(self._state, *task) for task in tasks]
        with self._turn():
            if self._are_ready():
                return self._map(work, tasks)
        with ThreadPoolExecutor(self._n) as threads:
            return list(threads.map(lambda task: work(self._state, *task), tasks))

    def _map(self, work: Callable[..., T], tasks: Sequence[tuple[Any, ...]]) -> list[T]:
        results: dict[int, T] = {}
        busy: dict[Connection, tuple[int, _Copy]] = {}
        free = deque(self._copies)
        waiting = deque(enumerate(tasks))
        with self._ended_on_error():
            while waiting or busy:
                while waiting and free:
                    copy, (i, task) = free.popleft(), waiting.popleft()
                    copy.begin(work, task)
                    busy[copy.pipe] = i, copy
                ready = wait(list(busy))
                for pipe in [p for p in busy if p in ready]:
                    i, copy = busy.pop(pipe)
                    results[i] = copy.result()
                    free.append(copy)
        return [results[i] for i in range(len(tasks))]

    def ahead(
        self, work: Callable[..., T], tasks: Iterable[tuple[Any, ...]]
    ) -> Generator[T, None, None]:
        """The same for tasks without end: while a result is used, copies work on the next n.

        Where there can be no copies, each call is made here when its result is due. Closing the
        generator before its end ends the copies; until then they do nothing else.
        """
        with self._turn():
            is_ready = self._are_ready()
            if is_ready:
                yield from self._ahead(work, tasks)
        if not is_ready:
            yield from (work(self._state, *task) for task in tasks)

    def _ahead(
        self, work: Callable[..., T], tasks: Iterable[tuple[Any, ...]]
    ) -> Generator[T, None, None]:
        busy: deque[_Copy] = deque()
        with self._ended_on_error():
            for copy, task in zip(itertools.cycle(self._copies), tasks, strict=False):
                results = [busy.popleft().result()] if len(busy) == self._n else []
                copy.begin(work, task)
                busy.append(copy)
                yield from results
            for copy in busy:
                yield copy.result()

    def _turn(self) -> threading.Lock:
        """What a caller holds while the copies answer: they answer one at a time, of one process."""
        if self._owner != os.getpid():  # somebody has forked
            self._owner, self._copies, self._lock = os.getpid(), [], threading.Lock()
        return self._lock

    def _are_ready(self) -> bool:
        """Make the copies, where there are none yet; False where there can be none."""
        if self._in_processes and not self._copies:
            try:
                # Nothing is ever written into this pipe: it closes when this process ends, or says so.
                ending = os.pipe()
                self._end = weakref.finalize(self, _end, self._copies, ending, self._owner)
                for _ in range(self._n):
                    self._copies.append(_Copy(self._state, ending))
            except OSError:  # the system makes no more processes
                self._end()
                self._in_processes = False
            except BaseException:
                self._end()
                raise
        return self._in_processes

    @contextlib.contextmanager
    def _ended_on_error(self) -> Iterator[None]:
        """End the copies when anything is raised, Ctrl-C too: nobody waits for what is under way."""
        try:
            yield
        except BaseException:
            self._end()
            raise


class _Copy:
    """A copy of this process, which makes one call at a time.

    Attributes:
        pipe: Can be read from when there is a result.
        pid: Of the process.
    """

    def __init__(self, state: object, ending: tuple[int, int]) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a copy ignores them
            try:
                self.pid = os.fork()
                if not self.pid:
                    self.pipe.close()
                    _serve(state, theirs, *ending)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def begin(self, work: Callable[..., Any], task: tuple[Any, ...]) -> None:
        with self._talking():
            self.pipe.send((work, task))

    def result(self) -> Any:
        with self._talking():
            value, error = self.pipe.recv()
        if error is not None:
            raise error
        return value

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError):
            raise UserError(_LOST) from None


def _nothing() -> None:
    pass


def _end(copies: list[_Copy], ending: tuple[int, int], parent: int) -> None:
    """End copies now, and forget them."""
    if os.getpid() != parent:  # a copy forgets what its parent had
        return
    for file in ending:
        os.close(file)
    while copies:
        copy = copies.pop()
        copy.pipe.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it was waited for
            os.kill(copy.pid, signal.SIGKILL)
            os.waitpid(copy.pid, 0)


def _serve(state: object, pipe: Connection, ended: int, of_parent: int) -> NoReturn:
    """What a copy does: it works for its parent alone, and ends with it, not by signals for all."""
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not copied
        os.close(of_parent)
        with contextlib.suppress(RuntimeError):  # the system makes no more threads
            threading.Thread(target=_end_with_parent, args=[ended], daemon=True).start()
        while True:
            work, task = pipe.recv()
            _send(pipe, _outcome(work, state, task))
    except (OSError, EOFError):  # the parent has gone
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _outcome(
    work: Callable[..., T], state: object, task: tuple[Any, ...]
) -> tuple[T | None, Exception | None]:
    """What a call returns and the error that it raises, one of them None."""
    try:
        return work(state, *task), None
    except Exception as error:
        what = traceback.format_exc()
        try:
            type(error)(*error.args)  # as it is made again where it arrives
        except Exception:
            return None, RuntimeError(what)
        error.add_note(f"In a copy of the process:\n{what}")
        return None, error


def _send(pipe: Connection, outcome: object) -> None:
    """Send it, or why it cannot be sent."""
    try:
        pipe.send(outcome)
    except OSError:
        raise
    except Exception:
        pipe.send((None, RuntimeError(traceback.format_exc())))


def _end_with_parent(ended: int) -> None:
    os.read(ended, 1)
    os._exit(1)
