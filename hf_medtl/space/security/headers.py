"""What the guard puts on each response: what a browser may do with it, and whether it is sent at all."""

import base64
import hashlib
import re

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), display-capture=(), payment=(), usb=()",
}
# Gradio lets every site read its answers, and repeats a request's headers in that to a range.
REMOVED = ("access-control-", "server", "content-security-policy")
POLICY = {
    "default-src": "'none'",
    "style-src": "'self' 'unsafe-inline'",  # its components set styles of their own
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "base-uri": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'self' https://huggingface.co https://*.huggingface.co https://*.hf.space",
}
PRIVATE = ("text/html", "application/json", "text/event-stream")  # may tell of a visitor; the rest is the same for all
INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


class Answer:
    """A `send` that adds the headers; a page is held back until its inline scripts are hashed for the policy."""

    def __init__(self, send: Send, scripts: str) -> None:
        self.send = send
        self.scripts = scripts
        self.started = self.failed = False
        self.page: tuple[Message, bytearray] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if message["status"] == 500 and headers.get("content-type", "").startswith("text/plain"):
                self.failed = True  # what raised goes on to the guard, which answers in its place
                return
            self.started = True
            if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
                self.page = message, bytearray()
            else:
                await self.send(dressed(message, self.scripts))
        elif self.failed:
            return
        elif self.page and message["type"] == "http.response.body":
            start, body = self.page
            body += message.get("body", b"")
            if not message.get("more_body"):
                self.page = None
                await self.send(dressed(start, self.scripts, bytes(body)))
                await self.send({"type": "http.response.body", "body": bytes(body)})
        else:
            await self.send(message)

    async def instead(self, scope: Scope, response: Response) -> None:
        """Send a response if none was begun; else what was begun stays cut off."""
        self.failed = False
        if not self.started:
            await response(scope, nothing, self)


def dressed(start: Message, scripts: str, page: bytes = b"") -> Message:
    """The start of a response with the guard's headers; `page` is its HTML, whose inline scripts are allowed, too."""
    hashes = {base64.b64encode(hashlib.sha256(code).digest()).decode() for code in INLINE.findall(page)}
    script = " ".join([scripts, *(f"'sha256-{code}'" for code in sorted(hashes))])
    policy = "; ".join(f"{name} {value}" for name, value in {"script-src": script, **POLICY}.items())
    kept = [(name, value) for name, value in start["headers"] if not name.lower().decode().startswith(REMOVED)]
    added = {**HEADERS, "Content-Security-Policy": policy}
    if Headers(raw=start["headers"]).get("content-type", "").startswith(PRIVATE):
        added["Cache-Control"] = "no-store"
    names = {name.lower().encode() for name in added}
    headers = [(name, value) for name, value in kept if name.lower() not in names]
    return {**start, "headers": headers + [(name.lower().encode(), value.encode()) for name, value in added.items()]}


async def nothing() -> Message:
    return {"type": "http.disconnect"}
