"""What all commands share: where text goes, how facts look, how a command ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from passel.errors import ConfigError, InputError, PasselError

FAILURE = 1
USAGE = 2
INTERRUPTED = 130

#: Plain when it is piped: rich sees by itself whether there is a terminal.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
#: Wider than any table of ours: rich would cut cells to the width of the terminal, and to 80
#: columns without one.
_TABLE_WIDTH = 1000


def print_json(facts: Any) -> None:
    """Facts for programs, past rich."""
    sys.stdout.write(json.dumps(facts, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 1) -> None:
    """Whole cells on stdout, whoever reads; the first `n_left` columns are flush left."""
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < n_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, soft_wrap=True, width=_TABLE_WIDTH).print(table)


class RateColumn(ProgressColumn):
    """Bytes per second in the units of all our other figures; rich's own are decimal."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{size(rate)}/s", style="progress.data.speed")


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
    """1536 -> 1.5 KiB, 268435456 -> 256 MiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1023.5:
            break
        unit, n_bytes = larger, n_bytes / 1024
    digits = 0 if unit == "B" or abs(n_bytes) >= 99.95 else 1
    return f"{n_bytes:.{digits}f} {unit}"
