"""Upload budget: limits on the size, the duration and the total memory of request bodies while they arrive."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import Message, Receive

MAX_SECONDS = 600.0
BUSY = "The server is busy with other files. Try again in a few minutes."


class HTTPRefusal(Exception):
    """A refused request: the HTTP status, and the message for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UploadBudget:
    """Bytes shared by all bodies that are still arriving, so that many slow clients cannot fill memory or disk.

    Args:
        max_bytes: bytes of all bodies together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used_bytes = max_bytes, 0

    @contextlib.asynccontextmanager
    async def limit(self, receive: Receive, max_bytes: int) -> AsyncIterator[Receive]:
        """Wrap `receive` so that a body over its limit or the budget raises HTTPRefusal, whatever its header says.

        A body that takes longer than `MAX_SECONDS`, until the end of the `with`, is refused, too.

        Args:
            receive: ASGI callable of the request.
            max_bytes: bytes of this body.
        """
        total = 0

        async def counted_receive() -> Message:
            nonlocal total
            message = await receive()
            size = len(message.get("body", b""))
            total, self.used_bytes = total + size, self.used_bytes + size
            if total > max_bytes:
                raise HTTPRefusal(413, body_too_large(max_bytes))
            if self.used_bytes > self.max_bytes:
                raise HTTPRefusal(503, BUSY)
            return message

        try:
            async with asyncio.timeout(MAX_SECONDS):
                yield counted_receive
        except TimeoutError as error:
            raise HTTPRefusal(408, "The upload took too long. Send fewer or smaller files.") from error
        finally:
            self.used_bytes -= total


def body_too_large(max_bytes: int) -> str:
    """Return the message about a body of more than `max_bytes`."""
    return f"The request is larger than {max_bytes // 1_000_000} MB. Send fewer or smaller files."
