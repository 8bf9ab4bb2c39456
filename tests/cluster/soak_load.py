"""The soak's blobs, its registry with an account of its own, and readers that never stop."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
REPOSITORY = "soak/blob"
#: A read that says nothing for so long hangs.
READ_TIMEOUT_S = 30.0
FINDINGS_MAX = 200
#: So long after the registry answers again, a refusal may still be from before.
ORIGIN_GRACE_S = 3.0


class Diary:
    """What happened and what was wrong, as seconds since the soak began. Used by all threads."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.events: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.n_findings = 0
        self._troubles: dict[str, deque[list[float]]] = {}
        self._lock = threading.Lock()

    def now(self) -> float:
        return time.monotonic() - self.began

    def event(self, name: str, **facts: Any) -> None:
        with self._lock:
            self.counts[name] += 1
            self.events.append({"t": round(self.now(), 2), "event": name, **facts})
            print(json.dumps(self.events[-1]), file=sys.stderr, flush=True)

    def finding(self, sentence: str) -> None:
        with self._lock:
            self.n_findings += 1
            if len(self.findings) < FINDINGS_MAX:
                text = f"at {self.now():.2f} s: {sentence}"
                self.findings.append(text)
                print(f"FINDING {text}", file=sys.stderr, flush=True)

    def trouble(self, subject: str) -> Callable[[], None]:
        """The subject (origin, a node) cannot answer from now on, until what is returned is called.

        Only what was done to it on purpose is a trouble: it excuses reads.
        """
        window = [self.now(), math.inf]
        self._troubles.setdefault(subject, deque(maxlen=1000)).append(window)

        def is_over() -> None:
            window[1] = self.now()

        return is_over

    def had_trouble(self, subject: str, since: float, until: float) -> bool:
        return any(a <= until and since <= b for a, b in list(self._troubles.get(subject, ())))


@dataclass(frozen=True)
class Blob:
    digest: str
    size: int
    path: Path

    def bytes_from(self, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


class Registry:
    """The demo registry on a port that stays its own, so that it can go away and come back."""

    def __init__(self, folder: Path, rng: random.Random, *words: str) -> None:
        self.root = folder / "origin"
        self.log = folder / "origin.jsonl"
        self._words = words
        self._rng = rng
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self.is_up = threading.Event()
        self.url = ""
        (self.root / "blobs" / "sha256").mkdir(parents=True)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "passel.cli.demo.registry", "--root", str(self.root)]
        command += ["--port", str(self._port), "--log", str(self.log), *self._words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self._port = int(self.url.rpartition(":")[2])
        self.is_up.set()

    def stop(self) -> None:
        self.is_up.clear()
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()

    def make(self) -> Blob:
        """A new blob: of a few KiB, of some MiB, or a large one."""
        low, high = self._rng.choice(((4 * KIB, MIB), (MIB, 6 * MIB), (6 * MIB, 12 * MIB)))
        data = self._rng.randbytes(self._rng.randrange(low, high))
        name = hashlib.sha256(data).hexdigest()
        path = self.root / "blobs" / "sha256" / name
        path.write_bytes(data)
        return Blob(f"sha256:{name}", len(data), path)

    def account(self) -> dict[str, int]:
        """Requests and bytes that went out, by the registry's own log (killed answers lack)."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        entries = [json.loads(line) for line in lines]
        sent = Counter[str]()
        for each in entries:
            sent[each["path"].rpartition("/")[2]] += each["bytes"]
        return {"requests": len(entries), "bytes": sent.total(), "blobs": len(+sent)}


class Population:
    """The blobs that are read now. Old ones go, new ones come."""

    def __init__(self, registry: Registry, n_blobs: int) -> None:
        self._registry = registry
        self.blobs = [registry.make() for _ in range(n_blobs)]

    def renew(self) -> Blob:
        self.blobs = [*self.blobs[1:], self._registry.make()]
        return self.blobs[-1]

    @property
    def total(self) -> int:
        return sum(blob.size for blob in self.blobs)


@dataclass
class Reads:
    """What the readers of all nodes did."""

    n: int = 0
    n_bytes: int = 0
    n_excused: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, n_bytes: int, took_s: float, what: str) -> None:
        with self.lock:
            self.n += 1
            self.n_bytes += n_bytes
            if took_s > self.slowest_s:
                self.slowest_s, self.slowest = took_s, what


class ReadFailed(Exception):
    """The read did not bring what was asked for; `is_wrong`: it brought something else."""

    def __init__(self, why: str, *, is_wrong: bool = False) -> None:
        super().__init__(why)
        self.is_wrong = is_wrong


def read_compared(connection: http.client.HTTPConnection, blob: Blob, start: int, stop: int) -> int:
    """Bytes read, each the same as the registry's. Raises ReadFailed."""
    is_whole = (start, stop) == (0, blob.size)
    headers = {} if is_whole else {"Range": f"bytes={start}-{stop - 1}"}
    at = start
    try:
        connection.request("GET", f"/v2/{REPOSITORY}/blobs/{blob.digest}", headers=headers)
        answer = connection.getresponse()
        if answer.status != (200 if is_whole else 206):
            raise ReadFailed(f"status {answer.status}: {answer.read(300)!r}")
        while chunk := answer.read(256 * KIB):
            if chunk != blob.bytes_from(at, at + len(chunk)):
                raise ReadFailed(f"wrong bytes behind {at}", is_wrong=True)
            at += len(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise ReadFailed(f"{type(error).__name__} behind {at - start} bytes: {error}") from error
    if at != stop:
        # Cut off is a failure that everybody sees; a short body that ends well would be a lie.
        is_lie = answer.length is None or at > stop
        text = f"{at - start} bytes instead of {stop - start}"
        raise ReadFailed(text, is_wrong=is_lie)
    return at - start


def is_held(store: Path, blob: Blob) -> bool:
    name = blob.digest.partition(":")[2]
    return (store / "blobs" / "sha256" / name[:2] / name).exists()


class Reader(threading.Thread):
    """Reads whole blobs, or ranges of one as nydusd does, until it is told to stop."""

    def __init__(
        self,
        node: str,
        store: Path,
        port: int,
        population: Population,
        diary: Diary,
        reads: Reads,
        rng: random.Random,
        *,
        is_ranged: bool,
    ) -> None:
        super().__init__(name=f"reader-{node}", daemon=True)
        self.node = node
        self._store = store
        self._port = port
        self._population = population
        self._diary = diary
        self._reads = reads
        self._rng = rng
        self._is_ranged = is_ranged
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.is_set():
            blob = self._rng.choice(self._population.blobs)
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=READ_TIMEOUT_S)
            try:
                for start, stop in self._spans(blob):
                    if not self.read(connection, blob, start, stop):
                        self._over.wait(0.3)
                        break
            finally:
                connection.close()
            self._over.wait(self._rng.uniform(0.1, 0.7))

    def _spans(self, blob: Blob) -> list[tuple[int, int]]:
        if not self._is_ranged:
            return [(0, blob.size)]
        spans = []
        for _ in range(self._rng.randrange(2, 10)):
            start = self._rng.randrange(blob.size - 1)
            length = self._rng.choice((1, 4 * KIB, 64 * KIB, MIB))
            # Never all of it: that would be a whole read.
            spans.append((start, min(blob.size - (start == 0), start + length)))
        return spans

    def read(
        self, connection: http.client.HTTPConnection, blob: Blob, start: int, stop: int
    ) -> bool:
        """Whether it went well; if not, and nothing excuses it, it is a finding."""
        diary = self._diary
        began, was_held = diary.now(), is_held(self._store, blob)
        what = f"{blob.digest[7:15]}[{start}:{stop}] of {blob.size} on {self.node}"
        try:
            n_bytes = read_compared(connection, blob, start, stop)
        except ReadFailed as error:
            text = f"reading {what}, since {began:.2f} s: {error}"
            is_local = was_held and is_held(self._store, blob)
            if error.is_wrong:
                diary.finding(f"WRONG {text}")
            elif not self._excuses(began, is_local):
                diary.finding(f"{text} (held here: {is_local})")
            else:
                self._reads.n_excused += 1
            return False
        self._reads.note(n_bytes, diary.now() - began, f"{what} at {began:.1f} s")
        return True

    def _excuses(self, began: float, is_local: bool) -> bool:
        # The event that ends a connection may come a moment before it is written down.
        time.sleep(0.3)
        now = self._diary.now()
        if self._diary.had_trouble(self.node, began, now):
            return True
        return not is_local and self._diary.had_trouble("origin", began - ORIGIN_GRACE_S, now)


def ping(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server/ping", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False
