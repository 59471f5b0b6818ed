"""A group of commands that are imported on use and report failures in one line.

Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted by Ctrl-C, SIGTERM or SIGHUP. ``SDEDIFF_DEBUG=1``
shows the traceback instead.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from sdediff.cli.console import exit_with, open_streams, paint, print_error
from sdediff.interrupt import ending_interrupts
from sdediff.tables import nearest

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
"""Errors of the operating system that are not caused by the input."""


class CommandTable(click.Group):
    """Commands of a table of names and one-line descriptions, each in the module of its name.

    Args:
        table: name to description, in the order of the help.
        package: the package of the modules.
        **settings: settings of the group.
    """

    def __init__(self, *, table: Mapping[str, str], package: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.table, self.package = dict(table), package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.table:
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        name = args[0]
        if name not in self.table and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r}{nearest(name, self.table)}; {choices(self.table)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        """Run a command line and exit."""
        open_streams()
        try:
            with ending_interrupts():
                code = super().main(*args, **{**settings, "standalone_mode": False})
        except click.ClickException as error:
            fail(error, error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            print_error("interrupted")
            exit_with(INTERRUPTED)
        except (ValueError, OSError) as error:
            fail(error, message_of(error), FAILED if isinstance(error, OSError) and error.errno in _DISK else BAD_INPUT)
        except (ArithmeticError, RuntimeError, MemoryError) as error:
            fail(error, message_of(error) or type(error).__name__, FAILED)
        except Exception as error:  # a fault of the program, also reported in one line
            fail(error, f"internal error ({type(error).__name__}: {error}); SDEDIFF_DEBUG=1 shows where", FAILED)
        exit_with(code if isinstance(code, int) else 0)


def message_of(error: Exception) -> str:
    """Return the message of an exception, without Python's decoration."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return str(error)


def fail(error: Exception, message: str, code: int) -> NoReturn:
    """Print one line on the error stream and exit."""
    if os.environ.get("SDEDIFF_DEBUG") == "1":
        raise error
    print_error(f"{paint('error:', fg='red')} {' '.join(message.split())}")
    exit_with(code)


def choices(names: Mapping[str, Any]) -> str:
    """Return ``choose one of: a, b``."""
    return f"choose one of: {', '.join(names)}"
