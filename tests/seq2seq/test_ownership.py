import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import everything_in
from training import MakeSetup, Recorder, train

from seq2seq.blocks import Text
from seq2seq.config import RunConfig
from seq2seq.corpus import open_corpus
from seq2seq.ownership import MODEL_LAYOUT, refuse_others
from seq2seq.recipe import publish_settings
from seq2seq.request import Request, check
from seq2seq.run import Run
from seq2seq.storage import publish_folder
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import publish_file, unfinished

MakeRequest = Callable[[Path], Request]


def refused(request: Request) -> str:
    """What is said where a request is refused; nothing has been touched then."""
    before = everything_in(request.run)
    with pytest.raises(UserError) as refusal:
        check(request)
    assert everything_in(request.run) == before
    return str(refusal.value)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "data",
        "data/train.en",
        "data/raw/train.en",
        "data/ids.bin/train.en",
        "best",
        "latest",
        "log.jsonl",
        "train.toml",
    ],
)
def test_what_is_not_a_runs_is_refused_where_a_run_would_replace_it(
    name: str, overwrite: bool, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for(tmp_path / "run"), overwrite=overwrite)
    path = request.run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"mine": 1}\n')
    message = refused(request)
    assert message.startswith(str(request.run / "/".join(Path(name).parts[:2])))
    assert message.endswith("is not of tfm's making and would be lost; move it, or give another -m")


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        "checkpoints/fairseq.pt",
        "checkpoints/averaged/config.json",
        "checkpoints/00000001-cooled/tokenizer/mine",
        "state/notes",
        "state/00000001-cooled/state.json",
        "tensorboard/e",
    ],
)
def test_what_only_beginning_anew_would_remove_is_refused_then(
    name: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    path = request.run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    check(request)
    assert refused(dataclasses.replace(request, overwrite=True)).startswith(str(request.run))


def test_what_is_not_a_runs_is_found_behind_a_link(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora/train.en").write_bytes(b"mine")
    (request.run / "data").symlink_to(tmp_path / "corpora")
    assert refused(request).startswith(str(request.run / "data/train.en"))


@pytest.mark.parametrize("option", ["src", "tgt", "valid_src", "valid_tgt", "config_file"])
def test_a_file_to_read_is_refused_where_the_run_would_replace_it(
    option: str, request_for: MakeRequest, parallel: tuple[Path, Path], tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    request = dataclasses.replace(request, valid_src=parallel[:1], valid_tgt=parallel[1:])
    path = request.run / "data" / "mine"
    path.parent.mkdir()
    path.write_bytes(
        b"[optim]\nlr = 0.5\n" if option == "config_file" else parallel[0].read_bytes()
    )
    files = path if option == "config_file" else [path]
    named = dataclasses.replace(request, **{option: files})  # type: ignore[arg-type]
    assert refused(named).startswith(str(path))


def test_a_folder_that_cannot_be_looked_into_is_refused_by_name(
    request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "run")
    (request.run / "data").symlink_to("data")
    assert refused(request).startswith(f"{request.run}/data: cannot be read")


@pytest.fixture
def begun(
    make_setup: MakeSetup,
    request_for: MakeRequest,
    parallel: tuple[Path, Path],
    small_tokenizer: Tokenizer,
    tmp_path: Path,
) -> Request:
    """A request whose run has been at work: all that one writes is there."""
    request = request_for(tmp_path / "run")
    run = Run(request.run)
    setup = make_setup(run.folder, {"train.max_steps": 10})
    train(setup, Recorder())
    publish_settings(run, setup.config, [])
    open_corpus(Text(parallel[:1], parallel[1:], small_tokenizer, 100), run.data)
    publish_folder(run.named("00000005-cooled"), everything_in(run.checkpoint(10)))
    run.events.mkdir()
    (run.events / "events.out.tfevents.1700000000.host.1.0").write_bytes(b"")
    return request


def lose_state(run: Run) -> None:
    for kind in ("state", "checkpoints"):
        shutil.rmtree(run.folder / kind)


def litter(run: Run) -> None:
    for place in (run.log, run.data / "x", run.state(1), run.checkpoint(1), run.data):
        new = unfinished(place)
        new.mkdir(parents=True)
        (new / "half").write_bytes(b"")


def damage(run: Run) -> None:
    for path in run.folder.rglob("*"):
        if path.is_file() and path.name not in ("train.toml", "tokenizer.json", "log.jsonl"):
            path.write_bytes(path.read_bytes()[:-2])


def garble(run: Run) -> None:
    for path in (run.folder / "best", run.folder / "latest", run.log):
        path.write_bytes(b"\xff" * 100)


def empty(run: Run) -> None:
    lose_state(run)
    for path in (run.folder / "best", run.folder / "latest", run.log):
        path.write_bytes(b"")


def fill_with_zeros(run: Run) -> None:
    lose_state(run)
    run.log.write_bytes(bytes(4096) + run.log.read_bytes())


def tear(run: Run) -> None:
    lose_state(run)
    run.log.write_bytes(run.log.read_bytes()[:30])


def edit(run: Run) -> None:
    lose_state(run)
    run.settings.write_bytes(run.settings.read_bytes().replace(b"seed = 1", b"seed = 2 # mine"))


def be_of_another_format(run: Run) -> None:
    (run.data / "index.json").write_bytes(b'{"format": 1}')


@pytest.mark.parametrize(
    "happen",
    [lose_state, litter, damage, garble, empty, fill_with_zeros, tear, edit, be_of_another_format],
)
def test_a_run_is_never_taken_for_another_thing(
    happen: Callable[[Run], None], begun: Request
) -> None:
    happen(Run(begun.run))
    check(begun)
    check(dataclasses.replace(begun, overwrite=True))


@pytest.mark.parametrize(
    "name",
    ["data/.DS_Store", "data/._ids.bin", "data/Thumbs.db", "checkpoints/.DS_Store", "state/.nfs1"],
)
def test_litter_of_systems_is_nothing_to_keep(name: str, begun: Request) -> None:
    (begun.run / name).write_bytes(b"")
    check(begun)
    check(dataclasses.replace(begun, overwrite=True))


def test_models_without_a_state_are_not_mixed_with_those_of_another_run(begun: Request) -> None:
    shutil.rmtree(begun.run / "state")
    before = everything_in(begun.run)
    with pytest.raises(UserError, match="holds models, but no state that their run could go on"):
        check(begun)
    assert everything_in(begun.run) == before
    check(dataclasses.replace(begun, overwrite=True))


def test_the_settings_of_a_run_may_be_given_to_it(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for(tmp_path / "run")
    settings = Run(request.run).settings
    publish_settings(Run(request.run), RunConfig(), [])
    check(dataclasses.replace(request, config_file=settings))
    publish_file(settings, b"# Mine.\n" + settings.read_bytes())
    assert refused(dataclasses.replace(request, config_file=settings)).startswith(str(settings))


def test_a_model_holds_nothing_else(model_folder: Path) -> None:
    refuse_others(model_folder, MODEL_LAYOUT)
    os.mkfifo(model_folder / "notes")
    with pytest.raises(UserError, match=r"notes: is not of tfm's making .* give another -o"):
        refuse_others(model_folder, MODEL_LAYOUT, "-o")
