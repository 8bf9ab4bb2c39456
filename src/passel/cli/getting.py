"""`passel get`: a blob through a gateway, verified while it is written."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from passel.cli.cluster import JsonOption, StateOption, state_folder
from passel.cli.console import (
    INTERRUPTED,
    RateColumn,
    err,
    errors_are_sentences,
    fail,
    print_json,
    size,
)
from passel.client import Client
from passel.client.download import part_of


def get(
    what: Annotated[
        str,
        typer.Argument(
            help="http://GATEWAY/v2/REPO/blobs/DIGEST, https://REGISTRY/v2/REPO/blobs/DIGEST,"
            " or UPSTREAM/REPO@DIGEST."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="File to write; - is standard output.")
    ],
    gateway: Annotated[str | None, typer.Option(help="Base URL of the gateway.")] = None,
    digest: Annotated[str | None, typer.Option(help="What the bytes must hash to.")] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a blob; an interrupted one is resumed from its .part file."""
    with errors_are_sentences():
        began = time.monotonic()
        client = Client(gateway, state=state_folder(state).path)
        target = sys.stdout.buffer if output == "-" else Path(output)
        with _bar(what) as progress, _how_to_go_on(target):
            got = client.get(what, target, digest=digest, progress=progress)
        took_s = max(time.monotonic() - began, 1e-6)
        facts = {"digest": str(got.digest), "verified": got.verified, "bytes": got.size}
        facts |= {"resumed_bytes": got.resumed, "seconds": round(took_s, 3)}
        if as_json and output != "-":
            print_json(facts)
        else:
            rate = size((got.size - got.resumed) / took_s)
            err.print(f"{got.digest} verified, {size(got.size)} in {took_s:.2f} s, {rate}/s")


@contextlib.contextmanager
def _how_to_go_on(target: object) -> Iterator[None]:
    """Ctrl-C loses nothing of a file, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        if isinstance(target, Path) and part_of(target).exists():
            text = f"interrupted: the same command goes on from {part_of(target)}"
            fail(text, INTERRUPTED)
        raise


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task(what[-20:], total=None)

        def shown(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield shown
