"""The OpenAPI 3.1 document of /api/v1, made of the table and the models that requests go through.

Source: OpenAPI Specification 3.1.0; its schemas are JSON Schema 2020-12, which pydantic writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from passel._version import __version__
from passel.gateway import apimodels

if TYPE_CHECKING:
    from passel.gateway.api import Operation

_REF = "#/components/schemas/{model}"
_JSON = "application/json"


def document(prefix: str, operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document."""
    operations = tuple(operations)
    models: dict[type[apimodels.Model], Any] = {apimodels.Problems: "serialization"}
    for each in operations:
        models[each.answer] = "serialization"
        if each.body is not None:
            models[each.body] = "validation"
    _, schemas = models_json_schema(list(models.items()), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(prefix + each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "passel",
            "version": __version__,
            "description": "Preheats, blobs and pins of a passel cluster.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    if operation.has_limit:
        schema = {"type": "integer", "minimum": 1, "maximum": 10_000}
        parameters.append({"name": "limit", "in": "query", "schema": schema})
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            str(operation.status): {
                "description": "As asked.",
                "content": {_JSON: {"schema": _ref(operation.answer)}},
            },
            "default": {
                "description": "What was wrong.",
                "content": {_JSON: {"schema": _ref(apimodels.Problems)}},
            },
        },
    }
    if operation.body is not None:
        content = {_JSON: {"schema": _ref(operation.body)}}
        found["requestBody"] = {"required": True, "content": content}
    if operation.method != "GET":
        found["security"] = [{"token": []}]
    return found


def _ref(model: type[apimodels.Model]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
