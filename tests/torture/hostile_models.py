"""Give the commands models that somebody has tampered with, one after the other.

    python hostile_models.py MODEL FOLDER SEED N

MODEL is a good model folder; each case is a copy in FOLDER with something wrong in it. The manifest
is left as it was, so that it must notice, or made to agree, as an attacker can. Every command that
reads a model must then end with 2 and one line that names a file of the folder, or, when what was
changed is allowed (other numbers for weights), with 0: within a second, within little memory, without
running what the files hold.

Prints one JSON object with what was done; a broken promise is an AssertionError.
"""

import json
import os
import random
import shutil
import signal
import struct
import sys
from collections import Counter
from pathlib import Path

from calls import call

from cli.app import main as tfm
from seq2seq.storage import manifest

SECONDS = 1.0  # of processor, at most, after everything is loaded
MEMORY = 512 << 20  # bytes more than before, at most
HUGE = [1 << 31, 1 << 40, 1 << 62, 1 << 64, 10**30, -1, 0, -(1 << 63)]
VALUES = [
    *HUGE,
    *(None, True, "", "x", "../../etc/passwd", "/dev/zero", "\0", "ä" * 5000),
    *([], {}, [[]], [0, 1 << 40], {"a": 1}, 0.5, 1e308),
]
RAW = [  # what no JSON writer writes
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 6000,
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b'"\\ud800"',
    b"\xff\xfe",
    b'{"a":1,"a":2}',
]


def payload(marker):
    """A pickle that makes a file when it is loaded."""
    command = f"touch {marker}".encode()
    return (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    )


def any_leaf(document, rng):
    """A container in a document and a key in it."""
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list) and len(places) < 5000:
                walk(node[key])

    walk(document)
    return rng.choice(places)


def tampered_json(content, rng):
    """One value changed, added, removed, or written as JSON cannot be."""
    document = json.loads(content)
    node, key = any_leaf(document, rng)
    match rng.choice(["value", "raw", "remove", "add", "twice"]):
        case "value":
            node[key] = rng.choice(VALUES)
        case "raw":
            node[key] = "@"
            return json.dumps(document).encode().replace(b'"@"', rng.choice(RAW), 1)
        case "remove":
            del node[key]
        case "add" if isinstance(node, dict):
            node[rng.choice(["x", "__class__", "../x", "auto_map", "\0"])] = rng.choice(VALUES)
        case "twice":
            return content.replace(b"{", b'{"format": 1, "format": 1, ', 1)
    return json.dumps(document).encode()


def tampered_tensors(content, rng):
    """Another header before the same data, or other data after the same header."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    match rng.choice(["header", "length", "numbers", "nothing"]):
        case "header":
            header = tampered_json(header, rng)
        case "length":
            return (
                struct.pack("<Q", rng.choice([0, 1, length - 1, 1 << 40, (1 << 64) - 1]))
                + header
                + data
            )
        case "numbers":
            at = rng.randrange(len(data) // 4) * 4
            worst = rng.choice([float("nan"), float("inf"), 3e38, 1e-45])
            data = data[:at] + struct.pack("<f", worst) + data[at + 4 :]
        case "nothing":
            data = b""
    return struct.pack("<Q", len(header)) + header + data


def damaged(content, rng):
    """What a bad disk or a broken transfer makes of a file."""
    at = rng.randrange(len(content) + 1)
    match rng.choice(["cut", "longer", "flip", "zeros", "noise"]):
        case "cut":
            return content[: rng.choice([0, 1, at, len(content) - 1])]
        case "longer":
            return content + rng.choice([b"x", bytes(4096), content])
        case "flip":
            flipped = bytearray(content)
            for _ in range(rng.choice([1, 1, 8])):
                flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case "zeros":
            return content[:at] + bytes(min(100, len(content) - at)) + content[at + 100 :]
    return rng.randbytes(rng.choice([10, len(content)]))


def replaced(path, rng, outside):
    """Something else than a regular file under its name."""
    path.unlink()
    match rng.choice(
        ["nothing", "folder", "pipe", "device", "loop", "dangling", "outside", "huge"]
    ):
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/full", "/dev/tty"]))
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "outside":
            path.symlink_to(outside)
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)


def tamper(folder, rng, marker):
    """Do one thing to a model folder; what it was, in words."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(files)
    name = path.relative_to(folder)
    content = path.read_bytes()
    kind = rng.choice(
        ["content", "content", "content", "damage", "kind", "swap", "pickle", "stray"]
    )
    match kind:
        case "content" if path.suffix == ".json":
            path.write_bytes(tampered_json(content, rng))
        case "content" if path.suffix == ".safetensors":
            path.write_bytes(tampered_tensors(content, rng))
        case "content" | "damage":
            path.write_bytes(damaged(content, rng))
        case "kind":
            replaced(path, rng, marker.with_name("outside"))
        case "swap":
            other = rng.choice(files)
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case "pickle":
            path.write_bytes(payload(marker))
        case "stray":
            for stray in (
                "optim.pt",
                "pytorch_model.bin",
                "tokenizer/tokenizer.pkl",
                "sitecustomize.py",
            ):
                (folder / stray).write_bytes(payload(marker))
            return kind
    if path.name != "manifest.json" and kind != "kind" and rng.random() < 0.7:
        rest = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
        entries = {str(p.relative_to(folder)): p.read_bytes() for p in rest}
        (folder / "manifest.json").write_bytes(manifest(entries))
        return f"{kind} of {name}, manifest agrees"
    return f"{kind} of {name}"


def main(model, folder, seed, n_cases):
    rng = random.Random(seed)
    marker = folder / "executed"
    marker.with_name("outside").write_bytes(b"root:x:0:0\n")
    counts = Counter()
    commands = [
        ["translate", "--beam-size", "1"],
        ["info"],
        ["encode"],
        ["export", "--to", "safetensors"],
    ]
    text = folder / "text"
    text.write_bytes(b"a dog\n")
    for command, *options in commands:  # now everything is loaded
        where = {"export": ["-o", str(folder / "first")], "info": []}.get(command, [str(text)])
        assert tfm([command, *options, "-m", str(model), *where]) == 0
    for number in range(n_cases):
        case = folder / f"case{number}"
        shutil.copytree(model, case)
        what = tamper(case, rng, marker)
        command = rng.choice(commands)
        more = ["-o", folder / "export"] if command[0] == "export" else []
        result = call([*command, "-m", case, *more], b"a dog\n\nthe cat\n", MEMORY)
        where = f"case {number}, {what}: tfm {command[0]}: {result}"
        assert result.code in (0, 2), where
        assert result.code != -signal.SIGALRM, where
        assert "Traceback" not in result.err, where
        assert result.seconds < SECONDS, where
        if result.code == 2:
            assert result.err.count("tfm: error: ") == 1, where
            assert str(case) in result.err, where
            assert not result.out, where
        elif command[0] == "translate":
            assert result.out.count(b"\n") == 3, where
        assert not marker.exists(), where
        counts[result.code] += 1
        shutil.rmtree(case)
        shutil.rmtree(folder / "export", ignore_errors=True)
    sys.stdout.write(
        "\n" + json.dumps({"cases": n_cases, "refused": counts[2], "allowed": counts[0]})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
