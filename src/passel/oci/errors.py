"""The error body of the specification.

Source: OCI distribution-spec v1.1, "Error Codes". A body never contains anything of a request's
headers: the sentences in it are passel's own.
"""

from __future__ import annotations

import json
from typing import Final

from passel.errors import InputError

CONTENT_TYPE: Final = "application/json"

#: The specification's codes, and the two of older Docker registries that clients know.
CODES: Final = frozenset(
    {
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "SIZE_INVALID",
        "UNAUTHORIZED",
        "DENIED",
        "UNSUPPORTED",
        "TOOMANYREQUESTS",
        "UNKNOWN",
        "UNAVAILABLE",
    }
)


def error_body(code: str, message: str, detail: object = None) -> bytes:
    """``{"errors": [{"code", "message", "detail"}]}`` in ASCII."""
    assert code in CODES, code
    error: dict[str, object] = {"code": code, "message": message}
    if detail is not None:
        error["detail"] = detail
    return json.dumps({"errors": [error]}, separators=(",", ":")).encode("ascii")


def input_error_body(error: InputError) -> bytes:
    """The body for a request that was wrong in itself."""
    return error_body(error.code, error.message)
