"""Silence for image libraries, in every version that pyproject.toml allows."""

import sys
from types import SimpleNamespace

import pytest

from hf_medtl.data.quiet import QuietReaders


@pytest.mark.parametrize("version", [4, 5])
def test_opencv_of_both_interfaces_is_silent_within_and_restored_after(version, monkeypatch):
    levels = [3]

    def set_log_level(level: int) -> int:
        levels.append(level)
        return levels[-2]

    logging = SimpleNamespace(setLogLevel=set_log_level)
    fake = SimpleNamespace(setLogLevel=set_log_level) if version == 4 else SimpleNamespace()
    fake.utils = SimpleNamespace() if version == 4 else SimpleNamespace(logging=logging)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    quiet = QuietReaders()
    with quiet, quiet:
        assert levels == [3, 0]
    assert levels == [3, 0, 3]
