"""What only a GPU can tell; `pytest -m gpu` in an environment whose PyTorch has CUDA."""

import json

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resuming_is_exact(tfm, train_arguments, precision):
    more = ["--device", "cuda", "--precision", precision, "--verify-resume"]
    result = tfm(*train_arguments, *more)
    assert result.code == 0, result.err
    assert result.out.endswith(b"equal\n")


@pytest.mark.parametrize("options", [["--beam-size", "1"], ["--beam-size", "4"]])
def test_translations_are_those_of_the_cpu(tfm, model, parallel, options):
    command = ["translate", "-m", model, parallel[0], "--precision", "fp32", *options]
    on_cpu, on_gpu = (tfm(*command, "--device", device).out for device in ("cpu", "cuda"))
    equal = sum(a == b for a, b in zip(on_cpu.split(b"\n"), on_gpu.split(b"\n"), strict=True))
    assert equal >= 0.99 * on_cpu.count(b"\n")  # sums are rounded in another order there


def test_training_takes_the_gpu_by_itself_and_learns(tfm, train_arguments, tmp_path):
    result = tfm(*train_arguments, "--set", "train.max_steps=40", "--set", "train.log_every=20")
    assert result.code == 0, result.err
    losses = [
        float(line.split("loss ")[1].split()[0])
        for line in result.err.splitlines()
        if line.startswith("step ") and "loss " in line
    ]
    assert losses[-1] < losses[0]
    (state, *_) = (tmp_path / "run" / "state").glob("*/state.json")
    assert json.loads(state.read_bytes())["environment"]["device"] == torch.cuda.get_device_name()
