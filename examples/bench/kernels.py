"""The measurements behind three choices in the code: dropout masks, attention, the loss.

python examples/bench/kernels.py [--threads 2]
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.attention import attend
from seq2seq.dropout import keep_mask
from seq2seq.objectives import LinearCrossEntropy

ROUNDS, CALLS = 5, 5


def compare(title: str, **actions: Callable[[], object]) -> None:
    """Time actions in turn, A B A B …, and print the median of each."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            action()
            start = time.perf_counter()
            for _ in range(CALLS):
                action()
            times[name].append((time.perf_counter() - start) / CALLS * 1e3)
    medians = {name: sorted(t)[ROUNDS // 2] for name, t in times.items()}
    print(title, *(f"{name} {ms:.2f} ms" for name, ms in medians.items()), sep="   ")


def dropout() -> None:
    """Masks for 3,500 tokens of width 128."""
    x = torch.randn(3500, 128)
    compare(
        "dropout masks",
        bernoulli=lambda: torch.empty_like(x).bernoulli_(0.7),
        keep_mask=lambda: keep_mask(x.shape, 0.3, x),
    )


def attention(dtype: torch.dtype, length: int) -> None:
    """Forward and backward, 4,096 tokens, 4 heads of width 32."""
    rows = 4096 // length
    mask = (torch.arange(length)[None] < torch.randint(length // 2, length + 1, (rows, 1)))[
        :, None, None
    ]
    heads = [torch.randn(rows, 4, length, 32, dtype=dtype, requires_grad=True) for _ in range(3)]

    def run(kernel: Callable[..., Tensor]) -> None:
        kernel(*heads, mask).sum().backward()

    compare(
        f"attention, {dtype}, {length} positions",
        fused=lambda: run(F.scaled_dot_product_attention),
        ours=lambda: run(attend),
    )


def loss(dtype: torch.dtype) -> None:
    """Forward and backward of projection and loss, 3,500 tokens, 8,000 words, width 128."""
    states = torch.randn(3500, 128, dtype=dtype, requires_grad=True)
    weight = (torch.randn(8000, 128) * 128**-0.5).to(dtype).requires_grad_()
    targets = torch.randint(5, 8000, (3500,))

    def reference() -> None:
        logits = (states @ weight.t()).float()
        F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum").backward()

    compare(
        f"projection and loss, {dtype}",
        reference=reference,
        ours=lambda: LinearCrossEntropy.apply(states, weight, targets, 0.1)[0].backward(),
    )


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    dropout()
    for dtype in (torch.float32, torch.bfloat16):
        for length in (12, 24, 48, 96, 192):
            attention(dtype, length)
        loss(dtype)


if __name__ == "__main__":
    main()
