import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from recipes import MakeRequest, Quiet, everything_in, train, with_settings

from seq2seq.config import differences
from seq2seq.loader import resample
from seq2seq.recipe import prepare
from seq2seq.request import Request, check
from seq2seq.run import Run
from tokenizer.errors import UserError
from tokenizer.folder import load_tokenizer, train_tokenizer

# The first time


def test_a_tokenizer_is_trained_where_there_is_none(
    request_for: MakeRequest, parallel: tuple[Path, Path], tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/tokenizer")
    notify = Quiet()
    setup = prepare(request, notify)
    assert "no tokenizer in" in notify.messages[0]
    expected = train_tokenizer(parallel, vocab_size=300)
    assert load_tokenizer(tmp_path / "run/tokenizer").files() == expected.files()
    assert setup.config.model.vocab_size == expected.vocab_size
    assert setup.model.output.weight.size(0) == expected.vocab_size


def test_a_tokenizer_that_is_there_is_used(request_for: MakeRequest, tmp_path: Path) -> None:
    request = with_settings(request_for(tmp_path / "run"), data__vocab_size="400")
    before = everything_in(tmp_path / "run/tokenizer")
    notify = Quiet()
    setup = prepare(request, notify)
    assert everything_in(tmp_path / "run/tokenizer") == before
    assert setup.config.model.vocab_size == (n := setup.tokenizer.vocab_size)
    assert notify.messages[0] == f"using the tokenizer in {tmp_path}/run/tokenizer ({n} pieces)"


def test_which_tokenizer_is_used_is_said_where_a_run_begins(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    for overwrite in (False, True):
        notify = Quiet()
        prepare(dataclasses.replace(request, overwrite=overwrite), notify)
        assert any("using the tokenizer" in m for m in notify.messages) == overwrite


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("asked", ["280", "301"])
def test_a_vocabulary_that_the_tokenizer_cannot_be_of_is_refused(
    asked: str, overwrite: bool, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    prepare(request, Quiet())
    before = everything_in(tmp_path / "run")
    other = with_settings(request, data__vocab_size=asked)
    message = rf"data\.vocab_size = {asked}, but the tokenizer in .* has 300 pieces; leave .* out"
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(other, overwrite=overwrite), Quiet())
    assert everything_in(tmp_path / "run") == before


def test_a_vocabulary_with_fewer_pieces_than_asked_for_is_asked_for_again(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = with_settings(request_for(tmp_path / "run"), data__vocab_size="5000")
    shutil.rmtree(tmp_path / "run/tokenizer")
    setup = prepare(request, Quiet())
    assert setup.tokenizer.vocab_size < 5000
    prepare(request, Quiet())
    (tmp_path / "run/train.toml").unlink()  # as if it had been killed before it was written
    train(request)
    train(request)
    train(dataclasses.replace(request, overwrite=True))
    (tmp_path / "run/train.toml").write_bytes(b"# The settings of this run. Torn")
    prepare(dataclasses.replace(request, overwrite=True), Quiet())


def test_a_model_to_start_from_decides_the_vocabulary(
    request_for: MakeRequest, model_folder: Path, tmp_path: Path
) -> None:
    request = with_settings(request_for(tmp_path / "run"), data__vocab_size="290")
    request = dataclasses.replace(request, init_from=model_folder)
    shutil.rmtree(tmp_path / "run/tokenizer")
    for _ in range(2):
        assert prepare(request, Quiet()).tokenizer.vocab_size > 290


def test_another_vocabulary_than_the_tokenizers_is_refused(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = with_settings(request_for(tmp_path / "run"), model__vocab_size="299")
    with pytest.raises(UserError, match=r"model\.vocab_size = 299, but the tokenizer"):
        prepare(request, Quiet())


def test_a_slice_is_held_out_where_no_validation_is_given(
    request_for: MakeRequest, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    notify = Quiet()
    setup = prepare(request_for(tmp_path / "run"), notify)
    assert "no validation files: 10 pairs are held out for validation" in notify.messages
    assert len(setup.corpus) == 190
    assert set(zip(setup.validation.src, setup.validation.tgt, strict=True)) <= set(pairs)


def test_validation_files_are_read_without_blank_lines(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    src, tgt = tmp_path / "v.src", tmp_path / "v.tgt"
    src.write_bytes(b"the dog\n\nthe cat\n" + b"dog " * 300 + b"\n")
    tgt.write_bytes(b"dog the\nx\n \ndog\n")
    request = dataclasses.replace(request_for(tmp_path / "run"), valid_src=[src], valid_tgt=[tgt])
    setup = prepare(request, Quiet())
    assert setup.validation.src == ["the dog", ("dog " * 300)]
    assert len(setup.validation.examples) == 1  # the loss leaves out what is too long
    assert len(setup.corpus) == 200

    tgt.write_bytes(b"\n\n\n\n")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"v\.src: no usable pairs to validate on"):
        prepare(request, Quiet())
    assert not (tmp_path / "run").exists()


def test_what_was_decided_is_said_and_written_with_its_reason(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    notify = Quiet()
    prepare(request_for(tmp_path / "run"), notify)
    written = (tmp_path / "run/train.toml").read_bytes().decode()
    assert {d.name for d in notify.decisions} >= {"model.dropout", "optim.lr"}
    for decision in notify.decisions:
        assert f"# {decision.name} = {decision.value}: {decision.reason}\n" in written


def test_the_same_request_makes_the_same_setup(request_for: MakeRequest, tmp_path: Path) -> None:
    one, two = (prepare(request_for(tmp_path / name), Quiet()) for name in ("a", "b"))
    assert one.config == two.config
    assert one.corpus.digest == two.corpus.digest
    assert one.validation.src == two.validation.src
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_skipped_pairs_are_told(request_for: MakeRequest, tmp_path: Path) -> None:
    notify = Quiet()
    prepare(with_settings(request_for(tmp_path / "run"), data__max_len="5"), notify)
    assert any("longer than data.max_len = 5 tokens" in message for message in notify.messages)


@pytest.mark.parametrize(("precision", "n"), [("bf16", 1), ("fp32", 0)])
def test_a_cpu_that_is_slow_in_bf16_says_so(
    precision: str,
    n: int,
    request_for: MakeRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    request = with_settings(request_for(tmp_path / "run"), train__precision=precision)
    notify = Quiet()
    prepare(request, notify)
    assert sum("bf16 is many times slower" in message for message in notify.messages) == n


# Again


def test_the_same_request_again_changes_no_byte(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for(tmp_path / "run")
    without = {k: v for k, v in request.settings.items() if k != "train.precision"}
    request = dataclasses.replace(request, settings=without)
    train(request)
    before = everything_in(tmp_path / "run")
    train(request)
    assert everything_in(tmp_path / "run") == before


def test_a_longer_run_continues(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    train(with_settings(request, train__max_steps="4"))
    assert Run(tmp_path / "run").steps("state") == [2, 4]


def test_a_changed_setting_is_refused_with_both_values(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    before = everything_in(tmp_path / "run")
    changed = with_settings(request, optim__lr="0.25", data__batch_tokens="512")
    message = r"other settings \(data\.batch_tokens: 2048 → 512, optim\.lr: 0\.005 → 0\.25\)"
    with pytest.raises(UserError, match=message):
        prepare(changed, Quiet())
    assert everything_in(tmp_path / "run") == before


def test_a_setting_may_change_before_anything_is_saved(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    first = prepare(request, Quiet())
    second = prepare(with_settings(request, optim__lr="0.25"), Quiet())
    assert [name for name, _, _ in differences(first.config, second.config)] == ["optim.lr"]


def test_the_end_of_a_cosine_cannot_be_moved(request_for: MakeRequest, tmp_path: Path) -> None:
    request = with_settings(request_for(tmp_path / "run"), optim__schedule="cosine")
    train(request)
    with pytest.raises(UserError, match=r"train\.max_steps: 2 → 4"):
        prepare(with_settings(request, train__max_steps="4"), Quiet())


def test_overwriting_starts_anew_and_keeps_the_tokenizer(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    tokenizer = everything_in(tmp_path / "run/tokenizer")
    other = with_settings(request, optim__lr="0.25", train__max_steps="1")
    train(dataclasses.replace(other, overwrite=True))
    assert Run(tmp_path / "run").steps("checkpoints") == [1]
    assert everything_in(tmp_path / "run/tokenizer") == tokenizer


def test_litter_of_killed_writers_is_swept(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for(tmp_path / "run")
    for name in ("", "checkpoints/", "state/"):
        (tmp_path / f"run/{name}.tmp-1-dead").mkdir(parents=True)
    train(request)
    assert not list((tmp_path / "run").rglob(".tmp*"))


def test_a_run_without_its_settings_is_not_continued(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    (request.run / "train.toml").unlink()
    with pytest.raises(UserError, match=r"train\.toml: is missing"):
        prepare(request, Quiet())
    train(dataclasses.replace(request, overwrite=True))


def test_a_run_without_its_tokenizer_is_not_continued_with_another(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    shutil.rmtree(request.run / "tokenizer")
    with pytest.raises(UserError, match="tokenizer: is missing, so the run cannot be continued"):
        prepare(request, Quiet())
    assert not (request.run / "tokenizer").exists()


@pytest.mark.parametrize("kind", ["state", "checkpoints"])
def test_a_step_that_has_lost_its_manifest_is_refused_by_name(
    kind: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    folder = sorted((request.run / kind).iterdir())[-1]
    (folder / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=rf"{folder.name}/manifest\.json: is missing; remove the fold"
    ):
        prepare(request, Quiet())
    train(dataclasses.replace(request, overwrite=True))


@pytest.mark.parametrize("text", [b"a dog\n\xff\n", b"\n\n"])
def test_beginning_anew_removes_nothing_before_all_text_is_read(
    text: bytes, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    train(request)
    before = everything_in(request.run)
    bad = tmp_path / "bad"
    bad.write_bytes(text)
    with pytest.raises(UserError, match="bad"):
        prepare(dataclasses.replace(request, src=[bad], tgt=[bad], overwrite=True), Quiet())
    after = everything_in(request.run)
    assert {p: data for p, data in after.items() if not p.startswith("data/")} == {
        p: data for p, data in before.items() if not p.startswith("data/")
    }
    train(request)


# Several corpora


def weighted(request: Request, weights: str, max_steps: int) -> Request:
    """The request with its corpus twice, in small batches with sampled pieces."""
    request = dataclasses.replace(request, src=[*request.src] * 2, tgt=[*request.tgt] * 2)
    more = {"data__weights": weights, "train__max_steps": str(max_steps)}
    return with_settings(request, **more, data__batch_tokens="128", data__bpe_dropout="0.1")


def test_a_weighted_run_is_continued_exactly(request_for: MakeRequest, tmp_path: Path) -> None:
    whole, parts = (request_for(tmp_path / name) for name in ("whole", "parts"))
    train(weighted(whole, "0.5 2.5", 60))
    for n in (7, 31, 60):  # an epoch has some 40 batches
        train(weighted(parts, "0.5 2.5", n))
    whole_files, parts_files = (
        everything_in(r.run / "checkpoints/00000060") for r in (whole, parts)
    )
    assert whole_files == parts_files
    with pytest.raises(UserError, match=r"data\.weights: 0\.5 2\.5 → 1 2\.5"):
        prepare(weighted(parts, "1 2.5", 60), Quiet())


# Several languages


@pytest.fixture
def two_languages(request_for: MakeRequest, tmp_path: Path) -> Request:
    """A request for a model of two directions that has no tokenizer yet."""
    request = request_for(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/tokenizer")
    src, tgt = request.src[0], request.tgt[0]
    return dataclasses.replace(
        request, src=[src, src], tgt=[src, tgt], tgt_lang=["copy", "back"], init_from=None
    )


def test_every_source_begins_with_the_language_of_its_target(two_languages: Request) -> None:
    setup = prepare(two_languages, Quiet())
    tags = setup.tokenizer.tags
    assert list(tags) == ["copy", "back"]
    n_copy, n_back = setup.corpus.sizes
    firsts = [setup.corpus[i].src[0] for i in range(len(setup.corpus))]
    assert firsts == [tags["copy"]] * n_copy + [tags["back"]] * n_back
    for example in resample([setup.corpus[0], setup.corpus[n_copy]], setup.tokenizer, 1.0, seed=1):
        assert list(example.src[:1]) == [tags["copy"] if example.index == 0 else tags["back"]]
        assert setup.tokenizer.decode(example.src) == setup.tokenizer.decode(
            setup.corpus[example.index].src
        )


def test_held_out_pairs_know_their_language(two_languages: Request) -> None:
    held = prepare(two_languages, Quiet()).validation
    assert {"copy", "back"} == set(held.tgt_lang)
    for src, tgt, language in zip(held.src, held.tgt, held.tgt_lang, strict=True):
        assert tgt == (src if language == "copy" else " ".join(reversed(src.split(" "))))


def test_validation_files_have_languages_in_the_order_of_the_corpora(
    two_languages: Request,
) -> None:
    valid = dataclasses.replace(
        two_languages, valid_src=two_languages.src, valid_tgt=two_languages.tgt
    )
    setup = prepare(valid, Quiet())
    assert setup.validation.tgt_lang == ["copy"] * 200 + ["back"] * 200
    assert setup.validation.examples[0].src[0] == setup.tokenizer.tags["copy"]
    assert setup.validation.examples[-1].src[0] == setup.tokenizer.tags["back"]
    one = dataclasses.replace(valid, valid_src=valid.src[:1], valid_tgt=valid.tgt[:1])
    with pytest.raises(UserError, match="--tgt-lang is given 2 times and --valid-src 1 times"):
        check(one)


def test_one_language_goes_for_all(two_languages: Request) -> None:
    setup = prepare(dataclasses.replace(two_languages, tgt_lang=["de"]), Quiet())
    assert set(setup.validation.tgt_lang) == {"de"}
    assert {setup.corpus[i].src[0] for i in range(len(setup.corpus))} == {5}


def test_a_run_in_two_languages_is_continued_exactly(two_languages: Request) -> None:
    more = with_settings(two_languages, data__bpe_dropout="0.1", data__word_dropout="0.2")
    whole = dataclasses.replace(more, run=more.run / "whole")
    parts = dataclasses.replace(more, run=more.run / "parts")
    train(with_settings(whole, train__max_steps="9"))
    for n in ("4", "9"):
        train(with_settings(parts, train__max_steps=n))
    name = "checkpoints/00000009"
    assert everything_in(whole.run / name) == everything_in(parts.run / name)
    other = dataclasses.replace(parts, tgt_lang=["back", "copy"])
    with pytest.raises(UserError, match="was trained on another text or tokenizer"):
        train(with_settings(other, train__max_steps="10"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("src", "was trained on another text"), ("valid_tgt", "was validated on another text")],
)
def test_a_run_that_is_refused_for_other_text_stays_as_it_was(
    request_for: MakeRequest, tmp_path: Path, name: str, message: str
) -> None:
    request = with_settings(request_for(tmp_path / "run"), train__max_steps="2")
    request = dataclasses.replace(request, valid_src=request.src, valid_tgt=request.tgt)
    train(request)
    before = everything_in(request.run)
    other = tmp_path / "other"
    other.write_bytes(getattr(request, name)[0].read_bytes().upper())
    moved = shutil.copy(request.tgt[0], tmp_path / "moved")  # the same text
    longer = with_settings(request, train__max_steps="3")
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(longer, **{"tgt": [moved], name: [other]}))
    assert everything_in(request.run) == before


@pytest.mark.parametrize("other_text", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("state/00000002/state.json", r"state\.json: .* no older state is whole"),
        ("state/00000002/state.safetensors", r"safetensors: .* no older state is whole"),
        ("best", "best: names no checkpoint"),
    ],
)
def test_a_damaged_run_that_is_refused_stays_as_it_was(
    request_for: MakeRequest, tmp_path: Path, name: str, message: str, other_text: bool
) -> None:
    request = with_settings(request_for(tmp_path / "run"), train__max_steps="2")
    train(request)
    (request.run / name).write_bytes((request.run / name).read_bytes()[:4])
    before = everything_in(request.run)
    longer = with_settings(request, train__max_steps="3")
    if other_text:
        longer = dataclasses.replace(longer, src=request.tgt, tgt=request.src)
    with pytest.raises(UserError, match=message):
        train(longer)
    assert everything_in(request.run) == before


@pytest.mark.parametrize(
    ("tags", "tgt_lang", "message"),
    [
        ([], ["de"], "--tgt-lang de: the tokenizer has no language tags"),
        (["fr", "es"], ["de"], "--tgt-lang de: not known; give one of fr, es"),
        (["fr", "es"], [], "--tgt-lang is missing: give one of fr, es"),
        ([], ["d e"], "language 'd e': a name has"),
        ([], ["de", "fr"], "--tgt-lang is given 2 times and --src 1 times"),
    ],
)
def test_languages_that_cannot_be_are_refused_before_anything_is_written(
    tags: list[str], tgt_lang: list[str], message: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path / "run"), tgt_lang=tgt_lang)
    train_tokenizer(request.src, vocab_size=300, tags=tags).save(tmp_path / "run/tokenizer")
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(request, Quiet())
    assert everything_in(tmp_path) == before
