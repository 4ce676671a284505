import pytest
import torch

from cli.errors import enough_memory
from tokenizer.errors import UserError


def test_a_lack_of_memory_is_an_error_that_says_how_much_and_what_to_do():
    with (
        pytest.raises(UserError, match=rf"tried to allocate {1 << 60} bytes.*; buy more"),
        enough_memory("buy more"),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="must match"), enough_memory("buy more"):
        torch.ones(2) + torch.ones(3)
