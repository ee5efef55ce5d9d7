"""JSON bodies of requests: what they may name, and how they reach the app once they were read."""

import json
from collections.abc import Iterator
from pathlib import Path

from starlette.types import Message, Receive

from hf_medtl.space.security.upload_store import is_inside

MAX_SESSION = 64  # characters of a session's name: the page uses 11, gradio_client 36


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first delivers a body that was already read."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed() -> Message:
        return next(messages, None) or await receive()

    return replayed


def sanitize_json(body: bytes, uploads: Path) -> bytes | None:
    """Return a JSON body without original file names, or None if it must be refused.

    It is refused if it is no JSON, if a "path" in it is not a file below `uploads`, or if a session's name is long.
    Gradio would fetch a path that is a URL, `gr.Image` writes a copy under the file's original name, and as of 6.31 a
    session's name stays in memory forever if its answer is never read.

    Args:
        body: body of the request; an empty one is returned as it is.
        uploads: folder of stored uploads.
    """
    if not body:
        return body
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if len(str(value.get("session_hash"))) > MAX_SESSION:
                return None
            path = value.get("path")
            if path and not (isinstance(path, str) and is_inside(path, uploads)):
                return None
            if path and value.get("orig_name"):
                value["orig_name"] = Path(path).name
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return json.dumps(document).encode()


def count_json_values(body: bytes) -> int:
    """Return an upper bound of the values in a JSON body, including JSON inside its strings, without parsing it."""
    return sum(map(body.count, (b",", b"[", b"{", b"\\u")))
