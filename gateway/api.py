"""/api/v1 on the health listeners: jobs, blobs, pins and status over HTTP.

One table says what there is; requests are answered by it and the OpenAPI document is made of it.
The gateway decides nothing: the node's peer hands each question on to the cluster's controller.
Whoever reaches the listener may look; what changes something needs the token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import ValidationError

from passel.errors import InputError, PeerUnavailable
from passel.gateway import apimodels
from passel.gateway.openapi import document
from passel.gateway.replies import Failure, Refusal, unavailable
from passel.gateway.webhooks import DistributionEnvelope, HarborPayload, Webhooks

if TYPE_CHECKING:
    from passel.gateway.context import Context
    from passel.gateway.exchange import Exchange

log = logging.getLogger(__name__)

PREFIX = "/api/v1"
BODY_BYTES_MAX = 64 * 1024
WEBHOOK_BYTES_MAX = 1024 * 1024
BODY_S = 10.0
TOKEN_BYTES_MAX = 4096
#: Requests that change something, at the same time; each may wait for a registry.
AT_ONCE = 16
LIMIT_MAX = 10_000

#: (status, facts or errors)
Answer = tuple[int, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the API, checked: the parts of its path, its `limit`, its body."""

    parts: dict[str, str]
    limit: int | None
    body: Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked for. Whatever is no GET needs the token."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[apimodels.Model]
    handler: Callable[[Call], Awaitable[Answer]]
    body: type[apimodels.Model] | None = None
    status: int = 200
    has_limit: bool = False
    body_bytes_max: int = BODY_BYTES_MAX

    def match(self, path: str) -> dict[str, str] | None:
        """The parts of a path that is this one's, else None."""
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]{1,1000})", self.path)
        found = re.fullmatch(pattern, path)
        return None if found is None else {k: unquote(v) for k, v in found.groupdict().items()}


class Api:
    """Answers what begins with ``/api/v1``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._webhooks = Webhooks(context)
        self.operations = (
            *self._operations(),
            *self._drain_operations(),
            *self._webhook_operations(),
        )
        self._document: bytes | None = None

    def _operations(self) -> tuple[Operation, ...]:
        m = apimodels
        return (
            Operation("GET", "/status", "status", "The cluster.", m.Status, self._status),
            Operation("GET", "/jobs", "jobs", "The preheats.", m.Jobs, self._ask("jobs")),
            Operation(
                "POST", "/jobs", "preheat", "Begin one.", m.Job, self._preheat, m.Preheat, 202
            ),
            Operation("GET", "/jobs/{job}", "job", "One preheat.", m.Job, self._job),
            Operation("DELETE", "/jobs/{job}", "cancel", "End one.", m.Job, self._ask("cancel")),
            Operation(
                "GET", "/blobs", "blobs", "The blobs.", m.Blobs, self._ask("blobs"), has_limit=True
            ),
            Operation(
                "DELETE",
                "/blobs/{digest}",
                "remove",
                "Remove the complete copies of a blob from all nodes.",
                m.Removal,
                self._ask("remove"),
            ),
            Operation(
                "GET",
                "/schedules",
                "schedules",
                "The preheats that come again.",
                m.Schedules,
                self._ask("schedules"),
            ),
            Operation(
                "POST", "/schedules", "schedule", "Plan one.", m.Schedule, self._schedule, m.Plan
            ),
            Operation(
                "DELETE",
                "/schedules/{schedule}",
                "unschedule",
                "Take one away.",
                m.Schedule,
                self._ask("unschedule"),
            ),
            Operation("GET", "/pins", "pins", "What is pinned.", m.Pins, self._ask("pins")),
            Operation("POST", "/pins", "pin", "Pin something.", m.Pin, self._pin, m.PinOrder),
            Operation(
                "DELETE",
                "/pins/{what}",
                "unpin",
                "Take a pin away, by its id, its digest or what was pinned.",
                m.Unpinned,
                self._ask("unpin"),
            ),
        )

    def _drain_operations(self) -> tuple[Operation, ...]:
        m = apimodels
        return (
            Operation(
                "GET",
                "/drains",
                "drains",
                "The nodes that are to go away.",
                m.Drains,
                self._ask("drains"),
            ),
            Operation(
                "POST",
                "/drains/{node}",
                "drain",
                "Hand over what only this node has; again: try anew what could not be.",
                m.Drain,
                self._ask("drain"),
                status=202,
            ),
            Operation(
                "DELETE", "/drains/{node}", "undrain", "It stays.", m.Drain, self._ask("undrain")
            ),
        )

    def _webhook_operations(self) -> tuple[Operation, ...]:
        m = apimodels
        return (
            Operation(
                "POST",
                "/webhooks/harbor",
                "harbor",
                "Harbor's PUSH_ARTIFACT.",
                m.Received,
                self._webhooks.harbor,
                HarborPayload,
                202,
                body_bytes_max=WEBHOOK_BYTES_MAX,
            ),
            Operation(
                "POST",
                "/webhooks/distribution",
                "distribution",
                "Notifications of the distribution registry.",
                m.Received,
                self._webhooks.distribution,
                DistributionEnvelope,
                202,
                body_bytes_max=WEBHOOK_BYTES_MAX,
            ),
        )

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request completely."""
        exchange.kind = "api"
        path = exchange.target.path.removeprefix(PREFIX)
        if path == "/openapi.json" and exchange.method in ("GET", "HEAD"):
            if self._document is None:
                self._document = json.dumps(document(PREFIX, self.operations), indent=1).encode()
            await exchange.reply(200, (), self._document, "application/json")
            return
        operation, parts = self._find(exchange.method, path)
        if operation.method != "GET":
            self._check_token(exchange)
        call = Call(parts, _limit(exchange, operation), await self._body(exchange, operation))
        if operation.method != "GET":
            # No word of the request: what it names is in the controller's log, once it is accepted.
            log.info("api_call operation=%s client=%s", operation.name, exchange.client)
        if self._slots.locked():
            raise Refusal(unavailable(f"{AT_ONCE} requests to the API are under way already"))
        async with self._slots:
            try:
                status, facts = await operation.handler(call)
            except PeerUnavailable as error:
                raise Refusal(unavailable(f"{error}: the API needs the cluster")) from error
        status = operation.status if status == 200 else status
        body = json.dumps(facts, indent=1).encode() + b"\n"
        await exchange.reply(status, (), body, "application/json")

    def _find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        method = "GET" if method == "HEAD" else method
        here = [(each, each.match(path)) for each in self.operations]
        found = [(each, parts) for each, parts in here if parts is not None]
        if not found:
            text = f"there is nothing of this name: {PREFIX}/openapi.json says what there is"
            raise Refusal(Failure(404, "UNSUPPORTED", text, close=True))
        for operation, parts in found:
            if operation.method == method:
                return operation, parts
        allowed = ", ".join(each.method for each, _ in found)
        text = f"this can be asked for with {allowed}"
        raise Refusal(Failure(405, "UNSUPPORTED", text, headers=(("Allow", allowed),), close=True))

    def _check_token(self, exchange: Exchange) -> None:
        """The caller shows the token of the file. Raises Refusal."""
        path = self._context.config.gateway.api.token_file
        if path is None:
            text = "nothing can be changed here: gateway.api.token_file names no file with a token"
            raise Refusal(Failure(403, "DENIED", text, close=True))
        try:
            with path.open("rb") as file:
                token = file.read(TOKEN_BYTES_MAX).splitlines()[0].strip()
        except (OSError, IndexError):
            token = b""
        if not token:
            log.error("api_token_unreadable path=%s", path)
            text = "nothing can be changed here: the file with the token is missing or empty"
            raise Refusal(Failure(403, "DENIED", text, close=True))
        scheme, _, given = (exchange.authorization or "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
        if scheme.lower() != "bearer" or not same:
            text = "this needs the header Authorization: Bearer and the API's token"
            headers = (("WWW-Authenticate", 'Bearer realm="passel"'),)
            raise Refusal(Failure(401, "UNAUTHORIZED", text, headers=headers, close=True))

    async def _body(self, exchange: Exchange, operation: Operation) -> Any:
        request = exchange.request
        if operation.body is None:
            if request.body_exists:
                raise Refusal(Failure(400, "UNSUPPORTED", "this takes no body", close=True))
            return None
        most = operation.body_bytes_max
        too_long = Failure(413, "SIZE_INVALID", f"the body is longer than {most} bytes", close=True)
        if (request.content_length or 0) > most:
            raise Refusal(too_long)
        if (exchange.header("Expect") or "").lower() == "100-continue":
            exchange.connection.go_on()

        async def read() -> bytes:
            body = bytearray()
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > most:
                    raise Refusal(too_long)
            return bytes(body)

        try:
            content = await asyncio.wait_for(read(), BODY_S)
        except asyncio.TimeoutError:
            text = f"the body did not come within {BODY_S:g} s"
            raise Refusal(Failure(408, "UNSUPPORTED", text, close=True)) from None
        try:
            return operation.body.model_validate_json(content)
        except ValidationError as error:
            raise InputError(400, "UNSUPPORTED", _sentence(error)) from None

    # --- handlers -------------------------------------------------------------------------------

    def _ask(self, verb: str) -> Callable[[Call], Awaitable[Answer]]:
        """A question that the controller takes as it stands."""

        async def handler(call: Call) -> Answer:
            fields: dict[str, Any] = dict(call.parts)
            if call.limit is not None:
                fields["limit"] = call.limit
            return await self._context.door.admin(verb, fields)

        return handler

    async def _status(self, call: Call) -> Answer:
        return 200, await self._context.door.cluster_status()

    async def _job(self, call: Call) -> Answer:
        status, facts = await self._context.door.admin("jobs", dict(call.parts))
        return status, facts["jobs"][0] if status == 200 else facts

    async def _preheat(self, call: Call) -> Answer:
        return await self._context.door.admin("submit", _fields(call.body))

    async def _schedule(self, call: Call) -> Answer:
        fields = _fields(call.body)
        fields["every_s"] = fields.pop("every")
        return await self._context.door.admin("schedule", fields)

    async def _pin(self, call: Call) -> Answer:
        return await self._context.door.admin("pin", _fields(call.body))


def _fields(body: apimodels.Model) -> dict[str, Any]:
    fields = body.model_dump()
    fields["ttl_s"] = fields.pop("ttl")
    return fields


def _limit(exchange: Exchange, operation: Operation) -> int | None:
    if not operation.has_limit:
        return None
    given = exchange.query("limit")
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(r"[0-9]{1,5}", given[0]) or int(given[0]) < 1:
        raise InputError(400, "UNSUPPORTED", f"limit must be a number from 1 to {LIMIT_MAX}")
    return min(int(given[0]), LIMIT_MAX)


def _sentence(error: ValidationError) -> str:
    """What is wrong first, without a word of the body but its known keys."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind = first["type"]
    where = ".".join(str(step) for step in first["loc"])
    if kind == "json_invalid":
        return "the body must be JSON"
    if kind == "extra_forbidden":
        return f"the body has a key that is not known: {where[:100]!r}"
    if kind == "missing":
        return f"{where} is missing"
    text = str(first["ctx"]["error"]) if kind == "value_error" else first["msg"]
    text = text[:1].lower() + text[1:]
    return f"{where}: {text}" if where else f"the body must be a JSON object: {text}"
