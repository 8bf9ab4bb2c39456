"""What all commands share: where text goes, how facts look, how a command ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console

from passel.errors import ConfigError, InputError, PasselError

FAILURE = 1
USAGE = 2
INTERRUPTED = 130

#: Plain when it is piped: rich sees by itself whether there is a terminal.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(facts: Any) -> None:
    """Facts for programs, past rich."""
    sys.stdout.write(json.dumps(facts, indent=2) + "\n")


def fail(sentence: str, code: int = FAILURE) -> NoReturn:
    """One sentence on stderr, and the end of the command."""
    err.print(f"passel: {sentence}", markup=False)
    raise typer.Exit(code)


@contextmanager
def errors_are_sentences() -> Iterator[None]:
    """Whatever passel raises on purpose becomes one sentence and an exit status."""
    try:
        yield
    except ConfigError as error:
        fail(str(error), USAGE)
    except InputError as error:
        fail(error.message, USAGE)
    except PasselError as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read has enough (head, less). Python must not try to flush the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILURE) from None
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        fail(what + (error.strerror or str(error)).lower())
    except KeyboardInterrupt:
        err.print("passel: interrupted", markup=False)
        raise typer.Exit(INTERRUPTED) from None


def interrupt_on_signals() -> None:
    """SIGTERM and SIGHUP (a closed terminal) end a command like Ctrl-C: it clears up behind it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)


def size(n_bytes: float) -> str:
    """1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
