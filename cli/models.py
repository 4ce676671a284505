"""What `-m` names, ready to use: a tokenizer, a model, several models.

tokenizer = load_tokenizer(Path("model"))
translator = load_translator(Path("model"), "auto", "auto", threads=None)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.process import avoid_cudnn_attention, use_threads
from cli.streams import say
from seq2seq.run import TOKENIZER, is_pointer
from seq2seq.storage import MANIFEST, read_published
from tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from seq2seq.translator import Translator


def load_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a run or a model.

    Raises:
        UserError: When there is none, or it is damaged.
    """
    from tokenizer.folder import load_tokenizer

    folder = model.parent if is_pointer(model) else model
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if (folder / MANIFEST).exists():  # a model has one, a run has none
        sizes = {f"{TOKENIZER}/{name}": len(data) for name, data in tokenizer.files().items()}
        read_published(folder, sizes)
    return tokenizer


def load_translator(
    model: Path | Sequence[Path],
    device: str,
    precision: str,
    threads: int | None,
    batch_tokens: int | None = None,
    exact: bool = False,
) -> "Translator":
    """Load a model, or several that translate together, as fast as this machine can use them.

    Args:
        model: One folder or several.
        device: As for `Translator.load`, and so is the next.
        precision: `auto` becomes the fastest, or float32 where numbers matter; CTranslate2 computes in
            that of the stored weights.
        threads: If not given, as many as `choose_threads` finds.
        batch_tokens: As for `Translator`.
        exact: Whether numbers matter.

    Raises:
        UserError: When there is no usable model, or the machine cannot do as asked.
    """
    import torch

    from seq2seq.checkpoint import is_for_engine, resolve
    from seq2seq.hardware import choose_device
    from seq2seq.translator import Translator

    n_workers = 1
    n_threads = use_threads(threads)
    where = choose_device(device)
    avoid_cudnn_attention(where)
    if where.type == "cpu" and n_threads > 1:
        # Two batches at once, a thread each, take less time than one after the other on two.
        torch.set_num_threads(1)
        n_workers = n_threads
    folders = [model] if isinstance(model, Path) else model
    if (
        precision == "auto"
        and exact
        and not (len(folders) == 1 and is_for_engine(resolve(folders[0])))
    ):
        precision = "fp32"
    translator = Translator.load(folders, device, precision, batch_tokens, n_workers)
    if precision == "auto" and translator.why_precision:
        say(f"tfm: computing in {translator.precision}: {translator.why_precision}")
    return translator
