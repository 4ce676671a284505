import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from recipes import MakeRequest, Quiet, everything_in, train, with_settings

from seq2seq.checkpoint import load_model
from seq2seq.recipe import prepare
from seq2seq.request import Request, check
from seq2seq.run import Run
from seq2seq.trainer import Trainer
from tokenizer.errors import UserError
from tokenizer.folder import train_tokenizer


@pytest.fixture
def trained(request_for: MakeRequest, tmp_path: Path) -> tuple[Request, Path]:
    request = request_for(tmp_path / "first")
    train(request)
    start = dataclasses.replace(request_for(tmp_path / "second"), init_from=tmp_path / "first")
    kept = {k: v for k, v in request.settings.items() if not k.startswith("model.")}
    return dataclasses.replace(start, settings=kept), tmp_path / "first"


def test_a_model_starts_from_the_weights_of_another(trained: tuple[Request, Path]) -> None:
    request, first = trained
    setup = prepare(request, Quiet())
    weights = load_model(first).weights
    assert {n: torch.equal(p, weights[n]) for n, p in setup.model.named_parameters()} == (
        dict.fromkeys(weights, True)
    )


def test_a_run_goes_on_without_the_model_that_it_started_from(
    trained: tuple[Request, Path],
) -> None:
    request, first = trained
    train(request)
    shutil.rmtree(first)
    more = with_settings(request, train__max_steps="3")
    train(more)
    assert Run(more.run).steps("state")[-1] == 3
    with pytest.raises(UserError, match="first: no such folder"):
        train(dataclasses.replace(more, overwrite=True))


def test_a_run_that_has_begun_does_not_start_from_another_model(
    trained: tuple[Request, Path], request_for: MakeRequest, tmp_path: Path
) -> None:
    request, first = trained
    train(request)
    more = with_settings(request, train__max_steps="3")
    other = dataclasses.replace(more, init_from=Run(first).checkpoint(2))
    with pytest.raises(UserError, match=r"was begun from .*first; leave --init-from out"):
        train(other)
    train(dataclasses.replace(more, init_from=None))  # and the run does not forget it
    train(with_settings(request, train__max_steps="4"))
    with pytest.raises(UserError, match=r"was begun from .*first; leave --init-from out"):
        train(dataclasses.replace(more, extend_vocab=True))

    own = request_for(tmp_path / "third")
    train(own)
    with pytest.raises(UserError, match="was begun from no other model"):
        train(dataclasses.replace(own, init_from=first))


def test_a_wide_model_is_trained_further_at_the_rate_of_wide_models(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "wide")
    train(with_settings(request, model__d_model="512"))
    start = dataclasses.replace(request_for(tmp_path / "more"), init_from=request.run, settings={})
    config, _ = check(start)
    assert (config.optim.lr, config.optim.warmup_steps) == (0.001, 1000)


def test_a_run_without_tokenizer_takes_that_of_the_model_it_starts_from(
    trained: tuple[Request, Path],
) -> None:
    request, first = trained
    shutil.rmtree(request.run / "tokenizer")
    prepare(request, Quiet())
    assert everything_in(request.run / "tokenizer") == everything_in(first / "tokenizer")


def test_another_tokenizer_than_that_of_the_model_is_refused(
    trained: tuple[Request, Path], parallel: tuple[Path, Path]
) -> None:
    request, _ = trained
    train_tokenizer(parallel, vocab_size=290).save(request.run / "tokenizer")
    with pytest.raises(UserError, match=r"is another tokenizer than that of.*--extend-vocab"):
        prepare(request, Quiet())


def test_what_is_reset_is_said_where_a_model_starts_from_another(
    trained: tuple[Request, Path],
) -> None:
    notify = Quiet()
    request, first = trained
    prepare(request, notify)
    (message,) = [m for m in notify.messages if str(first) in m]
    for word in ("step", "learning rate", "optimizer", "EMA", "begin anew"):
        assert word in message
    assert not any("vocabulary" in m for m in notify.messages)


def test_a_model_goes_over_to_another_tokenizer_where_asked(
    trained: tuple[Request, Path], parallel: tuple[Path, Path]
) -> None:
    request, first = trained
    request = dataclasses.replace(request, extend_vocab=True)
    train_tokenizer(parallel, vocab_size=290).save(request.run / "tokenizer")
    notify = Quiet()
    setup = prepare(request, notify)
    assert any("another vocabulary, 300 → 290: 285 pieces keep" in m for m in notify.messages)
    assert setup.config.model.vocab_size == setup.tokenizer.vocab_size == 290
    start = load_model(first)
    old, new = start.tokenizer.vocabulary(), setup.tokenizer.vocabulary()
    rows = setup.model.src_embedding.weight
    assert all(
        torch.equal(rows[new.index(piece)], start.weights["src_embedding.weight"][old.index(piece)])
        for piece in new
    )
    train(request)
    notify = Quiet()
    prepare(with_settings(request, train__max_steps="4"), notify)  # and goes on as any other run
    assert notify.messages == [m for m in notify.messages if "held out" in m]


def test_a_tokenizer_is_trained_on_the_new_text_to_go_over_to(
    trained: tuple[Request, Path], tmp_path: Path
) -> None:
    request, _ = trained
    shutil.rmtree(request.run / "tokenizer")
    text = tmp_path / "new"
    text.write_bytes(b"wholly other words\nare in this text\n" * 50)
    request = dataclasses.replace(request, extend_vocab=True, src=[text], tgt=[text])
    notify = Quiet()
    setup = prepare(request, notify)
    assert b" wholly" in setup.tokenizer.vocabulary()
    assert any("training one" in m for m in notify.messages)


def test_a_run_does_not_overwrite_the_model_it_starts_from(trained: tuple[Request, Path]) -> None:
    request, first = trained
    before = everything_in(first)
    for init_from in (first, Run(first).checkpoint(2)):
        own = dataclasses.replace(request, run=first, init_from=init_from, overwrite=True)
        with pytest.raises(UserError, match="--overwrite would remove it"):
            prepare(own, Quiet())
    assert everything_in(first) == before


def test_a_resumed_run_keeps_its_own_weights(trained: tuple[Request, Path]) -> None:
    request, first = trained
    train(request)
    setup = prepare(with_settings(request, train__max_steps="4"), Quiet())
    trainer = Trainer(setup, Quiet())
    assert trainer.progress.step == 2
    assert not torch.equal(
        setup.model.output.weight, load_model(first).weights["src_embedding.weight"]
    )
