"""A long stream through `tfm translate`: each line has its answer, in its place, in flat memory."""

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"
KNOWN = [
    (s["source"].encode(), s["greedy"]["text"].encode())
    for s in json.loads((DATA / "format_1.json").read_bytes())["sentences"]
    if s["source"].strip()
]
ODD = ["\0", "\x1b[31m", "a\rb", "\x85", "\u2028", "\x0b", "\x0c", "\x1c", "\ufeff", "\u202e", "💬"]
ODD += [
    "</s>",
    "<pad>",
    "▁",
    "👩‍🚀",
    "e\u0301",
    "한국어",
    "مرحبا",
    "{}",
    "<html>",
    "\ud7ff",
    "\t|\t",
]


def lines(seed, n):
    """Lines of all kinds, and the answers to those of which it is known."""
    rng = random.Random(seed)
    for _ in range(n):
        match rng.choice(["known", "known", "blank", "odd", "broken", "words"]):
            case "known":
                yield rng.choice(KNOWN)
            case "blank":
                blank = rng.choice([b"", b" ", b"\t", b"  \t", b"\xc2\xa0", b"\xe2\x80\xa8"])
                yield blank, b""
            case "odd":
                yield (
                    "".join(rng.choices(ODD, k=rng.randint(1, 4))).encode().rstrip(b"\r") + b".",
                    None,
                )
            case "broken":
                yield b"b" + rng.randbytes(rng.randint(1, 6)).replace(b"\n", b"") + b"b", None
            case "words":
                yield b" ".join(rng.choices([s for s, _ in KNOWN], k=rng.randint(1, 2))), None


def resident(process):
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process.pid}/statm").read_bytes().split()[1]) * 4096


def stream(n, seed, entry):
    """Translate n lines.

    Returns:
        Lines that came back, lines that were not what they must be, and the memory held every 1000.
    """
    command = [*entry, "translate", "-m", str(DATA / "format_1"), "--beam-size", "1"]
    command += ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:

        def feed():
            with process.stdin:
                for source, _ in lines(seed, n):
                    process.stdin.write(source + b"\n")

        feeder = threading.Thread(target=feed)
        feeder.start()
        expected = lines(seed, n)
        n_back, wrong, memory = 0, [], []
        for line in process.stdout:
            source, answer = next(expected)
            n_back += 1
            if answer is not None and line != answer + b"\n":
                wrong.append((n_back, source, line))
            if n_back % 1000 == 0:
                memory.append(resident(process))
        feeder.join()
    assert process.returncode == 0
    return n_back, wrong, memory


@pytest.fixture
def entry():
    """The command as a process of its own."""
    return [sys.executable, "-P", "-c", "import sys; from cli.app import main; sys.exit(main())"]


def test_each_line_of_a_stream_has_its_answer_in_its_place(entry, tally):
    n_back, wrong, _ = stream(3000, 1, entry)
    tally["lines streamed"] += n_back
    assert (n_back, wrong) == (3000, [])


@pytest.mark.torture
def test_a_long_stream_has_every_answer_in_its_place_and_flat_memory(entry, tally):
    """Libraries keep what they computed for shapes they have seen; when they have seen them, no more."""
    n_back, wrong, memory = stream(200_000, 2, entry)
    tally["lines streamed"] += n_back
    assert (n_back, wrong) == (200_000, [])
    assert max(memory[140:]) - max(memory[:140]) < 16 << 20
