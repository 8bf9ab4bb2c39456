"""`passel sim`: a rollout in virtual time, with the scheduler that would carry it out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from passel.cli.cluster import JsonOption
from passel.cli.console import USAGE, err, errors_are_sentences, fail, out, print_json, size
from passel.config import build, load_as, parse_duration
from passel.errors import ConfigError, InputError

if TYPE_CHECKING:
    from passel.sim.report import Report
    from passel.sim.scenario import Scenario

app = typer.Typer(help="Simulate a rollout with the production scheduler.")

ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="A scenario (YAML), see configs/sim.")
]
NodesOption = Annotated[int | None, typer.Option(help="1 to 100000; default 100.")]
ZonesOption = Annotated[int | None, typer.Option(help="1 to the number of nodes; default 1.")]
BlobOption = Annotated[
    list[str] | None, typer.Option("--blob", help="Its size, e.g. '4 GiB'; several: an image.")
]
LinkOption = Annotated[str | None, typer.Option(help="Of a node, e.g. '10 Gbit/s'.")]
TrunkOption = Annotated[str | None, typer.Option(help="Of a zone, each direction; or none.")]
OriginOption = Annotated[str | None, typer.Option(help="What the registry sends altogether.")]
SeedOption = Annotated[int | None, typer.Option(help="Everything random follows from it.")]


@app.callback(invoke_without_command=True)
def sim(
    context: typer.Context,
    profile: ProfileOption = None,
    nodes: NodesOption = None,
    zones: ZonesOption = None,
    blob: BlobOption = None,
    link: LinkOption = None,
    trunk: TrunkOption = None,
    origin: OriginOption = None,
    arrival: Annotated[
        str | None,
        typer.Option(help="at-once, poisson N/s, waves N every TIME, rolling N, trace FILE."),
    ] = None,
    faults: Annotated[
        list[str] | None, typer.Option(help="E.g. 'crash seed at 2 s for 1 s'; may be repeated.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="passel, or models of others: see `sim policies`.")
    ] = None,
    seed: SeedOption = None,
    trace: Annotated[Path | None, typer.Option(help="Write the events here (Parquet).")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A trace, or the --json of another run, to set beside it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate one rollout; several policies one after the other."""
    if context.invoked_subcommand is not None:
        return
    given = _given(
        nodes=nodes, zones=zones, blobs=blob, link=link, trunk=trunk, origin=origin,
        arrival=arrival, faults=faults, seed=seed,
    )  # fmt: skip
    with errors_are_sentences():
        chosen: list[dict[str, Any]] = [{"policy": name} for name in policy or ()] or [{}]
        if len(chosen) > 1:
            given["engine"] = "rounds"  # like is compared with like
        scenarios = [_scenario(profile, given | each) for each in chosen]
        other = None if compare is None else _other(compare)
        reports = [
            _run(scenario, trace if i == 0 else None) for i, scenario in enumerate(scenarios)
        ]
        if as_json:
            facts = [report.facts() for report in reports]
            print_json(facts[0] if len(facts) == 1 else facts)
        else:
            _show(reports, other)
        if not all(report.facts()["finished"] == report.ends.size for report in reports):
            fail("not all nodes got everything; see the table")


@app.command()
def plan(
    within: Annotated[str, typer.Option(help="When all nodes are to be done, e.g. '60 s'.")],
    profile: ProfileOption = None,
    nodes: NodesOption = None,
    zones: ZonesOption = None,
    blob: BlobOption = None,
    link: LinkOption = None,
    origin: OriginOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """How many seeds and what trunk a rollout needs to end in a given time."""
    from passel.sim.sizing import size_up
    from passel.sim.words import rate_text

    given = _given(nodes=nodes, zones=zones, blobs=blob, link=link, origin=origin, seed=seed)
    with errors_are_sentences():
        try:
            within_s = parse_duration(within).total_seconds()
        except ValueError as error:
            fail(f"--within: {error}, got {within}", USAGE)
        need = size_up(_scenario(profile, given), within_s)
        trunk = None if need.trunk is None else rate_text(need.trunk)
        took_s = need.report.makespan_s
        if as_json:
            facts = need.report.facts()
            print_json({"seeds": need.seeds, "trunk": trunk, "rollout": facts})
            return
        out.print(f"seeds: {need.seeds}; trunk of each zone: {trunk or 'none needed'}")
        out.print(f"then all {need.report.ends.size} nodes are done after {took_s:.2f} s")


@app.command()
def policies() -> None:
    """What --policy may name."""
    from passel.sim.policies import POLICIES

    for name, make in POLICIES.items():
        summary = (type(make()).__doc__ or "").strip().splitlines()[0]
        out.print(f"{name:20} {summary}", markup=False)


# ------------------------------------------------------------------------------------- scenarios


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _scenario(profile: Path | None, given: dict[str, Any]) -> Scenario:
    """The profile, with what the command line says in its place. Raises ConfigError."""
    from passel.sim.scenario import Scenario

    base: dict[str, object] = {}
    if profile is not None:
        base = load_as(Scenario, profile).model_dump(mode="json", exclude_defaults=True)
    try:
        return build(Scenario, base | given)
    except ConfigError as error:
        lines = []
        for line in str(error).splitlines():
            key, _, rest = line.partition(":")
            name = "blob" if key.startswith("blobs") else key.partition("[")[0]
            lines.append(f"--{name}:{rest}" if name in given or name == "blob" else line)
        raise ConfigError("\n".join(lines)) from None


def _run(scenario: Scenario, trace: Path | None) -> Report:
    from passel.sim.rollout import simulate
    from passel.telemetry.trace import Recorder, TraceFile

    if trace is not None and not scenario.uses_messages:
        text = "--trace: expected policy passel and at most 600000 pieces in all (nodes x pieces)"
        raise InputError(400, "UNKNOWN", text + ": larger rollouts have no messages to trace")
    about = {"scenario": scenario.model_dump(mode="json", exclude_defaults=True)}
    file = None if trace is None else TraceFile(trace, "virtual", about)
    with _bar(scenario) as progress:
        try:
            return simulate(scenario, None if file is None else Recorder(file), progress)
        finally:
            if file is not None:
                file.close()


@contextlib.contextmanager
def _bar(scenario: Scenario) -> Iterator[Callable[[int, float], None]]:
    columns = (
        TextColumn(scenario.policy),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} nodes, {task.fields[virtual]:.2f} s virtual"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=scenario.nodes, virtual=0.0)

        def shown(n_ended: int, virtual_s: float) -> None:
            bar.update(task, completed=n_ended, virtual=virtual_s)

        yield shown


# ------------------------------------------------------------------------------------- tables


def _other(path: Path) -> dict[str, Any]:
    """Facts of another run: from its --json, or from a trace."""
    from passel.telemetry.analysis import facts_of

    if path.suffix != ".json":
        return facts_of(path)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or "makespan_s" not in facts:
            raise ValueError
    except (OSError, ValueError) as error:
        text = f"--compare: expected the --json of one `passel sim`, or a trace; got {path}"
        raise InputError(400, "UNKNOWN", text) from error
    return facts


def _show(reports: list[Report], other: dict[str, Any] | None) -> None:
    columns = [report.facts() for report in reports] + ([other] if other is not None else [])
    names = [report.scenario.policy for report in reports] + ["compared"] * (other is not None)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for title, of in _ROWS:
        table.add_row(title, *(of(facts) for facts in columns))
    out.print(table)
    for report in reports[:1]:
        bound = report.bound
        terms = ", ".join(f"{name} {s:.3g} s" for name, s in bound.terms.items())
        out.print(f"bound {bound.seconds:.4g} s, binding: {bound.binding} ({terms})", markup=False)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _times(n_bytes: float, of: float) -> str:
    return f"{size(n_bytes)} ({n_bytes / of:.3f} x)" if of else size(n_bytes)


_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("nodes done", lambda f: f"{f['finished']} of {f['nodes']}"),
    ("last node done", lambda f: _seconds(f["makespan_s"])),
    ("by the bound", lambda f: "-" if f.get("ratio") is None else f"{f['ratio']:.3f}"),
    ("a node, p50", lambda f: _seconds(f["node_s"]["p50"])),
    ("a node, p99", lambda f: _seconds(f["node_s"]["p99"])),
    ("a lazy read, p99", lambda f: _seconds(f["read_s"]["p99"])),
    ("from the origin", lambda f: _times(f["bytes"]["origin"], f["bytes"]["blobs"])),
    ("between zones", lambda f: _times(f["bytes"]["cross_zone"], f["bytes"]["cross_zone_min"])),
    ("failed reads", lambda f: str(f["failed_reads"])),
    ("decisions", lambda f: str(f["decisions"])),
    ("simulated in", lambda f: _seconds(f["cost"].get("wall_s"))),
]
