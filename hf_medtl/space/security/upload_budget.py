"""The bodies of requests, as they come: how long they may be and take, and how much of all of them is kept at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import Message, Receive

SLOWEST = 600.0  # seconds
FULL = "Too many files are being looked at. Try again in a few minutes."


class Refused(Exception):
    """What is said to a client instead of an answer, with the status of it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Room:
    """For what has come of bodies that are not whole yet: many clients may send large ones slowly, to fill it.

    Args:
        most: bytes of all of them.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    @contextlib.asynccontextmanager
    async def counted(self, receive: Receive, limit: int) -> AsyncIterator[Receive]:
        """A `receive` that raises Refused when a body has more bytes than its limit, whatever its header says, or finds
        no room. What takes longer than SLOWEST, until the end of the `with`, is refused, too.
        """
        total = 0

        async def received() -> Message:
            nonlocal total
            message = await receive()
            size = len(message.get("body", b""))
            total, self.taken = total + size, self.taken + size
            if total > limit:
                raise Refused(413, too_long(limit))
            if self.taken > self.most:
                raise Refused(503, FULL)
            return message

        try:
            async with asyncio.timeout(SLOWEST):
                yield received
        except TimeoutError as error:
            raise Refused(408, "That took too long. Send fewer or smaller files.") from error
        finally:
            self.taken -= total


def too_long(limit: int) -> str:
    """What is said of a body of more than `limit` bytes."""
    return f"More than {limit // 1_000_000} MB were sent at once. Send fewer or smaller files."
