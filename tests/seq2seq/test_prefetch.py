import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from seq2seq.prefetch import prefetch


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_reading_ahead_changes_nothing(depth: int) -> None:
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))
    assert list(prefetch(iter(()), depth)) == []


def test_an_error_of_the_producer_reaches_the_consumer_after_the_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("broken")

    stream = prefetch(items(), 5)
    assert next(stream) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(stream)


def test_only_so_many_items_are_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    stream = prefetch(items(), 3)
    next(stream)
    time.sleep(0.05)
    assert len(made) <= 5  # one taken, three in the box, one in hand
    stream.close()


def test_closing_stops_the_thread() -> None:
    before = threading.active_count()
    stream = prefetch(itertools.count(), 2)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
