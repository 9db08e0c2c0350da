"""Shared console code of all verbs: printing, and turning an error into one message and an exit code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from skill_kd.errors import ExitCode, SkillKDError, UsageError
from skill_kd.kd.signals import Stopped, stoppable
from skill_kd.kd.terminal import visible, visible_output


class Verb(click.Command):
    """A command whose ``--json`` also reports errors: ``{"errors": […], "exit_code": n}``.

    An ``OSError`` that no part of the verb expects becomes a ``UsageError`` with its path.
    """

    def invoke(self, ctx: click.Context) -> Any:
        from skill_kd.files import in_one_message

        try:
            _refuse_removed_folder()
            with in_one_message():
                return super().invoke(ctx)
        except SkillKDError as error:
            if ctx.params.get("as_json"):
                lines = [line.strip() for line in _whole(error).split("\n")]
                failed = {"valid": False} if self.name == "validate" else {}
                with contextlib.suppress(UsageError, OSError):  # the message on stderr says more
                    print_json({**failed, "errors": lines, "exit_code": int(error.exit_code)})
            raise


def _refuse_removed_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(f"the working folder cannot be used: {error.strerror}; change to another one") from error


def guarded(cli: click.Group, args: Sequence[str] | None) -> int:
    """Run a command line and return its exit code; print every error as one message on stderr.

    With ``SKILL_KD_DEBUG`` set, the traceback comes before the message. Whatever is printed, control characters in it
    appear as escapes.
    Click exits silently with code 1 if the reader of stdout has closed it.
    """
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a spec may contain characters that a terminal cannot show
    with visible_output():
        return _exit_code(cli, args)


def _exit_code(cli: click.Group, args: Sequence[str] | None) -> int:
    try:
        with stoppable():
            # With color, click does not remove escape sequences without a trace.
            code = cli.main(args, prog_name="skill-kd", standalone_mode=False, color=True)
    except SkillKDError as error:
        _show_traceback()
        say(_message(error))
        return int(error.exit_code)
    except click.ClickException as error:
        with contextlib.suppress(OSError):  # stderr may be full
            error.show()
        return error.exit_code
    except OSError as error:  # while the help is printed
        _show_traceback()
        say(f"error: cannot write to stdout: {error.strerror}; fix that, and call this again")
        return ExitCode.USAGE
    except click.Abort:
        say("error: interrupted")
        return ExitCode.INTERRUPTED
    except Stopped as signal:
        say(f"error: stopped by {signal}")
        return ExitCode.TERMINATED
    except Exception as error:
        _show_traceback()
        words = " ".join(str(error).split())
        say(f"error: unexpected {type(error).__name__}: {words}; set SKILL_KD_DEBUG=1 for the traceback")
        return ExitCode.CRASH
    return code if isinstance(code, int) else ExitCode.OK


def _open_streams() -> None:
    """Open closed standard streams on the null device. Otherwise the next file would take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def _show_traceback() -> None:
    """Print the traceback of the current error if ``SKILL_KD_DEBUG`` is set."""
    if os.environ.get("SKILL_KD_DEBUG"):
        traceback.print_exc()


def _message(error: SkillKDError) -> str:
    """Return the message for stderr, or only its notes if the trainer already printed it."""
    notes = getattr(error, "__notes__", [])
    return "\n  ".join(notes) if error.printed and notes else f"error: {_whole(error)}"


def _whole(error: SkillKDError) -> str:
    return "\n  ".join([str(error), *getattr(error, "__notes__", [])])


def say(text: str) -> None:
    """Print a message on stderr; stdout is for data."""
    with contextlib.suppress(OSError):  # stderr may be closed
        click.echo(text, err=True, color=True)


def print_json(document: object) -> None:
    """Print a verb's result as JSON. Raises as ``show``."""
    show(json.dumps(document, indent=2).replace("\x7f", r"\u007f"))  # the only control that json leaves


def show(text: object, *, newline: bool = True) -> None:
    """Print a verb's result on stdout.

    Raises:
        UsageError: stdout cannot be written, for example because it is a file on a full disk.
    """
    from skill_kd.files import refusing_unwritable

    with refusing_unwritable("to stdout", "fix that, and call this again"):
        click.echo(text, nl=newline)


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table: drawn on a terminal, tab-separated otherwise. A cell has one line and no tab."""
    clean = [[visible(cell).replace("\n", r"\n").replace("\t", r"\t") for cell in row] for row in rows]
    if not sys.stdout.isatty():
        show("\n".join("\t".join(row) for row in (header, *clean)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header)
    for row in clean:
        table.add_row(*map(Text, row))
    Console(color_system=None).print(table)


def given_values(pairs: Sequence[str], flag: str = "--set", example: str = "recall.margin=0.85") -> dict[str, object]:
    """Return the values given with ``--set KEY=VALUE``, or with another flag of that form, parsed as in a spec.

    Raises:
        UsageError: there is no ``=``, or the value cannot be parsed.
    """
    from skill_kd.spec.file import read_value

    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"{flag} {pair}: write KEY=VALUE, for example {example}")
        found[key.strip()] = read_value(text, f"{flag} {pair}")
    return found
