"""Session store of the Space."""

import pytest

from hf_medtl.space import sessions
from hf_medtl.space.uploads import Upload
from tests.support.space_fixtures import wait_until


def make_session(size: int) -> sessions.Session:
    return sessions.Session([Upload("a.png", bytes(size), 1, None, False)])


def test_store_expires_least_recently_used_beyond_max_bytes():
    table = sessions.SessionStore(max_bytes=3_000_000)
    visitors = [make_session(900_000) for _ in range(200)]
    for number, session in enumerate(visitors):
        table.put(f"v{number}", session)
        table.touch("v0")  # the first is used continuously
    kept = [number for number, session in enumerate(visitors) if session.uploads]
    assert kept == [0, 198, 199]
    assert all(session.expired != bool(session.uploads) for session in visitors)
    table.put("large", large := make_session(5_000_000))
    assert large.uploads  # a single session may exceed the limit
    assert not any(session.uploads for session in visitors)


@pytest.mark.slow
def test_idle_sessions_expire():
    table = sessions.SessionStore(max_age=2)
    idle, busy = make_session(1), make_session(1)
    table.put("idle", idle)
    table.put("busy", busy)
    wait_until(lambda: table.touch("busy") or table.touch("nobody") or idle.expired)
    assert not busy.expired
    wait_until(lambda: busy.expired)
    assert not table._sessions
    table.put("again", again := make_session(0))  # expiry still works
    wait_until(lambda: again.expired)


def test_put_replaces_session():
    table = sessions.SessionStore()
    first, second = make_session(1), make_session(1)
    table.put("one", first)
    table.put("one", second)
    assert first.expired
    assert second.uploads
    table.put("one", sessions.Session())
    assert second.expired
