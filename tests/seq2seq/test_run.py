from pathlib import Path

import pytest

from seq2seq.run import Run, run_of
from seq2seq.storage import publish_folder
from tokenizer.files import publish_file


def test_incomplete_folders_are_no_steps(tmp_path: Path) -> None:
    run = Run(tmp_path)
    publish_folder(run.state(7), {"a": b""})
    publish_folder(run.state(100_000_000), {"a": b""})
    run.state(8).mkdir()
    publish_folder(tmp_path / "state/.tmp-1", {"a": b""})
    publish_folder(tmp_path / "state/other", {"a": b""})
    assert run.steps("state") == [7, 100_000_000]
    assert run.steps("checkpoints") == []
    assert run.incomplete() == run.state(8)


@pytest.mark.parametrize("place", ["best", "checkpoints/00000005", "checkpoints/00000005-cooled"])
def test_a_pointer_and_a_checkpoint_are_of_their_run(place: str, tmp_path: Path) -> None:
    publish_file(tmp_path / "best", b"00000005\n")
    assert run_of(tmp_path / place) == Run(tmp_path)


@pytest.mark.parametrize("place", ["run", "best", "export/00000005", "checkpoints/mine"])
def test_any_other_folder_is_its_own_run(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert run_of(tmp_path / place) == Run(tmp_path / place)


def test_rotation_removes_all_but_what_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3, 4):
        publish_folder(run.checkpoint(step), {"a": b""})
    run.rotate("checkpoints", [1, 4, 9])
    assert run.steps("checkpoints") == [1, 4]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000004"]


def test_the_log_is_cut_after_a_step_and_at_a_torn_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    kept = b'{"step": 1, "seconds": 2.5}\n{"step": 2, "seconds": 4.0}\n'
    bomb = b"[" * 200_000 + b"\n"
    run.log.write_bytes(kept + bomb + b'{"step": 3, "seconds": 9}\n"x"\n[]\n{"step": 2, "sec')
    assert run.cut_log(2) == 4.0
    assert run.log.read_bytes() == kept
    assert run.cut_log(0) == 0.0
    assert run.log.read_bytes() == b""
