"""What a run that has begun remembers, and what of it must stay as it is for the run to go on.

    past = past_of(run)                     None where none has begun
    check_unchanged(past.settings, config, run)
    check_same_corpus(past.facts, corpus.digest, run)

Each refuses by name, before anything of the run is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seq2seq.config import RunConfig, Value, differences, override, read_toml
from seq2seq.run import Run
from seq2seq.state import FACTS, load_facts
from seq2seq.storage import MANIFEST
from tokenizer.errors import UserError
from tokenizer.files import read_file

OF_A_COMMAND = {  # settings that hold for one command, not for the run
    "train.max_steps",
    "train.max_epochs",
    "train.max_time",
    "train.keep",
    "train.log_every",
    "train.tensorboard",
}
FREE = {*OF_A_COMMAND, "train.cooldown", "train.patience"}  # may change when a run is continued


@dataclass(frozen=True, slots=True)
class Past:
    """What a run that has begun remembers.

    Attributes:
        settings: All of them.
        facts: What its newest state says beside its tensors; empty where that is damaged.
    """

    settings: RunConfig
    facts: Mapping[str, Any]

    @property
    def asked(self) -> Mapping[str, Value]:
        """What the user has said of the settings (`request.asked_for`); empty where that is not known."""
        asked = self.facts.get("asked")
        return asked if isinstance(asked, dict) else {}


def past_of(run: Run) -> Past | None:
    """What a run remembers; None where none has begun.

    Raises:
        UserError: When something of it is missing or damaged, or its settings were edited.
    """
    if incomplete := run.incomplete():
        raise UserError(
            f"{incomplete / MANIFEST}: is missing; remove the folder {incomplete} to go on without it, "
            "or --overwrite to start anew"
        )
    steps, anew = run.steps("state"), "use another -m, or --overwrite to start anew"
    if not steps and run.steps("checkpoints"):
        raise UserError(
            f"{run.folder}: holds models, but no state that their run could go on from; {anew}"
        )
    if not steps:
        return None
    settings = settings_of(run)
    if settings is None:
        raise UserError(
            f"{run.settings}: is missing, so the run cannot be continued as it was begun; {anew}"
        )
    try:
        facts = load_facts(run.saved_state(steps[-1]))
    except UserError:
        facts = {}  # damaged; who goes on from it says so
    if isinstance(then := facts.get("settings"), dict):  # unknown to states of before
        where = str(run.saved_state(steps[-1]) / FACTS)
        _check_unedited(then, settings, run, where)
    return Past(settings, facts)


def settings_of(run: Run) -> RunConfig | None:
    """What is in the `train.toml` of the run, if there is one."""
    if not run.settings.exists():
        return None
    where = str(run.settings)
    return override(RunConfig(), read_toml(read_file(run.settings), where), where)


def check_unchanged(past: RunConfig, config: RunConfig, run: Run) -> None:
    """Refuse to continue a run under other settings, naming each."""
    if changed := _bound_differences(past, config):
        raise UserError(
            f"{run.folder}: holds a run with other settings ({listing(changed)}); "
            "use the old ones, another -m, or --overwrite to start anew"
        )


def check_same_corpus(facts: Mapping[str, Any], digest: str, run: Run) -> None:
    """Refuse to continue a run with other text to learn from than that of its state."""
    if facts.get("corpus") != digest:
        raise UserError(
            f"{run.folder}: was trained on another text or tokenizer; "
            "give the same files, or --overwrite to start anew"
        )


def check_same_validation(facts: Mapping[str, Any], digest: str, run: Run) -> None:
    """Refuse to continue a run with other text to validate on than that of its state."""
    if facts.get("validation") != digest:
        raise UserError(
            f"{run.folder}: was validated on another text, whose scores cannot be compared; "
            "give the same validation files, or --overwrite to start anew"
        )


def listing(changed: Sequence[tuple[str, object, object]]) -> str:
    """Settings that are not what they were, as `config.differences` finds them, in words."""
    return ", ".join(f"{name}: {old} → {new}" for name, old, new in changed)


def _check_unedited(then: Mapping[str, object], now: RunConfig, run: Run, where: str) -> None:
    """Refuse a `train.toml` that is not what the run was trained with, naming each setting."""
    tables = {name: table for name, table in then.items() if isinstance(table, dict)}
    values = {
        f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()
    }
    if edited := _bound_differences(override(RunConfig(), values, where), now):
        raise UserError(
            f"{run.settings}: was changed since ({listing(edited)}), and a run keeps its settings; "
            "change it back, use another -m, or --overwrite to start anew"
        )


def _bound_differences(then: RunConfig, now: RunConfig) -> list[tuple[str, object, object]]:
    """What differs of settings that a run keeps; its last step is one where the schedule falls to it."""
    free = FREE - {"train.max_steps"} if then.optim.has_end else FREE
    return [change for change in differences(then, now) if change[0] not in free]
