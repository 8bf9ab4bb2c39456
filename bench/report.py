"""JSON lines that say where a figure came from: one line per case, with every raw sample.

Shared by the scripts in this folder. `Report.row` prints one line to standard output and, in words,
one to standard error.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("passel", "aiohttp", "numpy", "ray")


def commit() -> str:
    """The commit that is checked out, with ``+changes`` if the code differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "HEAD") or "unknown"
    paths = ("src", "actors", "gateway", "bench")
    return name + ("+changes" if git("status", "--porcelain", "--", *paths) else "")


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores that we may use, memory, kernel."""
    cpu = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python and the packages whose speed we might be measuring."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def file_system(path: Path) -> str:
    """The type of the file system that `path` lies on."""
    best, kind = "", "unknown"
    for line in _lines("/proc/self/mounts"):
        _, mount, this, *_ = line.split()
        if str(path.resolve()).startswith(mount) and len(mount) >= len(best):
            best, kind = mount, this
    return kind


def cpu_s() -> float:
    """User and system seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_peak_bytes() -> int:
    """The most memory that this program ever had resident; 0 where the kernel does not say.

    Not ``ru_maxrss``: that one counts what the process was before it became this program.
    """
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def samples(measure: Callable[[], float], repetitions: int) -> list[float]:
    """Call `measure` that often, after one call that does not count."""
    measure()
    return [measure() for _ in range(repetitions)]


class Report:
    """Prints the lines of one run of one script."""

    def __init__(self, question: str, *, seed: int | None = None) -> None:
        self._head = {
            "bench": Path(sys.argv[0]).stem,
            "question": question,
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "seed": seed,
        }

    def row(
        self,
        case: str,
        unit: str,
        values: Sequence[float],
        *,
        parameters: Mapping[str, Any],
        bound: float | None = None,
        goal: float | None = None,
        cpu_s: Mapping[str, Sequence[float]] | None = None,
        **more: Any,
    ) -> None:
        """Print one case.

        Parameters
        ----------
        case, unit : str
            What `values` are, and in what.
        values : sequence of float
            Every sample, as measured.
        bound : float, optional
            What physics (or the plainest possible program) reached in the same run, same unit.
        goal : float, optional
            What we want, same unit.
        cpu_s : mapping, optional
            Side -> CPU seconds, one per sample.
        more
            Anything else that JSON can hold.
        """
        median = statistics.median(values)
        row: dict[str, Any] = {
            **self._head,
            "case": case,
            "parameters": dict(parameters),
            "unit": unit,
            "repetitions": len(values),
            "samples": [_short(v) for v in values],
            "median": _short(median),
            "lowest": _short(min(values)),
            "highest": _short(max(values)),
            "bound": bound if bound is None else _short(bound),
            "ratio_to_bound": _short(median / bound) if bound else None,
            "goal": goal,
        }
        if cpu_s is not None:
            row["cpu_s"] = {side: [_short(v) for v in each] for side, each in cpu_s.items()}
        row.update(more)
        print(json.dumps(row), flush=True)
        words = " ".join(f"{key}={value}" for key, value in parameters.items())
        against = f", bound {bound:.4g}, ratio {median / bound:.2f}" if bound else ""
        text = f"{case} {words}: {median:.4g} {unit} ({min(values):.4g}-{max(values):.4g}{against})"
        if cpu_s is not None:
            spent = {side: statistics.median(each) for side, each in cpu_s.items()}
            text += "; CPU-s " + ", ".join(f"{side} {value:.2f}" for side, value in spent.items())
        print(text, file=sys.stderr, flush=True)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
