"""The `passel` command: one function per command, nothing decided here."""

from __future__ import annotations

import difflib
import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

try:
    # Newer versions of typer carry their own click.
    from typer._click import exceptions as click
except ImportError:
    from click import exceptions as click  # type: ignore[no-redef]

from passel._version import __version__
from passel.cli import (
    cluster,
    configuring,
    explaining,
    fsck,
    getting,
    node,
    operating,
    simulating,
    tracing,
)
from passel.cli.console import INTERRUPTED, USAGE, interrupt_on_signals
from passel.cli.demo import run

app = typer.Typer(
    name="passel",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Container images and other large blobs onto every node of a Ray cluster, read once.",
)
app.command()(cluster.up)
app.command()(cluster.down)
app.command()(cluster.status)
app.command()(getting.get)
app.command()(operating.preheat)
app.command()(operating.jobs)
app.command()(operating.schedules)
app.command()(operating.pin)
app.command()(operating.unpin)
app.command()(operating.ls)
app.command()(operating.rm)
app.command()(operating.rotate)
app.command()(operating.drain)
app.command()(fsck.fsck)
app.command()(explaining.explain)
app.command()(run.demo)
app.add_typer(configuring.app, name="config")
app.add_typer(node.app, name="node")
app.add_typer(simulating.app, name="sim")
app.add_typer(tracing.app, name="trace")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"passel {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands; the texts are the app's."""


def main() -> None:
    """Run a command; every mistake ends in one sentence and an exit status that is not 0."""
    command = get_command(app)
    interrupt_on_signals()
    try:
        status = command(standalone_mode=False)
    except click.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        sys.exit(USAGE)
    except click.UsageError as error:
        sys.stderr.write(f"passel: {_sentence(error, command)}\n")
        sys.exit(USAGE)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write("passel: interrupted\n")
        sys.exit(INTERRUPTED)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    sys.exit(status if isinstance(status, int) else 0)


def _sentence(error: click.UsageError, command: Any) -> str:
    """What was wrong, and the nearest thing that would have been right."""
    text = str(error.format_message())
    where = error.ctx.command if error.ctx is not None else command
    words = [opt for each in where.params for opt in getattr(each, "opts", [])]
    words += list(getattr(where, "commands", {}))
    tried = getattr(error, "option_name", None) or text.rpartition("'")[0].rpartition("'")[2]
    near = difflib.get_close_matches(str(tried), words, 1, 0.5)
    if near and text.startswith("No such") and "Possible" not in text and "mean" not in text:
        text += f" Did you mean {near[0]}?"
    return text


if __name__ == "__main__":
    main()
