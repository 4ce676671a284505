"""Items that a thread prepares while others are in use.

for batch in prefetch(batches, depth=16): ...
"""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, prepared by a background thread up to `depth` of them ahead.

    An exception of the producer reaches the consumer; closing the generator stops the thread, which
    closes the producer.
    """
    box: queue.Queue[T | _End] = queue.Queue(depth)
    left = threading.Event()
    thread = threading.Thread(target=_fill, args=(box, items, left), daemon=True)
    thread.start()
    try:
        while not isinstance(item := box.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        thread.join()  # a process that ends while it computes would be aborted


@dataclass(frozen=True, slots=True)
class _End:
    """What comes after the last item: nothing, or the error that ended them."""

    error: BaseException | None


def _fill(box: "queue.Queue[T | _End]", items: Iterator[T], left: threading.Event) -> None:
    """Put all items into the box, waiting where it is full, until the consumer has left."""
    try:
        for item in items:
            if not _put(box, item, left):
                return
        _put(box, _End(None), left)
    except BaseException as error:
        _put(box, _End(error), left)
    finally:
        if isinstance(items, Generator):
            items.close()


def _put(box: "queue.Queue[T | _End]", item: T | _End, left: threading.Event) -> bool:
    """Put one item; False when nobody wants it any more."""
    while not left.is_set():
        try:
            box.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
