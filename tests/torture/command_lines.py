"""Give the command options and values that nobody would, one command line after the other.

    python command_lines.py MODEL SRC TGT FOLDER SEED N

Whatever is asked for, the answer is an exit code of the contract and at most one line of complaint,
never a traceback, a hang, or standard output on an error. Prints one JSON object with what was done;
a broken promise is an AssertionError.
"""

import dataclasses
import json
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import typer
from calls import call

from cli.app import app
from cli.app import main as tfm
from seq2seq.config import RunConfig

NUMBERS = ["0", "1", "-1", "2", "3", "64", "1e3", "0.5", "-0.0", "nan", "inf", "-inf", "9" * 30]
WORDS = ["", " ", "x", "auto", "cpu", "cuda", "bpe", "text", "jsonl", "--", "-", "=", "a=b", "30m"]
STRANGE = [
    "\x1b[31m",
    "\u202e",
    "💬",
    "\udcff",
    "x" * 5000,
    "../..",
    "%s%n",
    "$(id)",
    "'; --",
    "\n",
]
MEANT = {  # values that get far
    "--device": ["cpu"],
    "--threads": ["1"],
    "--format": ["text", "tsv", "jsonl"],
    "--to": ["safetensors"],
    "--max-steps": ["1"],
    "--preset": ["tiny"],
    "--algorithm": ["bpe", "unigram"],
    "--library": ["tokenizers", "sentencepiece"],
    "--vocab-size": ["280", "300"],
}
MODEL = {  # what makes a command complete; files are src, tgt, a model
    "translate": ["-m", "{2}"],
    "encode": ["-m", "{2}"],
    "decode": ["-m", "{2}"],
    "info": ["-m", "{2}"],
    "export": ["-m", "{2}", "--to", "safetensors", "-o", "out"],
    "score": ["-m", "{2}", "--src", "{0}", "--tgt", "{1}"],
    "average": ["-o", "out", "{2}"],
    "evaluate": ["--ref", "{0}", "--hyp", "{1}"],
    "train-tokenizer": ["{0}", "{1}", "--vocab-size", "300"],
}
TINY = "d_model=8 d_ff=8 n_heads=2 n_encoder_layers=1 n_decoder_layers=1 dropout=0"


def options_of(command):
    """Names of the options of a command, and whether each takes a value."""
    found = [(o.opts[-1], not o.is_flag) for o in command.params if o.param_type_name == "option"]
    return [(name, takes) for name, takes in found if name not in ("--help", "--threads")]


def any_value(name, rng, files):
    if name in MEANT and rng.random() < 0.7:
        return rng.choice(MEANT[name])
    if name == "--set":
        tables = dataclasses.asdict(RunConfig())
        name = rng.choice([f"{table}.{key}" for table, values in tables.items() for key in values])
        return f"{name}={rng.choice(NUMBERS + WORDS)}"
    return rng.choice([*files, *files, *NUMBERS, *WORDS, *STRANGE])


def any_command_line(commands, rng, files):
    name = rng.choice(sorted(commands))
    words = [name]
    options = options_of(commands[name])
    for option, takes_value in rng.sample(options, rng.randint(0, min(3, len(options)))):
        words.append(option)
        if takes_value and rng.random() < 0.97:
            words.append(any_value(option, rng, files))
    words += [rng.choice([*files, *WORDS, *STRANGE]) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    if rng.random() < 0.6:
        words += [word.format(*files) for word in MODEL.get(name, [])]
    if name == "train" and rng.random() < 0.7:
        words += ["--src", files[0], "--tgt", files[1], "--threads", "1"]
        words += [w for pair in TINY.split() for w in ("--set", f"model.{pair}")]
        words += ["--max-steps", "1"]  # the last counts
    elif name == "train":
        words += ["--threads", "1", "--max-steps", "1"]
    return [word.replace("\0", "") for word in words]


def run(model, src, tgt, folder, seed, n_cases):
    rng = random.Random(seed)
    os.chdir(folder)
    # Copies, as some of the commands may well be told to write over them.
    model = shutil.copytree(model, folder / "given")
    src, tgt = shutil.copy(src, folder / "src"), shutil.copy(tgt, folder / "tgt")
    commands = typer.main.get_command(app).commands
    files = [str(src), str(tgt), str(model), "missing", ".", "/dev/null", "out", "model"]
    tiny = [word for pair in TINY.split() for word in ("--set", f"model.{pair}")]
    first = ["train", "--src", str(src), "--tgt", str(tgt), "-m", "first", "--threads", "1", *tiny]
    assert tfm([*first, "--max-steps", "1"]) == 0  # now everything is loaded
    counts = Counter()
    for number in range(n_cases):
        words = any_command_line(commands, rng, files)
        if number % 20 == 0:
            words = [
                rng.choice(WORDS + STRANGE + sorted(commands)) for _ in range(rng.randint(1, 4))
            ]
        stdin = rng.choice([b"", b"a dog\n\nthe cat", b"\xff\xfe\n1 2\n", b"6 7 8\n", b"\0\r\n"])
        result = call([*words], stdin, more_memory=2 << 30)
        where = f"case {number}: tfm {words}: {result.code} {result.err[-2000:]}"
        assert result.code in (0, 2, 3), where
        assert "Traceback" not in result.err, where
        assert result.err.count("tfm: error: ") == (result.code != 0), where
        counts[result.code] += 1
    sys.stdout.write("\n" + json.dumps({"cases": n_cases, "codes": counts}))


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:5]), int(sys.argv[5]), int(sys.argv[6]))
