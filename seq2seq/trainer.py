"""The training loop: micro-batches → loss → step → log → validate → save, and how it resumes.

    trainer = Trainer(setup, reporter)
    outcome = trainer.run(interrupt)

Training is a pure function of the settings, the corpus and the step: the batch comes from (seed, step),
and so does every random number, so a run that was killed goes on bit for bit from what it last saved.
Nothing here prints; a `Reporter` is told what happens.
"""

import contextlib
import math
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from seq2seq.batching import Position
from seq2seq.checkpoint import save_model
from seq2seq.config import SECTIONS, RunConfig, Value, to_dict
from seq2seq.corpus import Corpus
from seq2seq.distributed import ALONE, World
from seq2seq.dropout import scale_dropout
from seq2seq.hardware import device_name, spare_processes
from seq2seq.health import Health, has_collapsed, word_entropy
from seq2seq.keeper import Keeper
from seq2seq.learner import Learner, Meter, NonFiniteError
from seq2seq.limits import Outlook, dropout_factor, due_cooldown, is_over, rate_factor, reached
from seq2seq.loader import Loader, Update
from seq2seq.metrics import evaluate, tokenization_of
from seq2seq.model import Transformer
from seq2seq.optim import learning_rate
from seq2seq.past import check_same_corpus, check_same_validation
from seq2seq.progress import Progress, read_progress
from seq2seq.reports import Reporter, ValidationReport
from seq2seq.run import Run
from seq2seq.state import FACTS, is_intact, load_last_state, load_state
from seq2seq.translator import Translator
from seq2seq.validation import Validation, mean_loss, translations
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import append, write_json

_N_SAMPLES = 3
_SETTLED = 50  # updates after which the pace of a process is known


@dataclass(frozen=True)
class Setup:
    """All that a run is made of.

    Attributes:
        config: Resolved settings.
        model: Freshly initialised or taken from elsewhere, on its device, in float32.
        tokenizer: Of the model.
        corpus: To learn from.
        validation: To choose the best checkpoint by.
        run: The folder.
        world: The processes that train together.
        asked: What the user says of the settings, for the run to remember; see `request.asked_for`.
    """

    config: RunConfig
    model: Transformer
    tokenizer: Tokenizer
    corpus: Corpus
    validation: Validation
    run: Run
    world: World = ALONE
    asked: Mapping[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Interrupt:
    """What a signal handler sets and the loop looks at, once a step.

    Attributes:
        stop: Number of the signal that asked for the end of the run; 0 for none.
        save: Save at the next step and go on.
    """

    stop: int = 0
    save: bool = False


@dataclass(frozen=True, slots=True)
class _End:
    """Why no update follows: a reason to stop, in words, and the signal that it is; or a cooldown begins."""

    reason: str = ""
    signal: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why and where a run ended.

    Attributes:
        step: Updates done in all.
        reason: In words.
        signal: The signal that stopped it, or 0.
        best_step: The checkpoint that `best` names, as the first process knows it.
    """

    step: int
    reason: str
    signal: int
    best_step: int


class Trainer:
    """A running training.

    Attributes:
        progress: How far it has come.
    """

    def __init__(self, setup: Setup, reporter: Reporter) -> None:
        """Prepare a run, resuming what its folder holds.

        Args:
            setup: What to train, on what.
            reporter: Told what happens.

        Raises:
            UserError: When what was saved is damaged or belongs to another corpus or model.
        """
        self.setup = setup
        self.reporter = reporter
        self.progress = Progress()
        config = setup.config
        self._device = setup.model.output.weight.device
        self._learner = Learner(setup.model, config, setup.world, reporter.warned)
        self._tokenize = tokenization_of(setup.validation.tgt)
        self._health = Health(word_entropy(setup.corpus), config.optim.warmup_steps)
        self._loader = Loader(
            config,
            setup.corpus,
            setup.tokenizer,
            setup.world,
            is_pinned=self._device.type == "cuda",
            n_processes=spare_processes(self._device),
        )
        self._keeper = Keeper(setup.run, config.train.keep)
        self._seconds_before = self._elapsed = self._resume()
        self._begun: tuple[int, float] | None = None  # step and seconds when the data flowed
        self._meter = Meter()
        self._loop_start = time.monotonic()

    def run(self, interrupt: Interrupt) -> Outcome:
        """Train until a limit, early stopping or a signal; everything is saved on return.

        Raises:
            NonFiniteError: Before an update that would spoil the weights.
            UserError: When something cannot be saved.
        """
        self._loop_start = time.monotonic()
        self.reporter.started(self.progress, self._seconds_before)
        if self._tokenize == "char":
            self.reporter.said(
                "few target lines for validation have four words between spaces, or these are very long: "
                "BLEU counts characters there (as tfm evaluate --tokenize char does)"
            )
        end = _End(self._finished())
        if self.progress.awaits_validation:
            end = self._conclude(interrupt) or _End()
        while not end.reason:
            self._cool_down_if_due()
            self._announce_cooldown()
            scale_dropout(self.setup.model, dropout_factor(self.progress.cooldown))
            with contextlib.closing(self._updates()) as updates:
                end = self._go_on(updates, interrupt)
        best_step = self._keeper.best_step(self.progress)
        return Outcome(self.progress.step, end.reason, end.signal, best_step)

    def _go_on(self, updates: Iterator[Update], interrupt: Interrupt) -> "_End":
        """Train until there is a reason to stop, or a cooldown begins, which has other batches."""
        end = None
        while end is None:
            self._train_step(next(updates))
            end = self._conclude(interrupt)
            self._begun = self._begun or (self.progress.step, self._elapsed)
        return end

    def _conclude(self, interrupt: Interrupt) -> "_End | None":
        """What follows an update: log, validate, save, each when it is due.

        Returns:
            None where the next update may follow.
        """
        train, step = self.setup.config.train, self.progress.step
        number, save = self._asked(interrupt)
        finished = self._finished()
        if step % train.log_every == 0 or number or finished:
            self._log_step()
        is_due = step % train.validate_every == 0 or bool(finished)
        if is_due:
            number = number or self._validate(interrupt)
            save = True
        self.progress = replace(self.progress, awaits_validation=is_due and bool(number))
        reason = f"stopped by signal {number}" if number else self._finished()
        ends = bool(reason) or self._cool_down_if_due()
        if ends:
            self._log_step()  # what is saved now is where a run may go on from
        if save or ends or step % train.save_every == 0:
            self._save()
        return _End(reason, number) if ends else None

    def _updates(self) -> Generator[Update, None, None]:
        """The data from here on; in a cooldown without BPE-dropout."""
        cooldown = self.progress.cooldown
        plain_from = None if cooldown is None else cooldown.position
        return self._loader.updates(self.progress.position, plain_from)

    def _cool_down_if_due(self) -> bool:
        """Begin a cooldown if one should begin now; alike on all ranks."""
        p, loader = self.progress, self._loader
        step, elapsed = self._begun or (p.step, self._elapsed)
        is_settled = p.step - step >= _SETTLED and self._elapsed > elapsed
        outlook = Outlook(
            epochs=p.n_pairs / loader.n_places,
            epoch_updates=loader.n_tokens * p.step / p.n_tokens if p.n_tokens else 0.0,
            elapsed=self._elapsed,
            pace=(p.step - step) / (self._elapsed - elapsed) if is_settled else 0.0,
        )
        cooldown = due_cooldown(self.setup.config.train, p, outlook)
        if cooldown is not None:
            self.progress = replace(p, cooldown=cooldown)
        return cooldown is not None

    def _announce_cooldown(self) -> None:
        """Say that the last updates begin, if they do."""
        cooldown = self.progress.cooldown
        if cooldown is None or cooldown.start != self.progress.step:
            return
        self._log({"kind": "cooldown", "step": cooldown.start + 1, "updates": cooldown.n})
        self.reporter.said(
            f"cooling down before {cooldown.limit}: {cooldown.n:,} more updates, at a falling rate, "
            "with half of the dropout and no BPE-dropout"
        )

    def _train_step(self, update: Update) -> None:
        """One update from its micro-batches; stops before it when a number is not finite."""
        config, p, step = self.setup.config, self.progress, self.progress.step + 1
        lr = learning_rate(config.optim, step, config.train.max_steps)
        lr *= rate_factor(config, p.cooldown, step)
        self.setup.model.train()
        learnt = self._learner.learn(update, step, lr)
        if learnt.has_overflowed:
            self._log({"kind": "overflow", "step": step, "scale": self._learner.loss_scale})
        else:
            self._meter.add(learnt, lr, update.waited)
        self.progress = replace(
            p,
            step=step,
            position=update.after,
            n_pairs=p.n_pairs + int(learnt.n_pairs),
            n_tokens=p.n_tokens + int(learnt.n_tokens),
        )

    def _asked(self, interrupt: Interrupt) -> tuple[int, bool]:
        """The signal that asks for the end, or 0, and whether to save; alike on all ranks."""
        world = self.setup.world
        save, interrupt.save = interrupt.save, False  # it may be set again from here on
        seconds = self._seconds() if world.is_first else 0.0
        sums = world.sum_numbers(interrupt.stop, bool(interrupt.stop), seconds, save)
        self._elapsed = sums[2]
        return _stop_signal(sums[0], sums[1]), sums[3] > 0

    def _finished(self) -> str:
        """Which limit the run has reached, in words, or ""; alike on all ranks."""
        return reached(self.setup.config.train, self.progress, self._elapsed)

    def _seconds(self) -> float:
        """Seconds of training, over all resumptions."""
        return self._seconds_before + time.monotonic() - self._loop_start

    @torch.no_grad()
    def _validate(self, interrupt: Interrupt) -> int:
        """Loss and translations of the held-out pairs, by the averaged weights if there are any.

        Returns:
            The signal that came before all was translated, which leaves it undone; or 0.
        """
        setup, train, step = self.setup, self.setup.config.train, self.progress.step
        begun, number = time.monotonic(), 0

        def goes_on() -> bool:
            nonlocal number
            sums = setup.world.sum_numbers(interrupt.stop, bool(interrupt.stop))
            number = _stop_signal(*sums)
            return not number

        setup.model.eval()
        with self._learner.averaged():
            nll = mean_loss(setup.model, setup.validation.examples, setup.world, goes_on)
            if nll is None:
                return number
            if not math.isfinite(nll):
                raise NonFiniteError(
                    f"step {step}: validation loss {nll}; lower optim.lr or lengthen "
                    "optim.warmup_steps; what was saved is unharmed"
                )
            translator, told = Translator(setup.model, setup.tokenizer), self.reporter.validating
            hypotheses = translations(translator, setup.validation, setup.world, told, goes_on)
            if hypotheses is None:
                return number
        bleu, chrf = evaluate(
            hypotheses, setup.validation.tgt, self._tokenize, names=("bleu", "chrf")
        )
        score = {"bleu": bleu.value, "chrf": chrf.value, "loss": -nll}[train.metric]
        is_usual = self.progress.cooldown is None and step % train.validate_every == 0
        self.progress = self.progress.judged(score, is_usual)
        is_best = self.progress.best_step == step and not self._keeper.unbeaten(self.progress)
        triples = zip(setup.validation.src, setup.validation.tgt, hypotheses, strict=True)
        report = ValidationReport(
            step=step,
            nll=nll,
            bleu=bleu.value,
            chrf=chrf.value,
            is_best=is_best,
            samples=tuple(list(triples)[:_N_SAMPLES]),
            collapsed=has_collapsed(setup.validation.src, hypotheses),
            tokenize=self._tokenize,
            seconds=self._seconds(),
        )
        self._log({"kind": "validation", **asdict(report)})
        self.reporter.validated(report)
        for message in self._health.validation(report):
            self.reporter.warned(message)
        self._meter.leave_out(time.monotonic() - begun)
        return 0

    def _save(self) -> None:
        """Save the state and the model of this step."""
        if self.setup.world.is_first:
            facts = {
                "progress": asdict(self.progress),
                "corpus": self.setup.corpus.digest,
                "validation": self.setup.validation.digest(),
                "tokenize": self._tokenize,
                "environment": self._environment(),
                "asked": dict(self.setup.asked),
                "settings": {s: to_dict(getattr(self.setup.config, s)) for s in SECTIONS},
            }
            self._keeper.save(self.progress, self._learner.tensors(), facts, self._write_model)
            self.reporter.saved(self.progress.step)
        self.setup.world.wait()

    def _write_model(self, folder: Path) -> None:
        """Publish the model of this step, by the averaged weights if there are any."""
        weights = self._learner.weights()
        save_model(folder, self.setup.config.model, weights, self.setup.tokenizer)

    def _resume(self) -> float:
        """Go on from the newest state, if there is one.

        Returns:
            Seconds of training so far.
        """
        setup, run = self.setup, self.setup.run
        steps = run.steps("state")
        if not steps:
            if setup.world.is_first:
                self._keeper.begin()
                run.cut_log(0)
            return 0.0
        if setup.world.is_first:
            self._keeper.check(steps[-1])
        facts = load_last_state(run, self._learner.tensors())
        seconds_before = self._follow(facts, steps[-1])
        cooldown = self.progress.cooldown
        if cooldown is not None and is_over(setup.config.train, self.progress, seconds_before):
            facts = self._go_back(cooldown.start)
            seconds_before = self._follow(facts, cooldown.start)
            self.progress = replace(self.progress, cooldown=None)
        self._learner.reload()
        now, then = self._environment(), facts.get("environment")
        if now != then:
            self.reporter.warned(f"bit-exactness is not promised: {then} → {now}")
        if setup.world.is_first:
            self._keeper.resume(self.progress, self._write_model)
        if incumbent := self._keeper.unbeaten(self.progress):
            self.reporter.said(
                f"the finished model of step {incumbent.step} stays the best until another is better"
            )
        return seconds_before

    def _follow(self, facts: Mapping[str, Any], step: int) -> float:
        """Take the place in the run that a state has saved.

        Returns:
            Seconds of training so far.
        """
        setup, run = self.setup, self.setup.run
        check_same_corpus(facts, setup.corpus.digest, run)
        check_same_validation(facts, setup.validation.digest(), run)
        # Scores of the run so far stay comparable: before there was a choice BLEU counted words.
        self._tokenize = "char" if facts.get("tokenize") == "char" else "13a"
        where = str(run.saved_state(step) / FACTS)
        self.progress = read_progress(facts.get("progress"), self._loader.n_places, where)
        if self.progress.step != step:
            raise UserError(f"{where}: is of step {self.progress.step}, not of {step}")
        seconds = 0.0
        if setup.world.is_first:
            seconds = run.cut_log(self.progress.step, not self.progress.awaits_validation)
        return setup.world.sum_numbers(seconds)[0]

    def _go_back(self, step: int) -> dict[str, Any]:
        """Load an earlier state, and forget what came after it.

        Returns:
            The facts that were saved with it.
        """
        state = self.setup.run.state(step)
        if not is_intact(state):
            raise UserError(
                f"{state}: missing or damaged, so the run cannot go on from before its cooldown; "
                "keep to the old limit, or start anew with --overwrite"
            )
        self.setup.world.wait()  # until every process has read what is removed now
        if self.setup.world.is_first:
            self._keeper.take_back(self.progress, step, self._write_model)
        self.setup.world.wait()
        self.reporter.said(
            f"there is more time now: going on from before the cooldown, step {step}"
        )
        return load_state(state, self._learner.tensors())

    def _environment(self) -> dict[str, Any]:
        """On what the exactness of a resumed run depends."""
        world = self.setup.world
        return {
            "tfm": metadata.version("tfm"),
            "torch": torch.__version__,
            "device": device_name(self._device),
            "threads": torch.get_num_threads(),
            "processes": world.size,
            # Two numbers have one sum; that of more depends on the order.
            **({"shared_memory": world.shares_memory} if world.size > 2 else {}),
        }

    def _log_step(self) -> None:
        """Report the mean since the last report, if there was an update: fp16 may have left all out."""
        if not self._meter.has_updates:
            return
        p = self.progress
        epochs, epoch = p.n_pairs / self._loader.n_places, p.position.epoch
        has_begun = p.position > Position(epoch)  # else the last update was of the one before
        report = self._meter.report(p.step, epoch + has_begun, epochs, self._seconds())
        self._meter = Meter()
        self._log({"kind": "step", **asdict(report)})
        self.reporter.stepped(report)
        for message in self._health.step(report):
            self.reporter.warned(message)

    def _log(self, entry: dict[str, Any]) -> None:
        if self.setup.world.is_first:
            rounded = {
                k: float(f"{v:.12g}") if isinstance(v, float) else v for k, v in entry.items()
            }
            line = b" ".join(write_json(rounded).split(b"\n")) + b"\n"
            append(self.setup.run.log, line)


def _stop_signal(total: float, n: float) -> int:
    """The signal that ends a run, from the sum of those that came to n processes; 0 for none.

    >>> _stop_signal(0, 0), _stop_signal(2 + 2, 2), _stop_signal(2 + 15, 2)
    (0, 2, 15)
    """
    if not n:
        return 0
    is_keyboard = total == n * signal.SIGINT  # everywhere; any other goes before it
    return int(signal.SIGINT if is_keyboard else signal.SIGTERM)
