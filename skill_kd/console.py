"""What all verbs share: how they print, and how an error becomes one message and an exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from skill_kd.errors import ExitCode, SkillKDError, UsageError


class Verb(click.Command):
    """A command whose ``--json`` tells of errors as well: ``{"errors": […], "exit_code": n}``."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SkillKDError as error:
            if ctx.params.get("as_json"):
                lines = [line.strip() for line in _whole(error).splitlines()]
                failed = {"valid": False} if self.name == "validate" else {}
                print_json({**failed, "errors": lines, "exit_code": int(error.exit_code)})
            raise


def guarded(cli: click.Group, args: Sequence[str] | None) -> int:
    """Run a command line and return its exit code; every error is one message on stderr.

    With ``SKILL_KD_DEBUG`` set, the traceback comes before the message.
    Click ends us quietly with exit code 1 when the reader of stdout has left.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a spec may hold what a terminal cannot show
    try:
        code = cli.main(args, prog_name="skill-kd", standalone_mode=False)
    except SkillKDError as error:
        _show_traceback()
        say(_message(error))
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        say("error: interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:
        _show_traceback()
        words = " ".join(str(error).split())
        say(f"error: unexpected {type(error).__name__}: {words}; set SKILL_KD_DEBUG=1 for the traceback")
        return ExitCode.CRASH
    return code if isinstance(code, int) else ExitCode.OK


def _show_traceback() -> None:
    """Print the traceback of the current error if ``SKILL_KD_DEBUG`` is set."""
    if os.environ.get("SKILL_KD_DEBUG"):
        traceback.print_exc()


def _message(error: SkillKDError) -> str:
    """What is left to say on stderr: a trainer may have said the rest there."""
    notes = getattr(error, "__notes__", [])
    return "\n  ".join(notes) if error.told and notes else f"error: {_whole(error)}"


def _whole(error: SkillKDError) -> str:
    return "\n  ".join([str(error), *getattr(error, "__notes__", [])])


def say(text: str) -> None:
    """Talk, on stderr: stdout is for data."""
    with contextlib.suppress(OSError):  # nobody may be listening any more
        click.echo(text, err=True)


def print_json(document: object) -> None:
    """Print the one document of a verb."""
    click.echo(json.dumps(document, indent=2))


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Tab-separated for programs, drawn for a terminal."""
    if not sys.stdout.isatty():
        click.echo("\n".join("\t".join(row) for row in (header, *rows)))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def given_values(pairs: Sequence[str]) -> dict[str, object]:
    """Read what ``--set KEY=VALUE`` was given; values are those of a spec.

    Raises:
        UsageError: there is no ``=``, or the value cannot be read.
    """
    from skill_kd.spec.file import read_value

    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write KEY=VALUE, for example recall.margin=0.85")
        found[key.strip()] = read_value(text, f"--set {pair}")
    return found
