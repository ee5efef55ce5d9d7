"""Origin of requests: host names that are answered (against DNS rebinding), and pages of other sites (CSRF)."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from hf_medtl.space.security.upload_budget import HTTPRefusal

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


def check_host(headers: Headers, hosts: Collection[str] | None) -> None:
    """Check that a request asks for this server: a name of another site may point to this address.

    Args:
        headers: of the request.
        hosts: names that are answered, in lower case; None for all.

    Raises:
        HTTPRefusal: it asks for another name.
    """
    if hosts is None:
        return
    host = headers.get("host", "").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name not in hosts:
        raise HTTPRefusal(
            421, f"Only requests for {', '.join(sorted(hosts))} are answered here. Start the page with --allowed_host."
        )


def check_same_site(headers: Headers) -> None:
    """Check that a browser sends a request for this page itself, not for a page of another site.

    Browsers say so in Sec-Fetch-Site; older ones name the page in Origin. Programs send neither.

    Args:
        headers: of the request; X-Forwarded-Host counts if present.

    Raises:
        HTTPRefusal: a page of another site sends it.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = {headers.get("host"), headers.get("x-forwarded-host")}
    if site not in {"same-origin", "none"} if site else origin is not None and urlsplit(origin).netloc not in own:
        raise HTTPRefusal(403, "Pages of other sites can't use this one. Open its own address.")
