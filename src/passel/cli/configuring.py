"""`passel config`: check a file, show what counts, make image clients use the gateway."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from passel.cli import clientfiles, plan
from passel.cli.clientfiles import Edit, Plan
from passel.cli.cluster import JsonOption, StateOption, state_folder
from passel.cli.console import errors_are_sentences, fail, out, print_json
from passel.client import Client
from passel.config import Config, dump, load, missing_files
from passel.config.live import written_keys
from passel.errors import ConfigError, PasselError, TransientError
from passel.store import fileio

app = typer.Typer(
    no_args_is_help=True, help="Check, show and apply the configuration; set up clients."
)

#: The file as it was before passel first changed it.
BACKUP = ".before-passel"

#: Peers are told within a second; a node that does not answer is named then.
APPLY_MAX_S = 15.0
APPLY_EVERY_S = 0.2

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="passel's configuration (YAML).")
]
NodeConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="PASSEL_CONFIG", help="The configuration of this node of a Ray cluster."
    ),
]
GatewayOption = Annotated[
    str | None, typer.Option(help="URL of the gateway. Left out: the first of gateway.listen.")
]
RootOption = Annotated[Path, typer.Option(help="Where / of the node is, for images being built.")]
WriteOption = Annotated[bool, typer.Option("--write", help="Change the files.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would change.")]
UndoOption = Annotated[bool, typer.Option("--undo", help="Take back what passel has written.")]


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


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="The YAML file.")],
    state: StateOption = None,
    config: NodeConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a running cluster go by a file, without a restart; wrong, it is refused as a whole."""
    with errors_are_sentences():
        wanted = load(file)
        missing = missing_files(wanted)
        if missing:
            fail("\n".join(missing), 2)
        folder = state_folder(state)
        written = written_keys(wanted)
        if config is None or state is not None:
            # Of these, `passel up` gives every node its own.
            written = {k: v for k, v in written.items() if k not in plan.OWN_KEYS}
        client = Client(state=folder.path, config=config if state is None else None)
        facts = client.ask("apply", text=dump(wanted), written=written)
        deadline = time.monotonic() + APPLY_MAX_S
        while facts["waits_for"] and time.monotonic() < deadline:
            time.sleep(APPLY_EVERY_S)
            with contextlib.suppress(TransientError):
                facts = client.ask("config")
        if as_json:
            print_json(facts)
        else:
            out.print(f"version {facts['version']} is what counts; gateways follow in a second")
        if facts["waits_for"]:
            nodes = ", ".join(facts["waits_for"])
            raise PasselError(f"these nodes do not answer, and take it up when they do: {nodes}")


@dataclass(frozen=True, slots=True)
class _Mode:
    write: bool
    dry_run: bool
    undo: bool
    as_json: bool


def _run(
    config: Path | None,
    gateway: str | None,
    mode: _Mode,
    make: Callable[[clientfiles.Where], Plan],
) -> None:
    """Show, or make, the changes of a plan: all files are read before the first one is written."""
    with errors_are_sentences():
        if mode.write and mode.dry_run:
            fail("say --write or --dry-run, not both", 2)
        at = clientfiles.where(load(config) if config is not None else Config(), gateway)
        plan = make(at)
        changes = []
        for edit in plan.edits:
            before = _read(edit.path)
            after = _undone(edit, before) if mode.undo else edit.put(before)
            changes.append((edit, before, after))
        changed = [each for each in changes if each[1] != each[2]]
        if mode.write or (mode.undo and not mode.dry_run):
            for edit, before, after in changed:
                _replace(edit, before, after, undo=mode.undo)
        _report(plan, changes, mode)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _undone(edit: Edit, text: str | None) -> str | None:
    """The copy, if nobody has changed the file since; else the file of today without passel."""
    backup = _read(edit.path.with_name(edit.path.name + BACKUP))
    if backup is not None and edit.put(backup) == text:
        return backup
    return edit.take(text)


def _replace(edit: Edit, before: str | None, after: str | None, *, undo: bool) -> None:
    """Change a file in one step, with its owner and mode; the first change keeps a copy."""
    path = edit.path
    backup = path.with_name(path.name + BACKUP)
    try:
        if after is None:
            path.unlink()
        else:
            # A link is followed: /etc/containers is one on some systems.
            path = path.resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            if before is not None and not undo and not backup.exists():
                shutil.copy2(path, backup)
            status = path.stat() if before is not None else None
            fileio.publish(path, after.encode())
            path.chmod(0o644 if status is None else status.st_mode & 0o7777)
            if status is not None:
                os.chown(path, status.st_uid, status.st_gid)
        if undo:
            backup.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _report(plan: Plan, changes: list[tuple[Edit, str | None, str | None]], mode: _Mode) -> None:
    changed = [edit for edit, before, after in changes if before != after]
    done = mode.write or (mode.undo and not mode.dry_run)
    if mode.as_json:
        facts = {
            "written": done,
            "files": [
                {"path": str(edit.path), "changed": before != after}
                for edit, before, after in changes
            ],
            "restart": plan.restart if changed else None,
            "notes": plan.notes,
        }
        print_json(facts)
        return
    for edit, before, after in changes:
        if done:
            what = "as it should be already" if before == after else "written"
            if after is None and before is not None:
                what = "removed"
            out.print(f"{edit.path}: {what}", markup=False)
        elif mode.dry_run or mode.undo:
            sys.stdout.writelines(_diff(edit.path, before, after))
        else:
            sys.stdout.write(f"# {edit.path}\n{after or ''}\n")
    for note in plan.notes:
        out.print(f"note: {note}", markup=False)
    if changed:
        out.print(f"{'then' if done else 'after --write'}: {plan.restart}", markup=False)


def _diff(path: Path, before: str | None, after: str | None) -> list[str]:
    return list(
        difflib.unified_diff(
            (before or "").splitlines(keepends=True),
            (after or "").splitlines(keepends=True),
            str(path) if before is not None else "/dev/null",
            str(path) if after is not None else "/dev/null",
        )
    )


def _client(name: str, make: Callable[[clientfiles.Where, Path], Plan], text: str) -> None:
    """A command for a client whose files have their place under /etc."""

    def command(
        config: ConfigOption = None,
        gateway: GatewayOption = None,
        root: RootOption = Path("/"),
        write: WriteOption = False,
        dry_run: DryRunOption = False,
        undo: UndoOption = False,
        as_json: JsonOption = False,
    ) -> None:
        mode = _Mode(write, dry_run, undo, as_json)
        _run(config, gateway, mode, lambda at: make(at, root))

    app.command(name, help=text)(command)


_client("containerd", clientfiles.containerd, "containerd: /etc/containerd/certs.d, config_path.")
_client("podman", clientfiles.podman, "podman, buildah, skopeo: a drop-in of registries.conf.")
_client("crio", clientfiles.crio, "CRI-O: the same drop-in.")
_client("docker", clientfiles.docker, "docker: registry-mirrors in daemon.json.")
_client(
    "nydus-snapshotter",
    clientfiles.nydus_snapshotter,
    "nydus-snapshotter: /etc/nydus/certs.d and its key in config.toml.",
)


@app.command()
def nydusd(
    file: Annotated[Path, typer.Argument(help="The JSON file that nydusd is started with.")],
    config: ConfigOption = None,
    gateway: GatewayOption = None,
    proxy: Annotated[
        bool,
        typer.Option("--proxy", help="Write `proxy` (every version), not `mirrors` (<= 2.3.4)."),
    ] = False,
    write: WriteOption = False,
    dry_run: DryRunOption = False,
    undo: UndoOption = False,
    as_json: JsonOption = False,
) -> None:
    """nydusd: `mirrors` or `proxy` of its registry backend."""
    mode = _Mode(write, dry_run, undo, as_json)
    _run(config, gateway, mode, lambda at: clientfiles.nydusd(at, file, proxy=proxy))
