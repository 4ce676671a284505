"""Memory and start of `tfm train` on a small and a large corpus, made for the purpose.

    python examples/bench/memory.py FOLDER [--pairs 100000 10000000] [--steps 30]

For each size a tiny model is trained twice: first the id store is built, then it is there already.
Both times the processes of the training are watched: the greatest sum of what only they have
(anonymous memory), and of all that is mapped, which counts pages of the store that the operating
system takes back when it needs them. The text is a block of random sentences, repeated; all sizes
share one tokenizer. Linux only, as it reads /proc. Ten million pairs take 1.5 GB in FOLDER.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tokenizer.folder import train_tokenizer

BLOCK = 100_000  # pairs that are made at random
TINY = {
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.n_encoder_layers": 2,
    "model.n_decoder_layers": 2,
    "data.batch_tokens": 1024,
    "data.bpe_dropout": 0.1,
    "data.bpe_dropout_after": 0,
    "data.holdout": 200,
    "optim.accumulate": 2,
    "optim.warmup_steps": 100,
    "train.log_every": 1,
    "train.validate_every": 1_000_000,
    "train.save_every": 1_000_000,
}
ENTRY = "import sys; from cli.app import main; sys.exit(main())"


@dataclass(frozen=True)
class Watched:
    """What was seen of a training: seconds by the clock and of computing, and MB of all processes."""

    to_first_update: float
    seconds: float
    computing: float
    private: float
    mapped: float


def write_text(folder: Path, n_pairs: int) -> tuple[Path, Path]:
    """Sentences of 5 to 8 invented words, and the same words backwards; the same every time."""
    rng = random.Random(1)
    words = ["".join(rng.choices("aeioubdfgklmnprstz", k=rng.randint(2, 8))) for _ in range(5000)]
    lines = [rng.choices(words, k=rng.randint(5, 8)) for _ in range(BLOCK)]
    paths = folder / f"{n_pairs}.src", folder / f"{n_pairs}.tgt"
    for path, order in zip(paths, (1, -1), strict=True):
        block = "".join(" ".join(line[::order]) + "\n" for line in lines).encode()
        short = "".join(" ".join(line[::order]) + "\n" for line in lines[: n_pairs % BLOCK])
        with path.open("wb") as file:
            for _ in range(n_pairs // BLOCK):
                file.write(block)
            file.write(short.encode())
    return paths


def memory(pid: int) -> tuple[float, float]:
    """Private and mapped MB of a process and of those that it started, now."""
    private = mapped = 0.0
    try:
        status = Path(f"/proc/{pid}/status").read_bytes().decode()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()
    except OSError:  # it has ended
        return 0.0, 0.0
    for line in status.split("\n"):
        name, _, value = line.partition(":")
        if name in ("RssAnon", "VmRSS"):
            kilobytes = int(value.split()[0])
            private += kilobytes / 1024 * (name == "RssAnon")
            mapped += kilobytes / 1024 * (name == "VmRSS")
    for child in children:
        more = memory(int(child))
        private, mapped = private + more[0], mapped + more[1]
    return private, mapped


def watch(arguments: list[str], log: Path) -> Watched:
    """Run a training and look at it fifty times a second."""
    start = time.monotonic()
    first = private = mapped = 0.0
    used = os.times()
    process = subprocess.Popen([sys.executable, "-c", ENTRY, *arguments])
    while process.poll() is None:
        now = memory(process.pid)
        private, mapped = max(private, now[0]), max(mapped, now[1])
        if not first and log.exists() and log.stat().st_size:
            first = time.monotonic() - start
        time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    computing = sum(os.times()[2:4]) - sum(used[2:4])
    return Watched(first, time.monotonic() - start, computing, private, mapped)


def main() -> None:
    """Train on each size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(write_text(folder, BLOCK), vocab_size=4000)
    names = ("store", "1st update", "whole", "computing", "private", "mapped")
    print(f"{'pairs':>12}" + "".join(f"{name:>11}" for name in names))
    for n_pairs in options.pairs:
        src, tgt = write_text(folder, n_pairs)
        run = folder / f"run-{n_pairs}"
        shutil.rmtree(run, ignore_errors=True)
        tokenizer.save(run / "tokenizer")
        arguments = ["train", "--src", str(src), "--tgt", str(tgt), "-m", str(run)]
        arguments += [a for name, value in TINY.items() for a in ("--set", f"{name}={value}")]
        arguments += ["--max-steps", str(options.steps)]
        for store in ("built", "there"):
            for name in ("state", "checkpoints"):  # start anew, but with the store
                shutil.rmtree(run / name, ignore_errors=True)
            (run / "log.jsonl").unlink(missing_ok=True)
            seen = watch(arguments, run / "log.jsonl")
            print(
                f"{n_pairs:12,}{store:>11}{seen.to_first_update:9.1f} s{seen.seconds:9.1f} s"
                f"{seen.computing:9.1f} s{seen.private:8.0f} MB{seen.mapped:8.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
