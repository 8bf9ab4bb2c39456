"""A root file system that starts a real program: this machine's Python and some of its packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from passel.errors import PasselError

#: What a service that works on data imports; all are dependencies of passel.
PACKAGES = ("numpy", "pyarrow", "aiohttp", "yaml", "pydantic", "prometheus_client")
PYTHON = "/usr/bin/python3"
#: Where Python lies in the tree; everything else lies where it lies on this machine.
_HOME = Path("opt/python")
_LIB = _HOME / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
_NOT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "turtledemo", "ensurepip", "site-packages"
)
_LIBRARY = re.compile(r"(/\S+) \(0x")


def start_command(root: Path, packages: Sequence[str] = PACKAGES) -> list[str]:
    """Enters the tree, imports the packages, and says ``ready``."""
    code = f"import {', '.join(packages)}; print('ready', flush=True)"
    home = f"PYTHONHOME=/{_HOME}"
    return ["chroot", str(root), "/usr/bin/env", "-i", home, PYTHON, "-B", "-c", code]


def make(root: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Copies it all into `root`. Raises PasselError for a package that is not installed."""
    for name in ("stdlib", "platstdlib"):
        here = Path(sysconfig.get_path(name))
        shutil.copytree(here, root / _LIB, ignore=_NOT, symlinks=True, dirs_exist_ok=True)
    for name in _with_dependencies(packages):
        _copy_module(name, root / _LIB / "site-packages")
    for program, name in ((sys.executable, PYTHON), (shutil.which("env"), "/usr/bin/env")):
        if program is None:
            raise PasselError("there is no env(1) on this machine")
        _copy(Path(program).resolve(), root / name.lstrip("/"))
    libraries = set[str]()
    programs = [root / "usr/bin/python3", root / "usr/bin/env", *(root / _LIB).rglob("*.so*")]
    for each in programs:
        libraries |= _libraries_of(each)
    for library in libraries - {str(each) for each in programs}:
        if not library.startswith(str(root)):
            _copy(Path(library).resolve(), root / library.lstrip("/"))


def _with_dependencies(packages: Sequence[str]) -> list[str]:
    """Top-level modules of these packages and of all that they require."""
    owners = importlib.metadata.packages_distributions()
    modules: dict[str, list[str]] = {}
    for name, dists in owners.items():
        for dist in dists:
            modules.setdefault(_normal(dist), []).append(name)
    found: list[str] = []
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if importlib.util.find_spec(name) is None:
            raise PasselError(f"the package {name} is not installed")
        found.append(name)
        for dist in owners.get(name, []):
            for line in importlib.metadata.requires(dist) or []:
                other = re.match(r"[\w.-]+", line)
                if other and "extra ==" not in line:
                    waiting += modules.get(_normal(other[0]), [])
    return found


def _normal(name: str) -> str:
    """Names of packages are compared so. Source: the packaging specification (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _copy_module(name: str, target: Path) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    if spec.submodule_search_locations:
        here = Path(next(iter(spec.submodule_search_locations)))
        shutil.copytree(here, target / here.name, symlinks=True, dirs_exist_ok=True)
        # Wheels put the libraries of others beside the package.
        beside = here.parent / f"{here.name}.libs"
        if beside.is_dir():
            shutil.copytree(beside, target / beside.name, dirs_exist_ok=True)
    elif spec.origin is not None:
        _copy(Path(spec.origin), target / Path(spec.origin).name)


def _copy(here: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(here, target)


def _libraries_of(program: Path) -> set[str]:
    done = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, timeout=60, check=False
    )
    return set(_LIBRARY.findall(done.stdout))
