import os
import platform
import subprocess
import sys

import pytest

from cli.process import keep_freed_memory


@pytest.mark.parametrize(("precision", "products"), [("bf16", "high"), ("fp32", "highest")])
def test_a_gpu_trains_in_a_fixed_order(precision: str, products: str) -> None:
    # In a process of its own, as it is for good.
    program = f"""
import os, sys
import torch
from cli.process import settle_gpu

settle_gpu(torch.device("cpu"), "bf16")
assert not torch.are_deterministic_algorithms_enabled()
assert torch.backends.cuda.cudnn_sdp_enabled()
settle_gpu(torch.device("cuda"), "{precision}")
assert torch.are_deterministic_algorithms_enabled()
assert not torch.utils.deterministic.fill_uninitialized_memory
assert not torch.backends.cuda.cudnn_sdp_enabled()
assert "torch._inductor" not in sys.modules
print(torch.get_float32_matmul_precision(), os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":0:0"}  # which cuBLAS would refuse
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env=environment
    )
    assert result.stdout.decode().split() == [products, ":4096:8"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_asked_for_again() -> None:
    # In a process of its own, as it is for good.
    program = """
import resource
import numpy as np
from cli.process import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(1 << 23)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_freed_memory()
faults()
print(usual, faults())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    usual, kept = map(int, result.stdout.split())
    assert kept < usual / 10


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1 << 30, [(-3, 1 << 30), (-1, (1 << 31) - 1)]),
        (1 << 25, [(-3, 1 << 30), (-3, 1 << 25), (-1, (1 << 31) - 1)]),
        (0, [(-3, 1 << 30), (-3, 1 << 25)]),  # to set the other one alone would make it worse
    ],
)
def test_a_c_library_that_takes_less_is_given_less(
    most: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return int(parameter != -3 or value <= most)

    monkeypatch.setattr("ctypes.CDLL", lambda _: Library())
    keep_freed_memory()
    assert asked == expected


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    keep_freed_memory()
