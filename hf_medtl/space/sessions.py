"""The pictures that visitors are looking at: in memory alone, for a while, and no more than there is room for.

Gradio's own State keeps what it holds for an hour after the page was closed, and counts its time from when it was
last changed, not last used; and ten thousand visitors may have one.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from gradio import Request

from hf_medtl.space.uploads import Upload

KEPT = 15 * 60  # seconds that pictures in hand stay in memory when nothing is asked
MOST_BYTES = 1_000_000_000  # of the files in all hands
FORGOTTEN = (
    "Your pictures were forgotten: nothing was asked for a while, the connection was lost, or many others came. Give "
    "them again."
)


class Hand:
    """The pictures of one visitor.

    Attributes:
        uploads: the pictures, in the order in which they came; none when they are forgotten.
        forgotten: whether there were some.
    """

    def __init__(self, uploads: Sequence[Upload] = ()) -> None:
        self.uploads = tuple(uploads)
        self.forgotten = False
        self.used = time.monotonic()

    def __getitem__(self, number: int | None) -> Upload:
        """The one that is looked at."""
        return self.uploads[min(number or 0, len(self.uploads) - 1)]

    @property
    def bytes(self) -> int:
        """Of the files."""
        return sum(len(its.content) for its in self.uploads)

    def forget(self) -> None:
        """Let go of the pictures."""
        self.uploads, self.forgotten = (), True


class Hands:
    """All hands of a page. May be called by several threads.

    Args:
        kept: seconds after its last use until a hand is emptied.
        most: bytes of all files; if there are more, the hands that were not used for longest are emptied.
    """

    def __init__(self, kept: float = KEPT, most: int = MOST_BYTES) -> None:
        self.kept, self.most = kept, most
        self._held: OrderedDict[str, Hand] = OrderedDict()  # by session, least recently used first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def hold(self, session: str | None, hand: Hand) -> None:
        """A visitor has other pictures now than before."""
        self.forget(session)
        with self._lock:
            self._held[session or str(id(hand))] = hand
            held = sum(its.bytes for its in self._held.values())
            while held > self.most and len(self._held) > 1:
                _, oldest = self._held.popitem(last=False)
                held -= oldest.bytes
                oldest.forget()
            self._wait()

    def use(self, session: str | None) -> None:
        """A visitor asked something: the time starts anew."""
        with self._lock:
            if hand := self._held.get(session or ""):
                hand.used = time.monotonic()
                self._held.move_to_end(session or "")

    def leave(self, request: Request) -> None:
        """A visitor closed the page."""
        self.forget(request.session_hash)

    def forget(self, session: str | None) -> None:
        """Empty the hand of a visitor."""
        with self._lock:
            if hand := self._held.pop(session or "", None):
                hand.forget()

    def _wait(self) -> None:
        """Look again when the hand that was not used for longest has had its time."""
        if self._timer is None and self._held:
            oldest = next(iter(self._held.values()))
            self._timer = threading.Timer(max(0, oldest.used + self.kept - time.monotonic()), self._tidy)
            self._timer.daemon = True
            self._timer.start()

    def _tidy(self) -> None:
        with self._lock:
            before = time.monotonic() - self.kept
            while self._held and next(iter(self._held.values())).used <= before:
                self._held.popitem(last=False)[1].forget()
            self._timer = None
            self._wait()
