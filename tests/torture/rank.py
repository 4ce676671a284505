"""One of several processes that train together, with a fault in it.

    torchrun … --no-python python rank.py FAULT train …

FAULT is `none`; `nan:3`, the gradient of the last rank is no number at step 3; `full:40`, the disk of
rank 0 is full from its 40th operation on; `other:FILE`, the last rank reads another source file;
`quiet`, the last rank is killed when it changes anything in the folder of the run; `late`, the last rank
reads the state of the run a second after the others.
"""

import os
import sys
import time
from pathlib import Path

import torch
from disk import Disk

from cli.app import main
from seq2seq import trainer
from seq2seq.gradients import Gradients


def spoil_gradient(at):
    """Let the gradient of this rank be no number at a step."""
    compute = Gradients.compute

    def spoilt(self, update, step, scale):
        sums = compute(self, update, step, scale)
        if step == at:
            self._flat.grad[0] = torch.nan
        return sums

    Gradients.compute = spoilt


def read_late():
    """Let this rank read the state after the others."""
    load = trainer.load_last_state

    def loaded_late(*arguments):
        time.sleep(1)
        return load(*arguments)

    trainer.load_last_state = loaded_late


def run(fault, arguments):
    kind, _, value = fault.partition(":")
    is_first, is_last = os.environ["RANK"] == "0", os.environ["RANK"] != "0"
    if kind == "nan" and is_last:
        spoil_gradient(int(value))
    if kind == "full" and is_first:
        folder = Path(arguments[arguments.index("-m") + 1]).parent
        Disk(folder, int(value), "ENOSPC", folder.with_name("struck")).install()
    if kind == "quiet" and is_last:
        folder = Path(arguments[arguments.index("-m") + 1]).parent
        Disk(folder, 1, "kill", folder.with_name("struck")).install()
    if kind == "late" and is_last:
        read_late()
    if kind == "other" and is_last:
        arguments[arguments.index("--src") + 1] = value
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
