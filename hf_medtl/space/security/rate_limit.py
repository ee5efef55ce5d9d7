"""Rate limit by client address: a token bucket for each client."""

import ipaddress
import math
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.types import Scope

MAX_CLIENTS = 10_000


class RateLimiter:
    """Token bucket for each client: `per_minute` requests at once, refilled within a minute. Not thread-safe.

    Args:
        per_minute: requests of one client.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, time of last request

    def wait(self, client: str) -> int:
        """Take a token. Return 0, or the seconds until one is available."""
        now = time.monotonic()
        tokens, last = self.buckets.pop(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - last) * self.per_minute / 60)
        allowed = tokens >= 1
        self.buckets[client] = (tokens - allowed, now)
        if len(self.buckets) > MAX_CLIENTS:
            self.buckets.popitem(last=False)  # the client idle for longest
        return 0 if allowed else math.ceil((1 - tokens) * 60 / self.per_minute)


def client_address(scope: Scope, behind_proxy: bool) -> str:
    """Return a client's IPv4 address, or its IPv6 /64 network, which one customer has.

    Behind a proxy, this is the last public address in X-Forwarded-For: the proxy wrote that one, while the client may
    have made up those to the left of it. Private addresses to the right belong to further proxies of the same site.

    Args:
        scope: ASGI scope of the request.
        behind_proxy: trust X-Forwarded-For.
    """
    peer = (scope.get("client") or ("",))[0]
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",") if behind_proxy else []
    for text in [*reversed(forwarded), peer]:
        try:
            address = ipaddress.ip_address(text.strip())
        except ValueError:
            continue
        if address.is_global or text is peer:
            return str(ipaddress.ip_network(f"{address}/64", strict=False)) if address.version == 6 else str(address)
    return peer
