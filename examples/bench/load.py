"""How fast the batches of a training are made, by its own thread or by processes beside it.

    python examples/bench/load.py SRC TGT TOKENIZER [--processes 0 1 2] [--bpe-dropout 0.1]

Nothing learns from them. What a GPU would wait for is shown by the target tokens a second, what is
taken from the process that drives it by its share of computing: Python's one interpreter lock.
"""

import argparse
import contextlib
import itertools
import tempfile
import time
from pathlib import Path

from results import record

from seq2seq.batching import START
from seq2seq.blocks import Text
from seq2seq.config import RunConfig, override
from seq2seq.corpus import Corpus, open_corpus
from seq2seq.distributed import ALONE
from seq2seq.loader import Loader
from tokenizer.base import Tokenizer
from tokenizer.folder import load_tokenizer

MAX_LEN = 256
WARM_UP = 100  # updates: what is computed once, and most of what lies ready


def measure(
    corpus: Corpus, tokenizer: Tokenizer, n_processes: int, args: argparse.Namespace
) -> None:
    """Take updates as fast as they come, and write down how many those were."""
    settings = {
        "data.batch_tokens": args.batch_tokens,
        "data.max_len": MAX_LEN,
        "data.bpe_dropout": args.bpe_dropout,
        "data.bpe_dropout_after": 0,
    }
    config = override(RunConfig(), settings, "here")
    loader = Loader(config, corpus, tokenizer, ALONE, is_pinned=False, n_processes=n_processes)
    with contextlib.closing(loader.updates(START)) as updates:
        for _ in itertools.islice(updates, WARM_UP):
            pass
        start, computed, n_tokens = time.perf_counter(), time.process_time(), 0
        while (seconds := time.perf_counter() - start) < args.seconds:
            _, batch = next(updates).batches[0]
            n_tokens += int((batch.tgt_out != 0).sum())
        share = (time.process_time() - computed) / seconds
    found = {
        "what": "load",
        "processes": n_processes,
        "bpe_dropout": args.bpe_dropout,
        "target_tokens_per_s": round(n_tokens / seconds),
        "share_of_computing": round(share, 3),
    }
    record(args.out, found)


def main() -> None:
    """Measure each number of processes in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("src", "tgt", "tokenizer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bpe-dropout", type=float, default=0.1)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--out", type=Path, help="folder of results.jsonl")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        text = Text([args.src], [args.tgt], tokenizer, MAX_LEN)
        corpus = open_corpus(text, Path(folder) / "data")
        for n_processes in args.processes:
            measure(corpus, tokenizer, n_processes, args)


if __name__ == "__main__":
    main()
