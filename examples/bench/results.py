"""What the benchmarks share: reading ids, peak memory, one line of JSON a measurement."""

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from seq2seq.config import ModelConfig

SIZES = {
    "tiny": ModelConfig(d_model=128, d_ff=256, n_heads=4, dropout=0.3),
    "base": ModelConfig(
        d_model=512, d_ff=2048, n_heads=8, n_encoder_layers=6, n_decoder_layers=6, dropout=0.1
    ),
}


def read_ids(path: Path, split: str, language: str) -> list[np.ndarray]:
    """The sentences of one side: `SPLIT_LANGUAGE_flat` and `_off` of an .npz file."""
    with np.load(path) as arrays:
        flat, offsets = arrays[f"{split}_{language}_flat"], arrays[f"{split}_{language}_off"]
    return [flat[a:b] for a, b in itertools.pairwise(offsets)]


def record(folder: Path | None, fields: dict[str, object]) -> None:
    """Print a measurement, and append it to `results.jsonl` in a folder if there is one."""
    line = json.dumps({**fields, "when": time.strftime("%H:%M:%S")})
    print(line, flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "results.jsonl").open("a") as file:
            file.write(line + "\n")


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The most memory in use meanwhile, MiB resident, of this process and its children together."""
    peak, is_over = [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            peak[0] = max(peak[0], sum(map(resident, ["self", *children])))

    def resident(process: str) -> float:
        """Its share of memory: what several have counts in parts."""
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            return 0.0
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()
