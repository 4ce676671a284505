import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seq2seq.config import RunConfig, Value, differences, override
from seq2seq.presets import Facts, apply, decide
from seq2seq.recipe import publish_settings
from seq2seq.request import Request, asked_for, check
from seq2seq.run import Run
from seq2seq.state import save_state
from tokenizer.errors import UserError

MakeRequest = Callable[[Path], Request]


def with_settings(request: Request, settings: dict[str, str]) -> Request:
    return dataclasses.replace(request, settings={**request.settings, **settings})


def test_a_flag_goes_before_set_before_a_file_before_the_preset(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path / "run"), settings={})
    config_file = tmp_path / "my.toml"
    config_file.write_bytes(b"[optim]\nlr = 0.5\nwarmup_steps = 7\n[train]\nseed = 7\n")
    values: dict[str, Value] = {"train.seed": 9}

    preset, _ = check(request)
    file, _ = check(dataclasses.replace(request, config_file=config_file))
    both = dataclasses.replace(
        request, config_file=config_file, settings={"optim.warmup_steps": "8", "train.seed": "8"}
    )
    settings, _ = check(both)
    flags, decisions = check(dataclasses.replace(both, flags=values))

    assert (preset.optim.lr, preset.optim.warmup_steps) == (0.005, 400)
    assert (file.optim.lr, file.optim.warmup_steps, file.train.seed) == (0.5, 7, 7)
    assert (settings.optim.lr, settings.optim.warmup_steps, settings.train.seed) == (0.5, 8, 8)
    assert (flags.optim.lr, flags.optim.warmup_steps, flags.train.seed) == (0.5, 8, 9)
    assert not {"optim.lr", "optim.warmup_steps"} & {d.name for d in decisions}
    assert "model.d_model" in {d.name for d in decisions}


COSINE = {"optim.schedule": "cosine", "train.max_steps": "10"}
REFUSED: list[tuple[dict[str, str], str]] = [
    ({"optim.learning_rate": "1"}, "--set: .*unknown setting.*did you mean"),
    ({"optim.lr": "much"}, "--set: optim.lr: 'much' is not a number"),
    ({"model.n_heads": "3"}, "n_heads = 3 does not divide"),
    ({"optim.schedule": "cosine", "train.max_steps": "none"}, "give --max-steps"),
    (
        {**COSINE, "optim.lr": "0.1", "optim.min_lr": "0.2"},
        "min_lr = 0.2: is more than optim.lr = 0.1",
    ),
    ({"model.positions": "learned", "model.max_positions": "256"}, "more than data.max_len = 256"),
    ({"train.max_time": "long"}, "'long' is not a duration"),
    ({"data.weights": "1 2"}, "'1 2' are 2 weights for 1 corpora"),
    ({"data.weights": "0"}, "'0' are not numbers from"),
    ({"data.weights": "nan"}, "'nan' are not numbers from"),
    ({"data.weights": "some"}, "'some' are not numbers from"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, str], message: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        check(with_settings(request, settings))


def test_a_flag_that_cannot_be_is_refused_by_its_name(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path), flags={"train.max_steps": 0})
    with pytest.raises(UserError, match=r"--max-steps: train\.max_steps: 0 is out of range"):
        check(request)


def test_an_unknown_key_of_a_file_is_refused_by_file(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_bytes(b"[optim]\nlearnrate = 1\n")
    request = dataclasses.replace(request_for(tmp_path), config_file=tmp_path / "my.toml")
    with pytest.raises(UserError, match=r"my\.toml: .*learnrate"):
        check(request)


def test_checking_writes_nothing(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    check(request)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_is_no_place_for_a_run(
    overwrite: bool, request_for: MakeRequest, model_folder: Path
) -> None:
    request = dataclasses.replace(request_for(model_folder), overwrite=overwrite)
    message = "saved: is a model, not a run; choose another -m, where --init-from"
    with pytest.raises(UserError, match=message):
        check(request)


def test_a_file_in_the_place_of_the_run_is_refused(
    request_for: MakeRequest, parallel: tuple[Path, Path], tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path / "run"), run=parallel[0])
    with pytest.raises(UserError, match=r"train\.src: is a file; -m names the folder of a run"):
        check(request)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link: is a link that leads nowhere; -m names"):
        check(dataclasses.replace(request, run=tmp_path / "link"))


@pytest.mark.parametrize("where", ["src", "valid_src"])
def test_what_can_be_read_only_once_is_refused(
    where: str, request_for: MakeRequest, parallel: tuple[Path, Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    request = dataclasses.replace(request_for(tmp_path), valid_src=parallel[:1])
    request = dataclasses.replace(request, valid_tgt=parallel[1:])
    files = {where: [tmp_path / "pipe"]}
    with pytest.raises(UserError, match="pipe: is not a regular file"):
        check(dataclasses.replace(request, **files))  # type: ignore[arg-type]


def test_validation_files_that_do_not_fit_are_refused(
    request_for: MakeRequest, parallel: tuple[Path, Path], tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path), valid_src=parallel[:1])
    with pytest.raises(UserError, match="give them in pairs"):
        check(request)


def test_a_vocabulary_is_extended_only_from_another_model(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--extend-vocab: .*add --init-from"):
        check(dataclasses.replace(request_for(tmp_path), extend_vocab=True))


def begin(request: Request, config: RunConfig) -> None:
    """Leave of a run what tells how it was begun."""
    run = Run(request.run)
    run.folder.mkdir(exist_ok=True)
    publish_settings(run, config, [])
    save_state(run.state(1), {}, {"asked": asked_for(request, request.past())})


def test_a_run_keeps_what_the_preset_decided_when_it_was_begun(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"a b c\n" * 1_000_000)
    request = Request(run=tmp_path / "run", src=[text], tgt=[text])
    facts = Facts(1_000_000, "cuda")
    on_gpu = apply(RunConfig(), decide("auto", facts))
    by_another_version = override(on_gpu, {"optim.warmup_steps": 77, "train.patience": 78}, "test")
    assert check(request)[0].model != on_gpu.model
    begin(request, by_another_version)
    assert check(request)[0] == by_another_version
    assert check(with_settings(request, {"train.max_time": "2h"}))[0] == override(
        by_another_version, {"train.max_time": "2h"}, "test"
    )
    assert check(dataclasses.replace(request, overwrite=True))[0].model != on_gpu.model


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        ({"optim.lr": "0.25"}, []),
        ({}, ["optim.lr"]),
        ({"optim.lr": "0.5"}, ["optim.lr"]),
        ({"optim.lr": "0.25", "data.max_len": "9"}, ["data.max_len"]),
        ({"optim.lr": "0.25", "train.cooldown": "9"}, ["train.cooldown"]),
    ],
)
def test_what_a_user_says_otherwise_than_before_is_a_changed_setting(
    now: dict[str, str], changed: list[str], request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    before = with_settings(request, {"optim.lr": "0.25"})
    began = override(check(before)[0], {"optim.warmup_steps": 77}, "by another version")
    begin(before, began)
    config, _ = check(with_settings(request, now))
    assert [name for name, _, _ in differences(began, config)] == changed


def test_another_preset_is_a_changed_setting(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for(tmp_path / "run")
    began, _ = check(request)
    begin(request, began)
    other, _ = check(dataclasses.replace(request, preset="base"))
    assert "optim.lr" in {name for name, _, _ in differences(began, other)}


def test_a_damaged_state_is_left_to_those_who_go_on_from_it(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    began, _ = check(request)
    begin(request, began)
    (Run(request.run).state(1) / "state.json").write_bytes(b"{")
    assert check(request)[0] == began


def test_an_impossible_time_is_blamed_on_the_file_it_stands_in(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"[train]\nmax_time = 3600\n")
    with pytest.raises(UserError, match=re.escape(str(file))):
        check(dataclasses.replace(request_for(tmp_path), config_file=file))


@pytest.mark.parametrize(("then", "now"), [("1h", "9h"), ("1h", "none"), ("none", "1h")])
def test_a_run_keeps_its_shape_when_it_is_given_other_time(
    then: str, now: str, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"a\n" * 100_000)
    request = Request(run=tmp_path / "run", src=[text], tgt=[text])
    before = with_settings(request, {"train.max_time": then})
    began, _ = check(before)
    assert check(with_settings(request, {"train.max_time": now}))[0].model != began.model
    begin(before, began)
    goes_on, _ = check(with_settings(request, {"train.max_time": now}))
    assert (goes_on.model, goes_on.optim) == (began.model, began.optim)


def test_another_shape_than_that_of_the_model_is_refused_but_not_another_dropout(
    request_for: MakeRequest, model_folder: Path, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path / "run"), init_from=model_folder)
    check(with_settings(request, {"model.dropout": "0.5"}))
    for name, value in (("d_ff", "64"), ("n_encoder_layers", "2"), ("norm", "post")):
        with pytest.raises(UserError, match=rf"another shape \(model\.{name}: .* → {value}\)"):
            check(with_settings(request, {f"model.{name}": value}))


def test_a_start_that_a_run_does_not_tell_of_is_not_held_against_it(
    request_for: MakeRequest, model_folder: Path, tmp_path: Path
) -> None:
    """Versions before wrote nothing of it."""
    request = request_for(tmp_path / "run")
    began, _ = check(request)
    begin(request, began)
    state = Run(request.run).state(1)
    asked = {k: v for k, v in asked_for(request, request.past()).items() if k != "init_from"}
    shutil.rmtree(state)
    save_state(state, {}, {"asked": asked})
    for start in (None, model_folder):
        again = dataclasses.replace(request, init_from=start)
        check(again)
        assert asked_for(again, again.past()) == asked


@pytest.mark.parametrize("extend_vocab", [False, True])
def test_a_start_may_be_given_by_another_name(
    extend_vocab: bool,
    request_for: MakeRequest,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(model_folder)
    request = dataclasses.replace(
        request_for(tmp_path / "run"), init_from=Path("saved"), extend_vocab=extend_vocab
    )
    begin(request, check(request)[0])
    for name in (Path("saved"), model_folder, link, Path("run/../saved")):
        check(dataclasses.replace(request, init_from=name))
        with pytest.raises(UserError, match="was begun from saved"):
            check(dataclasses.replace(request, init_from=name, extend_vocab=not extend_vocab))
    with pytest.raises(UserError, match="was begun from saved"):
        check(dataclasses.replace(request, init_from=Path()))
    monkeypatch.chdir("/")
    check(request)  # the same words


def test_no_start_is_not_the_folder_where_one_is(
    request_for: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(tmp_path / "run")
    begin(request, check(request)[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="was begun from no other model"):
        check(dataclasses.replace(request, init_from=Path()))


def test_the_name_of_a_start_may_be_any_bytes(request_for: MakeRequest, tmp_path: Path) -> None:
    start = Path(os.fsdecode(b"/models/caf\xe9"))
    request = dataclasses.replace(request_for(tmp_path / "run"), init_from=start)
    assert asked_for(request, request.past())["init_from"] == "/models/caf\\xe9"
