"""Pictures in the hands of a Space's visitors."""

from hf_medtl.space import sessions as hands
from hf_medtl.space.uploads import Upload
from tests.support.space_fixtures import until


def some(size: int) -> hands.Hand:
    return hands.Hand([Upload("a.png", bytes(size), 1, None, False)])


def test_hands_hold_so_many_bytes():
    table = hands.Hands(most=3_000_000)
    all_of_them = [some(900_000) for _ in range(200)]
    for number, hand in enumerate(all_of_them):
        table.hold(f"v{number}", hand)
        table.use("v0")  # the first is used all the time
    kept = [number for number, hand in enumerate(all_of_them) if hand.uploads]
    assert kept == [0, 198, 199]
    assert all(hand.forgotten != bool(hand.uploads) for hand in all_of_them)
    table.hold("large", large := some(5_000_000))
    assert large.uploads  # one who is alone may have more
    assert not any(hand.uploads for hand in all_of_them)


def test_hands_are_emptied_when_nothing_is_asked():
    table = hands.Hands(kept=2)
    idle, busy = some(1), some(1)
    table.hold("idle", idle)
    table.hold("busy", busy)
    until(lambda: table.use("busy") or table.use("nobody") or idle.forgotten)
    assert not busy.forgotten
    until(lambda: busy.forgotten)
    assert not table._held
    table.hold("again", again := some(0))  # the watch goes on
    until(lambda: again.forgotten)


def test_other_pictures_take_the_place_of_those_before():
    table = hands.Hands()
    first, second = some(1), some(1)
    table.hold("one", first)
    table.hold("one", second)
    assert first.forgotten
    assert second.uploads
    table.hold("one", hands.Hand())
    assert second.forgotten
