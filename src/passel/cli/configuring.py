"""`passel config`: check a file, show what counts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from passel.cli.cluster import JsonOption
from passel.cli.console import errors_are_sentences, fail, out, print_json
from passel.config import Config, dump, load, missing_files

app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The YAML file.")], as_json: JsonOption = False
) -> None:
    """Read a file; every mistake is one line with its place and what was expected."""
    with errors_are_sentences():
        config = load(file)
        missing = missing_files(config)
        if missing:
            fail("\n".join(missing), 2)
        if as_json:
            print_json({"file": str(file), "upstreams": list(config.upstreams)})
        else:
            out.print(f"{file}: good; upstreams {', '.join(config.upstreams)}", markup=False)


@app.command()
def show(
    file: Annotated[Path | None, typer.Argument(help="The YAML file.")] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="The built-in defaults.")] = False,
) -> None:
    """Print the whole configuration that a file (or nothing) amounts to."""
    with errors_are_sentences():
        if file is None and not defaults:
            fail("name a file, or say --defaults", 2)
        sys.stdout.write(dump(load(file) if file is not None else Config()))
