import inspect

import pytest

from cli.evaluate import evaluate
from cli.options import search_config
from cli.score import score
from cli.translate import translate
from seq2seq.config import SearchConfig
from seq2seq.translator import Translator


def test_options_that_were_not_given_leave_the_defaults():
    assert search_config({"beam_size": None, "n_best": None}) == SearchConfig()


@pytest.mark.parametrize(
    "function", [translate, evaluate, score, Translator, Translator.load], ids=lambda f: f.__name__
)
def test_as_much_is_translated_at_once_wherever_nothing_else_is_said(function):
    assert inspect.signature(function).parameters["batch_tokens"].default is None


def test_on_a_cpu_4096_tokens_are_translated_at_once(model):
    assert Translator.load(model, "cpu", "fp32").batch_tokens == 4096
