"""The options that several commands share, and what they mean.

The names, defaults and ranges of settings are those of `seq2seq/config.py`. Nothing heavy is imported
before a command runs: `tfm --help` must answer at once.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from seq2seq.config import (
    TRANSLATED_TOKENS,
    TRANSLATED_TOKENS_GPU,
    SearchConfig,
    TrainConfig,
    Value,
    check_search,
    set_field,
)
from tokenizer.errors import UserError

FINISHED_BEFORE = "finished before the run was given more time"  # said of an incumbent


def setting_option(
    table: type, name: str, *flags: str, metavar: str = "N", help: str | None = None
) -> Any:
    """An option for a field of a settings class: its meaning and default come from there.

    Such an option is None where it was not given.

    Args:
        table: A settings class of `seq2seq/config.py`.
        name: The field.
        flags: Names of the option, if other than those Typer makes of the parameter.
        metavar: What stands for the value in the help.
        help: A sentence for newcomers, where the meaning in the class is too terse.
    """
    (field,) = (f for f in dataclasses.fields(table) if f.name == name)
    meaning = str(field.metadata["meaning"])
    sentence = help or f"{meaning[0].upper()}{meaning[1:]}."
    if field.default is not None and field.default is not False:
        sentence += f"  [default: {field.default}]"
    return typer.Option(*flags, help=sentence, show_default=False, metavar=metavar)


Model = Annotated[
    Path,
    typer.Option(
        "-m",
        "--model",
        metavar="DIR",
        envvar="TFM_MODEL",
        help="Folder of the run (its best model is used), of a checkpoint or of an exported model.",
    ),
]


def _default_models() -> list[Path]:
    """The one that TFM_MODEL names; click would cut its path at colons."""
    return [Path(os.environ.get("TFM_MODEL") or "model")]


Models = Annotated[
    list[Path],
    typer.Option(
        "-m",
        "--model",
        metavar="DIR",
        default_factory=_default_models,
        show_default="TFM_MODEL, else model",
        help="Folder of the run (its best model is used), of a checkpoint or of an exported model; "
        "given several times, the mean of their probabilities decides.",
    ),
]
Run = Annotated[
    Path,
    typer.Option("-m", "--model", metavar="DIR", envvar="TFM_MODEL", help="Folder of the run."),
]
InputFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE", help="What to read; standard input if not given.", show_default=False
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; auto takes a GPU if any.")
]
_PRECISION_HELP = "Numbers to compute in; auto takes the fastest that is safe here."
Precision = Annotated[
    str | None,
    setting_option(
        TrainConfig, "precision", metavar="auto|fp32|bf16|fp16|fp64", help=_PRECISION_HELP
    ),
]
PrecisionOfUse = Annotated[  # int8 cannot be trained in
    str,
    typer.Option(metavar="auto|fp32|bf16|int8|fp16|fp64", help=_PRECISION_HELP),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="CPU threads to use; if not given, OMP_NUM_THREADS, else all cores.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help=f"Source tokens, times the beam, decoded at once; if not given, {TRANSLATED_TOKENS}, "
        f"or {TRANSLATED_TOKENS_GPU} on a GPU.",
        show_default=False,
    ),
]
TgtLang = Annotated[
    str | None,
    typer.Option(
        metavar="LANG",
        help="Language to translate into, where the model knows several.",
        show_default=False,
    ),
]
BeamSize = Annotated[
    int | None,
    setting_option(
        SearchConfig,
        "beam_size",
        help="Candidates kept while a sentence is translated; 1 is greedy and fastest.",
    ),
]
LengthPenalty = Annotated[
    float | None,
    setting_option(
        SearchConfig,
        "length_penalty",
        metavar="A",
        help="Higher prefers longer translations; 0 ranks by probability alone.",
    ),
]


def search_config(values: Mapping[str, Value | None]) -> SearchConfig:
    """The search that options ask for.

    Args:
        values: Fields of `SearchConfig`; None where the option was not given.

    Raises:
        UserError: Naming the option that is out of range, or those that do not go together.
    """
    config = SearchConfig()
    for name, value in values.items():
        if value is not None:
            config = set_field(config, name, value, option(name))
    for name in ("temperature", "top_k", "top_p", "seed"):
        if values.get(name) is not None and not config.sample:
            raise UserError(f"{option(name)}: is for sampling; add --sample")
    check_search(config)
    if values.get("diversity_penalty") is not None and config.beam_groups == 1:
        raise UserError("--diversity-penalty: is for groups of a beam; add --beam-groups")
    return config


def option(name: str) -> str:
    """How a parameter is spelt on the command line.

    >>> option("beam_size")
    '--beam-size'
    """
    return "--" + name.replace("_", "-")


def refuse_given(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that mean nothing here, where they are on the command line.

    Args:
        context: Tells them from defaults, and from what the environment says.
        names: Parameters of the command.
        why: What they are for.

    Raises:
        UserError: Naming all of them.
    """
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [option(n) for n, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise UserError(f"{', '.join(given)}: only for {why}")
