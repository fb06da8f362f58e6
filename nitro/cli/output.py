"""Output: where the text of a command goes: to the terminal, or into a file."""

from __future__ import annotations

from pathlib import Path

import click


def give(text: str, file: Path | None) -> None:
    """Show it, or write it to a file without colours, which stderr says.

    Raises:
        FileError: the file cannot be written.
    """
    if file is None:
        click.echo(text)
        return
    try:
        file.write_text(click.unstyle(text) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from error
    click.echo(f"written: {file}", err=True)
