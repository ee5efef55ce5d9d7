"""Session store: the images of each visitor, in memory only, for a limited time and up to a total size.

Gradio's own State keeps its values for an hour after the page was closed, and counts time from the last change instead
of the last use; and ten thousand visitors may have one.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from gradio import Request

from hf_medtl.space.uploads import Upload

SESSION_SECONDS = 15 * 60  # from the last request until a visitor's images are removed from memory
MAX_BYTES = 1_000_000_000  # of the files of all sessions
EXPIRED = (
    "Your images were removed: nothing was requested for a while, the connection was lost, or memory was needed for "
    "other visitors. Upload them again."
)


class Session:
    """The images of one visitor.

    Attributes:
        uploads: images in order of arrival; empty once expired.
        expired: True if there were images that have been removed.
        last_used: monotonic time of the last request.
    """

    def __init__(self, uploads: Sequence[Upload] = ()) -> None:
        self.uploads = tuple(uploads)
        self.expired = False
        self.last_used = time.monotonic()

    def __getitem__(self, index: int | None) -> Upload:
        """Return the selected image."""
        return self.uploads[min(index or 0, len(self.uploads) - 1)]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(len(upload.content) for upload in self.uploads)

    def expire(self) -> None:
        """Remove the images from memory."""
        self.uploads, self.expired = (), True


class SessionStore:
    """The sessions of a page. Thread-safe.

    Args:
        max_age: seconds from its last use until a session expires.
        max_bytes: bytes of all files; beyond that, the least recently used sessions expire.
    """

    def __init__(self, max_age: float = SESSION_SECONDS, max_bytes: int = MAX_BYTES) -> None:
        self.max_age, self.max_bytes = max_age, max_bytes
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # by Gradio's session hash, least recently used first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def put(self, key: str | None, session: Session) -> None:
        """Replace a visitor's session."""
        self.remove(key)
        with self._lock:
            self._sessions[key or str(id(session))] = session
            total = sum(session.n_bytes for session in self._sessions.values())
            while total > self.max_bytes and len(self._sessions) > 1:
                _, oldest = self._sessions.popitem(last=False)
                total -= oldest.n_bytes
                oldest.expire()
            self._start_timer()

    def touch(self, key: str | None) -> None:
        """Restart the time of a visitor's session, at each request."""
        with self._lock:
            if session := self._sessions.get(key or ""):
                session.last_used = time.monotonic()
                self._sessions.move_to_end(key or "")

    def remove(self, key: str | None) -> None:
        """Expire the session of a visitor."""
        with self._lock:
            if session := self._sessions.pop(key or "", None):
                session.expire()

    def on_page_closed(self, request: Request) -> None:
        """Expire the session of a visitor who closed the page."""
        self.remove(request.session_hash)

    def _start_timer(self) -> None:
        """Schedule the expiry of the least recently used session."""
        if self._timer is None and self._sessions:
            oldest = next(iter(self._sessions.values()))
            delay = max(0, oldest.last_used + self.max_age - time.monotonic())
            self._timer = threading.Timer(delay, self._expire_idle)
            self._timer.daemon = True
            self._timer.start()

    def _expire_idle(self) -> None:
        with self._lock:
            limit = time.monotonic() - self.max_age
            while self._sessions and next(iter(self._sessions.values())).last_used <= limit:
                self._sessions.popitem(last=False)[1].expire()
            self._timer = None
            self._start_timer()
