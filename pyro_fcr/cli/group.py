"""Manners: help as it was written, a mistake as one line, an interrupt in peace."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pyro_fcr.errors import DesignWarning, FCRError

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["Polite", "Taught", "fail"]


class Taught(click.Command):
    """A command whose help is its docstring as it stands, examples and tables unwrapped."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring's lines."""
        _write_as_is(self.help, formatter)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the docstring's first paragraph whole, which the list of commands wraps."""
        return " ".join((self.help or "").split("\n\n")[0].split())


class _InterruptedError(Exception):
    """Ctrl-C."""


class Polite(click.Group):
    """A group that answers a user's mistake with one line and exit code 2."""

    command_class = Taught

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring's lines."""
        _write_as_is(self.help, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an interrupt is kept from click, which would print a line of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; with ``standalone_mode`` the process exits."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            with _one_line_warnings():
                code = run(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "pyro-fcr"
            fail(f"{error.format_message()} See '{where} --help'.")
        except click.ClickException as error:
            fail(error.format_message())
        except FCRError as error:
            fail(str(error))
        except (_InterruptedError, click.Abort, KeyboardInterrupt):
            fail("interrupted; no half-written file is left.", code=130)
        except BrokenPipeError:
            # Whoever read stdout has gone; keep the interpreter from writing to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            fail(f"{error.strerror or error}: {error.filename or 'file'}")
        sys.exit(code if isinstance(code, int) else 0)


def _write_as_is(text: str | None, formatter: click.HelpFormatter) -> None:
    formatter.write_paragraph()
    with formatter.indentation():
        for line in inspect.cleandoc(text or "").splitlines():
            formatter.write(f"{'':>{formatter.current_indent if line else 0}}{line}\n")


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Say one line on stderr and end the process."""
    click.echo("pyro-fcr: " + " ".join(message.split()), err=True)
    sys.exit(code)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo("pyro-fcr: warning: " + " ".join(str(message).split()), err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DesignWarning)
        warnings.showwarning = show
        yield
