from pathlib import Path

import pytest
import torch
from torch import Tensor

from seq2seq.state import load_state, save_state
from tokenizer.errors import UserError


def state() -> dict[str, Tensor]:
    return {"weights": torch.arange(5.0), "step": torch.tensor(3.0), "ema": torch.ones(2).double()}


def test_a_state_reads_back_into_live_tensors(tmp_path: Path) -> None:
    save_state(tmp_path / "s", state(), {"progress": {"step": 3}})
    live = {name: torch.zeros_like(t) for name, t in state().items()}
    facts = load_state(tmp_path / "s", live)
    assert facts["progress"] == {"step": 3}
    assert all(torch.equal(live[name], t) for name, t in state().items())


@pytest.mark.parametrize(
    "other",
    [
        {},
        {**state(), "more": torch.ones(1)},
        {**state(), "weights": torch.arange(6.0)},
        {**state(), "weights": torch.arange(5.0).double()},
    ],
)
def test_a_state_of_something_else_is_refused(other: dict[str, Tensor], tmp_path: Path) -> None:
    save_state(tmp_path / "s", state(), {})
    with pytest.raises(UserError, match=r"state\.safetensors: belongs to another model"):
        load_state(tmp_path / "s", other)
