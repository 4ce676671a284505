"""Training speed: source and target tokens without padding, per second of wall time.

    python examples/bench/train.py IDS.npz [--size tiny|base] [--precision fp32|bf16] [--profile]
    torchrun --nproc-per-node 2 examples/bench/train.py IDS.npz --threads 1     as `tfm train` does it

IDS.npz holds a tokenised corpus as flat ids with offsets: `train_en_flat`, `train_en_off` (one offset
more than sentences), `train_de_flat`, `train_de_off`. Ids 0 to 4 are control ids. A batch is
sentences × longest side ≤ 4,096 tokens, EOS counted; several processes share an update of that size, as
`tfm train` has them do on a CPU. Data loading and the optimizer are included.
"""

import argparse
import functools
import itertools
import os
import time
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # as in cli/app.py

import numpy as np
import torch
from results import SIZES, read_ids, record

from cli.process import keep_freed_memory
from seq2seq.batch import Example, collate
from seq2seq.batching import START, BatchPlan, Position, cut_pool, micro_batches
from seq2seq.config import OptimConfig
from seq2seq.distributed import join_world, leave_world
from seq2seq.hardware import DTYPES
from seq2seq.model import Transformer, count_parameters
from seq2seq.objectives import cross_entropy
from seq2seq.optim import FlatParameters, Optimizer, learning_rate
from seq2seq.prefetch import prefetch

BATCH_TOKENS = 4096
WARM_UP = {"tiny": 20, "base": 3}


def main() -> None:
    """Train for a while and print the speed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ids", type=Path)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, help="folder of results.jsonl")
    parser.add_argument("--profile", action="store_true", help="where the time of ten steps goes")
    parser.add_argument("--release", action="store_true", help="let glibc return freed memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.release:
        keep_freed_memory()
    world = join_world(os.environ, "cpu")

    src, tgt = (read_ids(options.ids, "train", language) for language in ("en", "de"))
    torch.manual_seed(1)
    model = Transformer(SIZES[options.size]).train()
    flat = FlatParameters(model, DTYPES[options.precision], world)
    config = OptimConfig(lr=5e-4, clip_norm=0.0)
    optimizer = Optimizer(flat, config, ema=0.0)

    def load(rows: np.ndarray, pool: Position) -> list[Example]:
        return [Example(src[i], tgt[i], int(i)) for i in rows]

    plan = BatchPlan(seed=1, batch_tokens=BATCH_TOKENS // world.size)
    cut = functools.partial(cut_pool, len(src), load, plan)
    stream = micro_batches(len(src), cut, plan, START)
    mine = itertools.islice(stream, world.rank, None, world.size)
    batches = prefetch((collate(examples) for _, examples in mine), 16)

    def step() -> tuple[float, float, float]:
        """One update; returns tokens, tokens with padding, and seconds so far, of rank 0."""
        batch = next(batches)
        loss = cross_entropy(model, batch, smoothing=0.1)
        loss.total.backward()
        flat.collect()
        world.sum(flat.grad)
        n_target, n_tokens, n_cells, now = world.sum_numbers(
            loss.n_tokens,
            batch.n_tokens,
            batch.n_cells,
            time.perf_counter() if world.is_first else 0.0,
        )
        flat.grad.div_(n_target)
        lr = learning_rate(config, optimizer.step + 1, None)
        optimizer.update(lr, optimizer.gradient_norm())
        return n_tokens, n_cells, now

    for _ in range(WARM_UP[options.size]):
        step()
    if options.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(10):
                step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
        return
    _, _, start = step()
    n_tokens = n_cells = seconds = 0.0
    n_steps = 0
    while seconds < options.seconds:
        tokens, cells, now = step()
        n_tokens, n_cells, n_steps = n_tokens + tokens, n_cells + cells, n_steps + 1
        seconds = now - start
    batches.close()  # stops its thread
    if world.is_first:
        record(
            options.out,
            {
                "work": "train",
                "peer": "tfm",
                "version": metadata.version("tfm"),
                "size": options.size,
                "params": count_parameters(model),
                "variant": f"{options.precision} {world.size}x{options.threads}",
                "tok_per_s": round(n_tokens / seconds, 1),
                "updates": n_steps,
                "wall_s": round(seconds, 2),
                "ms_per_update": round(1000 * seconds / n_steps, 1),
                "tok_per_update": round(n_tokens / n_steps, 1),
                "padding": round(1 - n_tokens / n_cells, 4),
            },
        )
    leave_world(world)


if __name__ == "__main__":
    main()
