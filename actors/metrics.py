"""The measures of an actor as metrics of Ray, which exports them with its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import aiohttp
from ray.util.metrics import Gauge

from passel.telemetry.series import Measure, Series

log = logging.getLogger(__name__)

#: Ray exports every 10 s; this is often enough, and costs some milliseconds.
PUBLISH_EVERY_S = 5.0
GATEWAY_TIMEOUT_S = 2.0
BODY_BYTES_MAX = 1024 * 1024
#: Names that one actor exports: what a gateway says must not fill Prometheus.
SERIES_MAX = 100

Measuring = Callable[[], Awaitable[Iterable[Measure]]]


class Publisher:
    """Hands measures over to Ray. `labels` are added to all: the node, its zone, its role.

    All of them are gauges of Ray, those that only grow too. Its counters take increases above 0
    only: a counter would appear with its first event, and no rate would ever show that one.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._gauges: dict[Series, Gauge] = {}

    def publish(self, measures: Iterable[Measure]) -> None:
        """The values as they are now."""
        for measure in measures:
            series = measure.series
            gauge = self._gauges.get(series)
            if gauge is None:
                if len(self._gauges) >= SERIES_MAX:
                    continue
                keys = (*self._labels, *series.labels)
                gauge = self._gauges[series] = Gauge(series.name, series.about, keys)
            tags = dict(zip(series.labels, measure.labels, strict=True))
            gauge.set(measure.value, {**self._labels, **tags})

    async def run(self, measuring: Measuring) -> None:
        """For ever."""
        while True:
            self.publish(await measuring())
            await asyncio.sleep(PUBLISH_EVERY_S)


class GatewayMetrics:
    """What the node's gateway says of itself; nothing while it is away."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def read(self, base: str | None) -> str:
        """The text of ``/metrics`` at the gateway's base URL; empty when there is none."""
        if base is None:
            return ""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=GATEWAY_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        try:
            async with self._session.get(f"{base}/metrics") as answer:
                body = await answer.content.read(BODY_BYTES_MAX)
                return body.decode("utf-8", "replace") if answer.status == 200 else ""
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            log.debug("gateway_metrics_missing why=%s", error)
            return ""
