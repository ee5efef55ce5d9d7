"""Who makes a request, and how many each may make."""

import ipaddress
import math
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.types import Scope

MAX_CLIENTS = 10_000


class Clients:
    """A token bucket for each client: so many requests at once, and as many a minute. Of one thread.

    Args:
        a_minute: requests.
    """

    def __init__(self, a_minute: int) -> None:
        self.a_minute = a_minute
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, when

    def wait(self, client: str) -> int:
        """Take a token: 0, or after how many seconds there will be one."""
        now = time.monotonic()
        tokens, then = self.buckets.pop(client, (float(self.a_minute), now))
        tokens = min(self.a_minute, tokens + (now - then) * self.a_minute / 60)
        allowed = tokens >= 1
        self.buckets[client] = (tokens - allowed, now)
        if len(self.buckets) > MAX_CLIENTS:
            self.buckets.popitem(last=False)  # the one that was quiet longest
        return 0 if allowed else math.ceil((1 - tokens) * 60 / self.a_minute)


def client_of(scope: Scope, proxied: bool) -> str:
    """Address of a client; of IPv6 the network that one customer has.

    Behind a proxy it is the last public address in X-Forwarded-For: that the proxy wrote itself, and what is left of it
    the client may have made up. Private ones behind it are proxies of the same house.
    """
    peer = (scope.get("client") or ("",))[0]
    passed = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",") if proxied else []
    for text in [*reversed(passed), peer]:
        try:
            address = ipaddress.ip_address(text.strip())
        except ValueError:
            continue
        if address.is_global or text is peer:
            return str(ipaddress.ip_network(f"{address}/64", strict=False)) if address.version == 6 else str(address)
    return peer
