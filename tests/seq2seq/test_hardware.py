import os
import time

import pytest
import torch

from seq2seq.hardware import (
    DTYPES,
    choose_device,
    choose_precision,
    choose_threads,
    is_out_of_memory,
    multiplies_int8,
)
from tokenizer.errors import UserError

CPU = torch.device("cpu")


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == CPU


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"--device cuda: .*use --device cpu"):
        choose_device("cuda")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="--device tpu: is not one of auto, cpu, cuda"):
        choose_device("tpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="process 3 of this machine has no GPU, as it sees 2"):
        choose_device("auto", 2)


@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_taken(name: str) -> None:
    assert choose_precision(name, CPU) == (name, "as asked for")
    assert name in DTYPES


def test_auto_chooses_a_precision_with_a_reason() -> None:
    name, why = choose_precision("auto", CPU)
    assert name in ("fp32", "bf16")
    assert "bf16 units" in why


def test_bf16_is_not_measured_where_it_takes_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    start = time.process_time()
    assert choose_precision("auto", CPU) == ("fp32", "this CPU has no fast bf16 units")
    assert time.process_time() - start < 0.05


@pytest.mark.parametrize("has_int8", [False, True])
@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("d_model", [0, 256, 512])
def test_auto_takes_int8_for_wide_models_in_use(
    d_model: int, has_amx: bool, has_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_int8)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    is_int8 = has_int8 and torch.backends.mkldnn.is_available() and not has_amx and d_model == 512
    assert (choose_precision("auto", CPU, d_model)[0] == "int8") == is_int8


def test_int8_is_taken_where_the_cpu_multiplies_it() -> None:
    if not multiplies_int8():
        pytest.skip("no VNNI")
    assert choose_precision("int8", CPU)[0] == "int8"


def test_int8_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--precision int8: needs a CPU"):
        choose_precision("int8", torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(UserError, match="--precision int8: needs a CPU"):
        choose_precision("int8", CPU)


@pytest.mark.parametrize(("name", "message"), [("fp16", "needs a GPU"), ("int4", "is not one of")])
def test_a_precision_that_cannot_be_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"--precision {name}: {message}"):
        choose_precision(name, CPU)


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("asked", "environment", "n_threads"),
    [  # 1024 are the most
        (3, {"OMP_NUM_THREADS": "5"}, 3),
        (None, {"OMP_NUM_THREADS": "5"}, 5),
        (None, {"OMP_NUM_THREADS": "0"}, 1),
        (None, {"OMP_NUM_THREADS": "x"}, CORES),
        (None, {"OMP_NUM_THREADS": "²"}, CORES),
        (None, {"OMP_NUM_THREADS": ""}, CORES),
        (None, {"OMP_NUM_THREADS": "100000"}, 1024),
        (None, {"OMP_NUM_THREADS": "99999999999"}, 1024),
        (None, {"OMP_NUM_THREADS": "9" * 5000}, 1024),
        (None, {}, CORES),
        (None, {"LOCAL_WORLD_SIZE": str(CORES)}, 1),
        (None, {"LOCAL_WORLD_SIZE": "1000"}, 1),
        (None, {"LOCAL_WORLD_SIZE": "x"}, CORES),
        (None, {"LOCAL_WORLD_SIZE": "²"}, CORES),
        (None, {"LOCAL_WORLD_SIZE": "0"}, CORES),
        (None, {"LOCAL_WORLD_SIZE": "9" * 5000}, 1),
    ],
)
def test_threads_are_as_asked_else_shared_with_the_siblings(
    asked: int | None, environment: dict[str, str], n_threads: int
) -> None:
    assert choose_threads(asked, environment) == n_threads


@pytest.mark.parametrize(
    ("what", "is_lack"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_pytorch_says(what: str, is_lack: bool) -> None:
    assert is_out_of_memory(RuntimeError(what)) == is_lack
