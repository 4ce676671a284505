"""Decoding speed: sentences and target tokens per second, load time, peak memory.

    python examples/bench/decode.py DATA [--beam-size 5] [--precision fp32|bf16] [--workers 2x1]
    python examples/bench/decode.py DATA --quantization int8      # the same by CTranslate2, through tfm

DATA holds `ids.npz` (see train.py; here the sentences `test_en`) and text, `train.en` and `train.de`, for
the tokenizer that a saved model needs. The model has random weights, and every sentence gets exactly
`--length` tokens, so that every engine does the same steps. Batches are decoded as `tfm translate` does:
longest first, several at once, each by one thread.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from results import SIZES, peak_memory, read_ids, record

from seq2seq.batch import Example
from seq2seq.checkpoint import load_model, save_model
from seq2seq.config import SearchConfig
from seq2seq.export import export_engine
from seq2seq.model import Transformer
from seq2seq.translator import Translator
from tokenizer.folder import train_tokenizer
from tokenizer.special import BOS, MASK, PAD, UNK


def make_model(data: Path, size: str, quantization: str | None, folder: Path) -> Path:
    """A model folder with random weights, whose outputs hold no control ids, as those of a trained one.

    (What CTranslate2 finds with one in it is searched for again: `seq2seq.engine`.)
    """
    tokenizer = train_tokenizer([data / "train.en", data / "train.de"], vocab_size=8000)
    torch.manual_seed(1)
    config = replace(SIZES[size], vocab_size=tokenizer.vocab_size)
    model = Transformer(config)
    with torch.no_grad():
        model.decoder_norm.bias.fill_(0.5)
        model.output.weight[[PAD, UNK, BOS, MASK]] = -4.0
    weights = dict(model.named_parameters())
    save_model(folder / "ours", config, weights, tokenizer)
    if quantization is None:
        return folder / "ours"
    export_engine(load_model(folder / "ours"), quantization, folder / "theirs")
    return folder / "theirs"


def fixed_length(beam_size: int, length: int) -> SearchConfig:
    """A search whose outputs all have the same number of tokens."""
    return SearchConfig(
        beam_size=beam_size, min_len=length, max_len_factor=0, max_len_extra=length, max_repeats=0
    )


def decode(
    translator: Translator, sources: list[np.ndarray], batch: int, config: SearchConfig
) -> int:
    """Translate everything, longest first; the number of tokens that came out."""
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    examples = [Example(sources[i].tolist(), None, i) for i in order]
    tasks = [(examples[i : i + batch], config, 0, False) for i in range(0, len(examples), batch)]
    batches = translator.workers.map(type(translator.batches).search, tasks)
    return sum(len(best.ids) for found, _ in batches for best, *_ in found)


def main() -> None:
    """Decode a few times and print each time's figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--beam-size", type=int, default=5, help="1 is greedy")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, int8, fp64; auto")
    parser.add_argument("--quantization", help="decode by CTranslate2: float32, int8 …")
    parser.add_argument("--workers", default="2x1", help="batches at once x threads of each")
    parser.add_argument("--batch", type=int, default=64, help="sentences of a batch")
    parser.add_argument("--length", type=int, default=16, help="tokens of every translation")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder of results.jsonl")
    options = parser.parse_args()

    n_workers, n_threads = map(int, options.workers.split("x"))
    torch.set_num_threads(n_threads)
    sources = read_ids(options.data / "ids.npz", "test", "en")[: options.sentences]
    config = fixed_length(options.beam_size, options.length)
    precision = options.precision if options.quantization is None else "auto"
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_model(options.data, options.size, options.quantization, Path(temporary))
        start = time.perf_counter()
        translator = Translator.load(folder, "cpu", precision, n_workers=n_workers)
        load_seconds = time.perf_counter() - start
    decode(translator, sources[:64], 32, fixed_length(options.beam_size, 4))
    for _ in range(options.repeat):
        with peak_memory() as peak:
            start = time.perf_counter()
            n_tokens = decode(translator, sources, options.batch, config)
            seconds = time.perf_counter() - start
        assert n_tokens == options.length * len(sources), n_tokens
        kind = f"ctranslate2 {options.quantization}" if options.quantization else precision
        record(
            options.out,
            {
                "work": "decode",
                "peer": "tfm",
                "version": metadata.version("tfm"),
                "size": options.size,
                "beam": options.beam_size,
                "variant": f"{kind} {options.workers} batch={options.batch}",
                "sent_per_s": round(len(sources) / seconds, 2),
                "tok_per_s": round(n_tokens / seconds, 1),
                "load_s": round(load_seconds, 2),
                "rss_mib": round(peak[0]),
            },
        )


if __name__ == "__main__":
    main()
