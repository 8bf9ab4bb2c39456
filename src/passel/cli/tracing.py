"""`passel trace`: recorded and simulated events in files."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from passel.cli.cluster import JsonOption, StateOption, state_folder
from passel.cli.console import USAGE, errors_are_sentences, fail, out, print_json
from passel.config import parse_duration

app = typer.Typer(no_args_is_help=True, help="Events of live and simulated rollouts.")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A trace.")], as_json: JsonOption = False
) -> None:
    """What a trace holds: events by kind, time, what was lost."""
    from passel.telemetry.analysis import facts_of
    from passel.telemetry.trace import SCHEMA_VERSION
    from passel.telemetry.trace import info as read_info

    with errors_are_sentences():
        found = read_info(file)
        facts = {
            "file": str(file),
            "schema": SCHEMA_VERSION,
            "clock": found.clock,
            "rows": found.rows,
            "kinds": found.kinds,
            "lost": found.lost,
            "first_s": found.first_s,
            "last_s": found.last_s,
            "about": found.about,
            "rollout": facts_of(file),
        }
        if as_json:
            print_json(facts)
            return
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.kinds.items())
        out.print(f"{file}: schema {SCHEMA_VERSION}, {found.clock} clock", markup=False)
        out.print(f"{found.rows} events over {found.last_s - found.first_s:.3f} s: {kinds}")
        out.print(f"lost: {found.lost}")


@app.command()
def record(
    output: Annotated[Path, typer.Option("--output", "-o", help="The new file.")],
    duration: Annotated[str, typer.Option("--for", help="How long, e.g. '30 s'.")] = "30 s",
    store: Annotated[
        list[Path] | None, typer.Option(help="Stores of nodes, instead of the cluster's.")
    ] = None,
    state: StateOption = None,
) -> None:
    """Record what a running cluster on this machine does for a while; Ctrl-C ends it early."""
    from passel.telemetry.recording import LOOK_EVERY_S, switch_off, switch_on
    from passel.telemetry.trace import merge as merge_files

    with errors_are_sentences():
        try:
            seconds = parse_duration(duration).total_seconds()
        except ValueError as error:
            fail(f"--for: {error}, got {duration}", USAGE)
        folders = [path / "trace" for path in store or _stores(state)]
        began = time.time()
        switch_on(folders, began + LOOK_EVERY_S + seconds)
        try:
            with suppress(KeyboardInterrupt):
                time.sleep(LOOK_EVERY_S + seconds)
        finally:
            switch_off(folders)
        time.sleep(2 * LOOK_EVERY_S)  # they look once a second, and then write
        files = [
            path for folder in folders for path in _traces(folder) if path.stat().st_mtime >= began
        ]
        if not files:
            fail("nothing happened in that time, or the nodes' processes do not run")
        n_rows = merge_files(files, output, began)
        out.print(f"{output}: {n_rows} events of {len(folders)} nodes", markup=False)


def _stores(state: Path | None) -> list[Path]:
    folder = state_folder(state)
    stores = [node.store for node in folder.nodes()]
    if not stores:
        fail(f"no cluster in {folder.path}: start one with passel up, or name its --state")
    return stores


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Traces, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new file.")],
) -> None:
    """Put the events of several processes into one file, in the order of time."""
    from passel.telemetry.trace import merge as merge_files

    with errors_are_sentences():
        paths = [path for each in files for path in _traces(each)]
        if output in paths:
            fail(f"--output: {output} is one of the files to merge", USAGE)
        n_rows = merge_files(paths, output)
        out.print(f"{output}: {n_rows} events of {len(paths)} files", markup=False)


@app.command()
def export(file: Annotated[Path, typer.Argument(help="A trace.")]) -> None:
    """Print the events as lines of JSON."""
    from passel.telemetry.trace import export as lines

    with errors_are_sentences():
        for line in lines(file):
            sys.stdout.write(line + "\n")


def _traces(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]
