"""From the micro-batches of an update to summed gradients, in pieces that fit into memory.

    sums = Gradients(model, flat, config, warn).compute(update, step, scale=1.0)

Losses are sums over tokens, so an update is the same update in however many pieces it is computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seq2seq.batch import Batch
from seq2seq.batching import stable_seed
from seq2seq.config import RunConfig
from seq2seq.hardware import is_out_of_memory
from seq2seq.loader import Update
from seq2seq.model import Transformer
from seq2seq.objectives import Loss, cross_entropy, r_drop
from seq2seq.optim import FlatParameters


@dataclass(frozen=True, slots=True)
class LossSums:
    """Summed over the target tokens of an update on this rank; see `Loss`."""

    total: float
    nll: float
    n_tokens: int


class Gradients:
    """Computes the gradients of one update after the other.

    When memory runs out, the update is begun again with that micro-batch in two halves, and from then
    on none as large is tried whole. The sum is the same but for rounding and the dropout masks, so
    a run that had to do this is not promised to repeat bit for bit.
    """

    def __init__(
        self,
        model: Transformer,
        flat: FlatParameters,
        config: RunConfig,
        warn: Callable[[str], None],
    ) -> None:
        """Prepare for a model.

        Args:
            model: In training mode when `compute` is called.
            flat: Its parameters; gradients are summed there.
            config: Of the run.
            warn: Told when memory ran out.
        """
        self._model = model
        self._flat = flat
        self._config = config
        self._warn = warn
        self._most_cells: int | None = None  # of a micro-batch, padding included

    def compute(self, update: Update, step: int, scale: float = 1.0) -> LossSums:
        """Add the gradients of an update to `flat.grad`, which must be zero.

        Args:
            update: Its micro-batches.
            step: Its number; with the seed and the number of a micro-batch it determines all noise.
            scale: What the loss is multiplied by; gradients come out multiplied by it.

        Raises:
            torch.OutOfMemoryError: (or RuntimeError, on a CPU) when one sentence pair does not fit.
        """
        while True:
            try:
                return self._compute(update, step, scale)
            except _TooLargeError as error:
                self._flat.discard()
                self._most_cells = error.n_cells - 1
                self._warn(
                    f"step {step}: not enough memory for a micro-batch of {error.n_cells:,} tokens; "
                    "from here on such are computed in halves, and the update stays the same"
                )

    def _compute(self, update: Update, step: int, scale: float) -> LossSums:
        device = self._flat.grad.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        nll = torch.zeros_like(total)
        n_tokens = 0
        for number, batch in update.batches:
            torch.manual_seed(stable_seed(self._config.train.seed, step, number))
            for piece in self._pieces(batch):
                loss = self._backward(piece.to(device), scale)
                self._flat.collect()
                total += loss.total.detach()
                nll += loss.nll
                n_tokens += loss.n_tokens
        sums = torch.stack((total, nll)).tolist()  # one wait for a GPU, not two
        return LossSums(sums[0], sums[1], n_tokens)

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        """The batch, in halves of halves until each is small enough."""
        if self._most_cells is None or batch.n_cells <= self._most_cells or len(batch.index) == 1:
            yield batch
            return
        for half in batch.halves():
            yield from self._pieces(half)

    def _backward(self, batch: Batch, scale: float) -> Loss:
        """Forward and backward pass."""
        try:
            loss = self._loss(batch)
            scaled: Tensor = loss.total * scale if scale != 1.0 else loss.total
            scaled.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch.index) == 1:
                raise
            too_large = _TooLargeError(batch.n_cells)
        else:
            return loss
        # Outside of the handler, where the traceback no longer holds on to the tensors of the attempt.
        if self._flat.grad.device.type == "cuda":
            torch.cuda.empty_cache()
        raise too_large

    def _loss(self, batch: Batch) -> Loss:
        optim = self._config.optim
        if optim.r_drop:
            return r_drop(self._model, batch, optim.label_smoothing, optim.r_drop)
        return cross_entropy(self._model, batch, optim.label_smoothing)


class _TooLargeError(Exception):
    """A micro-batch did not fit into memory."""

    def __init__(self, n_cells: int) -> None:
        super().__init__(n_cells)
        self.n_cells = n_cells
