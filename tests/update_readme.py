"""Bring the help texts in README.md up to date: each block after a `<!-- help: tfm ... -->`."""

import re
from pathlib import Path
from typing import Any

import typer

from cli.app import app

README = Path(__file__).parent.parent / "README.md"
WIDTH = 90
BLOCK = re.compile(r"<!-- help: tfm ?([a-z-]*) -->\n(```text\n.*?```\n)?", re.DOTALL)


def commands() -> list[str]:
    """The names of all commands."""
    return list(_group().commands)


def help_text(name: str) -> str:
    """What `tfm NAME --help` shows, or `tfm --help` without a name, at a fixed width."""
    group = _group()
    context = group.make_context("tfm", [], resilient_parsing=True, terminal_width=WIDTH)
    if name:
        context = group.commands[name].make_context(
            name, [], parent=context, resilient_parsing=True
        )
    return "\n".join(line.rstrip() for line in context.get_help().split("\n"))


def updated(readme: str) -> str:
    """The README with every help text as it is now."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- help: {f'tfm {name}'.strip()} -->\n```text\n{help_text(name)}\n```\n"

    return BLOCK.sub(block, readme)


def _group() -> Any:
    return typer.main.get_command(app)


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
