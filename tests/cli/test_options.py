import inspect

import pytest
import torch

from cli.evaluate import evaluate
from cli.options import enough_memory, search_config
from cli.score import score
from cli.translate import translate
from seq2seq.config import SearchConfig
from seq2seq.translator import Translator
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


def test_options_that_were_not_given_leave_the_defaults():
    assert search_config({"beam_size": None, "n_best": None}) == SearchConfig()


@pytest.mark.parametrize(
    "function", [translate, evaluate, score, Translator, Translator.load], ids=lambda f: f.__name__
)
def test_as_much_is_translated_at_once_wherever_nothing_else_is_said(function):
    assert inspect.signature(function).parameters["batch_tokens"].default is None


def test_on_a_cpu_4096_tokens_are_translated_at_once(model):
    assert Translator.load(model, "cpu", "fp32").batch_tokens == 4096
