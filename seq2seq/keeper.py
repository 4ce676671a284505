"""What is kept of a run as it goes on: states, models, and which of these `best` and `latest` name.

    keeper = Keeper(run, n_models=3)
    keeper.save(progress, tensors, facts, write_model)

A run that is given more time goes on from before its cooldown, as if there had been none. Its finished
model is not lost by that: as the incumbent it stays what `best` names, until another is better. Nor is
the best model of a run that is begun anew, until the new one has been validated.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seq2seq.checkpoint import load_model, model_files
from seq2seq.progress import Progress
from seq2seq.run import Incumbent, Run
from seq2seq.state import save_state
from seq2seq.storage import MANIFEST, remove_folder
from tokenizer.errors import UserError

_N_STATES = 2  # the newest may be damaged


class Keeper:
    """Saves what a run comes to, and removes what is no longer needed; one process of a run does it."""

    def __init__(self, run: Run, n_models: int) -> None:
        """Nothing happens yet.

        Args:
            run: The folder.
            n_models: Newest models that stay, besides the best one.
        """
        self._run = run
        self._n_models = n_models
        self._incumbent: Incumbent | None = None

    def unbeaten(self, progress: Progress) -> Incumbent | None:
        """The incumbent, if it is better than all that the run has made since it was given more time."""
        some = self._incumbent
        return some if some is not None and some.score > progress.best_score else None

    def best_step(self, progress: Progress) -> int:
        """The checkpoint that `best` names; 0 before the first validation."""
        incumbent = self.unbeaten(progress)
        return progress.best_step if incumbent is None else incumbent.step

    def save(
        self,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        write_model: Callable[[Path], None],
    ) -> None:
        """Save the state and the model of a step, then drop what is no longer needed.

        Args:
            progress: How far the run has come.
            tensors: Of the state.
            facts: Of the state.
            write_model: Publishes the model as a folder.

        Raises:
            UserError: When something cannot be written.
        """
        state = self._run.state(progress.step, is_validated=not progress.awaits_validation)
        if not (state / MANIFEST).exists():  # a second signal comes before the same validation
            save_state(state, tensors, facts)
        self._save_model(progress, write_model)

    def begin(self) -> None:
        """Forget the incumbent of an earlier run here, whose scores may be of another kind."""
        self._run.forget_incumbent()

    def clear(self) -> None:
        """Remove the run that is here, so that another one can be begun, but for its best model.

        `best` names that until the new run has been validated, so that there is always something to
        translate with. One that is damaged goes with the rest.

        Raises:
            UserError: When there is no room for a copy of it; all is as it was then.
        """
        run = self._run
        try:
            named = run.pointer("best")
            files = _files(run.named(named)) if named is not None else {}
        except UserError:
            files = {}
        run.clear(files)

    def check(self, step: int) -> None:
        """Refuse what a run cannot go on with, before anything of it is changed.

        Args:
            step: Of the newest state, whose own model is written again if it is damaged.

        Raises:
            UserError: When the best model, its score, or what names it or the latest one is damaged.
        """
        run, here = self._run, self._run.checkpoint(step)
        run.pointer("latest")
        run.incumbent()
        best = run.pointer("best")
        if best is not None and best != here.name and run.named(best).is_dir():
            _files(run.named(best))

    def resume(self, progress: Progress, write_model: Callable[[Path], None]) -> None:
        """Make whole what a kill may have left between a state and its model.

        Args:
            progress: Of the state.
            write_model: Publishes its model.

        Raises:
            UserError: When the score of the incumbent or the best model is damaged, or something cannot
                be written.
        """
        self._incumbent = self._run.incumbent()
        self._run.drop_incumbents()
        self._drop_damaged(progress.step)
        self._save_model(progress, write_model)

    def take_back(self, progress: Progress, step: int, write_model: Callable[[Path], None]) -> None:
        """Forget the states after a step, so that the run can be resumed there.

        Args:
            progress: How far the run had come; its best model becomes the incumbent if it is younger
                than the step and no worse than the present one.
            step: Where the cooldown began.
            write_model: Publishes the model of `progress`.

        Raises:
            UserError: When the best model is damaged, or something cannot be written; no state is
                removed then.
        """
        run, best = self._run, Incumbent(progress.best_step, progress.best_score)
        if best.step == progress.step and best.step not in run.steps("checkpoints"):
            write_model(run.checkpoint(best.step))  # a kill came between the state and its model
        before = run.incumbent()
        is_better = before is None or best.score >= before.score
        if best.step > step and is_better and best.step in run.steps("checkpoints"):
            run.keep_incumbent(best, _files(run.checkpoint(best.step)))
        run.rotate("state", [s for s in run.steps("state") if s <= step])

    def _drop_damaged(self, step: int) -> None:
        """Remove the model of this step if it is damaged; it is written again."""
        here = self._run.checkpoint(step)
        if step in self._run.steps("checkpoints"):
            try:
                load_model(here)
            except UserError:
                remove_folder(here)

    def _save_model(self, progress: Progress, write_model: Callable[[Path], None]) -> None:
        """Publish the model of this step, point to it, and remove old ones."""
        run, p = self._run, progress
        if p.step not in run.steps("checkpoints"):
            write_model(run.checkpoint(p.step))
        run.point("latest", p.step)
        steps = [step for step in run.steps("checkpoints") if step <= p.step]
        if self.unbeaten(p) is None and p.best_step in steps:
            run.point("best", p.best_step)
            run.drop_incumbents()
        named = run.pointer("best")
        if named is not None and not run.named(named).is_dir():
            run.point("best", p.step)
        best = [p.best_step]
        if named is not None and named.isdigit():
            best.append(int(named))
        if p.cooldown is None:
            run.rotate("checkpoints", [*steps[-self._n_models :], *best])
            run.rotate("state", run.steps("state")[-_N_STATES:])
        else:  # the run goes on from before it if it is given more time
            newest = steps[-max(self._n_models - 1, 1) :]
            run.rotate("checkpoints", [*newest, *best, p.cooldown.best_step])
            run.rotate("state", [*run.steps("state")[-_N_STATES:], p.cooldown.start])


def _files(folder: Path) -> dict[str, bytes]:
    """The files of a model folder, manifest apart: names and contents."""
    try:
        model = load_model(folder)
    except UserError as error:
        raise UserError(f"{error}; remove the folder {folder} to go on without it") from None
    return model_files(model.config, model.weights, model.tokenizer)
