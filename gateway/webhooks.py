"""Registries that tell of pushes: what was pushed is preheated, as `webhooks` is configured.

A push of a manifest that carries a tag is one order to the controller, under the digest that the
registry names. Told twice, it is the same job. Registries repeat what they get no 2xx for, so what
can never be preheated is answered with 2xx and the reason. Sources: Harbor, "Configure Webhook
Notifications"; distribution, "Work with notifications" (events.v1).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import ConfigDict, Field

from passel.errors import InputError
from passel.gateway.apimodels import Model
from passel.ids import Digest
from passel.oci.media import MANIFEST_TYPES
from passel.oci.names import parse_reference, parse_repository
from passel.oci.upstream import normalise_name

if TYPE_CHECKING:
    from passel.gateway.context import Context

log = logging.getLogger(__name__)

#: In one notification.
PUSHES_MAX = 100
#: What the controller says of an image that will not become one by asking again.
_FINAL = (400, 404, 413, 422, 502)

Text = Annotated[str, Field(max_length=2000)]


class Payload(Model):
    """Written by others: keys that are not ours are theirs."""

    model_config = ConfigDict(extra="ignore")


class HarborResource(Payload):
    """One artifact."""

    digest: Text = ""
    tag: Text = ""
    resource_url: Text = ""
    """host[:port]/repository:tag."""


class HarborRepository(Payload):
    """Where it was pushed to."""

    repo_full_name: Text = ""


class HarborEvent(Payload):
    """What happened."""

    resources: list[HarborResource] = Field(default=[], max_length=PUSHES_MAX)
    repository: HarborRepository = HarborRepository()


class HarborPayload(Payload):
    """Harbor's default payload format."""

    type: Text
    event_data: HarborEvent = HarborEvent()


class DistributionTarget(Payload):
    """What it happened to."""

    mediaType: Text = ""
    digest: Text = ""
    repository: Text = ""
    tag: Text = ""
    url: Text = ""


class DistributionRequest(Payload):
    """The request that made it happen."""

    host: Text = ""


class DistributionEvent(Payload):
    """One event."""

    action: Text
    target: DistributionTarget = DistributionTarget()
    request: DistributionRequest = DistributionRequest()


class DistributionEnvelope(Payload):
    """application/vnd.docker.distribution.events.v1+json."""

    events: list[DistributionEvent] = Field(max_length=PUSHES_MAX)


@dataclass(frozen=True, slots=True)
class Push:
    """A manifest that was pushed, in the registry's words: nothing of it is checked yet."""

    host: str
    repository: str
    tag: str
    digest: str


class Checked(Protocol):
    """A call whose body went through its model."""

    @property
    def body(self) -> Any: ...


class Webhooks:
    """The handlers of both kinds."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def harbor(self, call: Checked) -> tuple[int, dict[str, Any]]:
        """A push of Harbor's; other events are nothing to us."""
        payload: HarborPayload = call.body
        if payload.type != "PUSH_ARTIFACT":
            return 200, {"jobs": [], "skipped": ["this event is no PUSH_ARTIFACT"]}
        event = payload.event_data
        pushes = [
            Push(
                each.resource_url.partition("/")[0],
                event.repository.repo_full_name,
                each.tag,
                each.digest,
            )
            for each in event.resources
        ]
        return await self._preheat(pushes)

    async def distribution(self, call: Checked) -> tuple[int, dict[str, Any]]:
        """The pushes of manifests among the events; pulls and layers are nothing to us."""
        envelope: DistributionEnvelope = call.body
        pushes = []
        for each in envelope.events:
            target = each.target
            if each.action == "push" and target.mediaType in MANIFEST_TYPES:
                host = target.url.partition("://")[2].partition("/")[0] or each.request.host
                pushes.append(Push(host, target.repository, target.tag, target.digest))
        return await self._preheat(pushes)

    async def _preheat(self, pushes: list[Push]) -> tuple[int, dict[str, Any]]:
        jobs: dict[str, dict[str, Any]] = {}
        skipped: list[str] = []
        refusal: InputError | None = None
        for push in dict.fromkeys(pushes):
            try:
                order = self._order(push)
            except InputError as error:
                # The others are begun all the same.
                refusal = refusal or error
                continue
            if isinstance(order, str):
                skipped.append(order)
                continue
            status, facts = await self._context.door.admin("submit", order)
            if status in _FINAL:
                skipped.append(str(facts["errors"][0].get("message")))
                log.warning("push_not_preheated what=%s why=%s", order["what"], skipped[-1])
            elif status != 200:
                return status, facts
            else:
                log.info("push_preheated what=%s job=%s", order["what"], facts["job"])
                jobs[str(facts["job"])] = facts
        if refusal is not None:
            raise refusal
        return 200, {"jobs": list(jobs.values()), "skipped": skipped}

    def _order(self, push: Push) -> dict[str, Any] | str:
        """The order to the controller, or why there is none. Raises InputError."""
        config = self._context.config
        repository, digest = parse_repository(push.repository), Digest.parse(push.digest)
        try:
            host = normalise_name(push.host)
        except InputError:
            text = "the notification does not say which registry it is from"
            raise InputError(422, "NAME_INVALID", text) from None
        upstream = config.upstream_for(host)
        if upstream is None:
            known = ", ".join(list(config.upstreams)[:8])
            text = f"there is no upstream {host}; upstreams are {known}: make it an alias of one"
            raise InputError(422, "NAME_UNKNOWN", text)
        name = f"{upstream}/{repository}"
        if not push.tag or ":" in push.tag:
            return f"{name}@{digest} has no tag: it is part of an index, or nobody's"
        tag = parse_reference(push.tag)
        if not any(fnmatchcase(name, each) for each in config.webhooks.repositories):
            return f"{name} is none of webhooks.repositories"
        ttl = config.webhooks.ttl
        return {
            "what": f"{name}:{tag}",
            "digest": str(digest),
            "to": config.webhooks.targets,
            "platform": config.webhooks.platform,
            "ttl_s": None if ttl is None else ttl.total_seconds(),
        }
