"""Security headers of responses, with a Content-Security-Policy that allows a page's own inline scripts by hash."""

import base64
import hashlib
import re

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": ", ".join(
        f"{feature}=()"
        for feature in (
            *("camera", "microphone", "display-capture", "clipboard-read", "geolocation"),
            *("payment", "usb", "serial", "hid", "bluetooth"),
        )
    ),
    "Cross-Origin-Resource-Policy": "same-origin",  # no image of it on other sites
}
# Gradio allows every site to read its answers (CORS), and echoes request headers in answers to range requests.
REMOVED_PREFIXES = ("access-control-", "server", "content-security-policy")
POLICY = {
    "default-src": "'none'",
    "style-src": "'self' 'unsafe-inline'",  # Gradio's components set inline styles
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "base-uri": "'self'",
    "form-action": "'none'",
    "frame-ancestors": "'self' https://huggingface.co https://*.huggingface.co https://*.hf.space",
}
NOT_CACHED = ("text/html", "application/json", "text/event-stream")  # may hold user data; the rest is the same for all
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


class SecureSend:
    """ASGI `send` that adds the security headers. HTML is buffered until its inline scripts are hashed.

    Args:
        send: ASGI callable of the request.
        scripts: script sources that are always allowed.
    """

    def __init__(self, send: Send, scripts: str) -> None:
        self.send = send
        self.scripts = scripts
        self.started = self.failed = False
        self.page: tuple[Message, bytearray] | None = None

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if message["status"] == 500 and headers.get("content-type", "").startswith("text/plain"):
                self.failed = True  # the exception propagates to the middleware, which responds instead
                return
            self.started = True
            if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
                self.page = message, bytearray()
            else:
                await self.send(with_security_headers(message, self.scripts))
        elif self.failed:
            return
        elif self.page and message["type"] == "http.response.body":
            start, body = self.page
            body += message.get("body", b"")
            if not message.get("more_body"):
                self.page = None
                await self.send(with_security_headers(start, self.scripts, bytes(body)))
                await self.send({"type": "http.response.body", "body": bytes(body)})
        else:
            await self.send(message)

    async def send_instead(self, scope: Scope, response: Response) -> None:
        """Send another response if none was started; a started one stays truncated."""
        self.failed = False
        if not self.started:
            await response(scope, _receive_disconnect, self)


def with_security_headers(start: Message, scripts: str, page: bytes = b"") -> Message:
    """Return the start message of a response with the security headers.

    Args:
        start: ASGI message "http.response.start".
        scripts: script sources that are always allowed.
        page: HTML whose inline scripts are allowed by hash.
    """
    hashes = {base64.b64encode(hashlib.sha256(code).digest()).decode() for code in INLINE_SCRIPT.findall(page)}
    script_src = " ".join([scripts, *(f"'sha256-{digest}'" for digest in sorted(hashes))])
    policy = "; ".join(f"{name} {value}" for name, value in {"script-src": script_src, **POLICY}.items())
    added = {**HEADERS, "Content-Security-Policy": policy}
    if Headers(raw=start["headers"]).get("content-type", "").startswith(NOT_CACHED):
        added["Cache-Control"] = "no-store"
    replaced = {name.lower().encode() for name in added}
    kept = [
        (name, value)
        for name, value in start["headers"]
        if name.lower() not in replaced and not name.lower().decode().startswith(REMOVED_PREFIXES)
    ]
    return {**start, "headers": kept + [(name.lower().encode(), value.encode()) for name, value in added.items()]}


async def _receive_disconnect() -> Message:
    return {"type": "http.disconnect"}
