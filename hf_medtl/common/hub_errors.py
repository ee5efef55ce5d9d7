"""Errors of the Hub client: retries of temporary ones, and advice for the others."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError

from hf_medtl.errors import MedtlError

logger = logging.getLogger("hf_medtl")
T = TypeVar("T")
ADVICE = {
    401: "The Hub does not know the token: log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has no write access here: use one that has, or another owner.",
    404: "There is no such owner or repository, or the token has no access to it.",
    **dict.fromkeys((409, 412), "The repository changed during the upload: push again."),
}
# Conflicts are retried, too: no upload depends on what was there before.
RETRIED_STATUSES = (408, 409, 412, 429, 500, 502, 503, 504)
MAX_WAIT = 60.0  # seconds between two attempts


@contextmanager
def hub_errors(what: str, then: str) -> Iterator[None]:
    """Turn errors of the Hub client into one MedtlError: `what` failed, the reason, advice, and `then`."""
    try:
        yield
    except (OSError, HTTPError, RuntimeError, ValueError) as error:  # RuntimeError: raised while a file is uploaded
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        lines = dict.fromkeys(str(raised).strip().partition("\n")[0] for raised in (error, cause))
        reason = re.sub(r"\?[^\s']+", "", " ".join(lines))  # the query of a URL may hold a signature
        advice = ADVICE.get(_http_status(cause), "Check the network, the name and `hf auth login`, then try again.")
        raise MedtlError(f"{what} ({type(cause).__name__}: {reason}). {advice} {then}") from error


def _http_status(error: BaseException) -> int:
    """Return the HTTP status of an error; 0 if it has none."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    match = re.search(r"HTTP status \w+ error \((\d{3}) ", str(error))  # the wording of hf-xet
    return int(match[1]) if match else 0


def with_retries(call: Callable[[], T], attempts: int = 5, sleep: Callable[[float], Any] = time.sleep) -> T:
    """Return the result of `call`, repeating it after temporary failures of HTTP or of the connection.

    Waits as long as the server asks for (Retry-After), or 1, 2, 4, ... seconds.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except HTTPError as error:  # of the connection, too; HfHubHTTPError is a subclass
            response = error.response if isinstance(error, HfHubHTTPError) else None
            if attempt == attempts or (response is not None and response.status_code not in RETRIED_STATUSES):
                raise
            retry_after = response.headers.get("Retry-After", "") if response is not None else ""
            seconds = min(MAX_WAIT, float(retry_after) if retry_after.isdigit() else 2.0 ** (attempt - 1))
            logger.warning("The Hub did not answer (%s); retrying in %.0f s.", type(error).__name__, seconds)
            sleep(seconds)
    raise AssertionError("not reached")
