"""Progress of long stages, and silence for libraries."""

import ast
import logging
import os
import sys
from pathlib import Path

import pytest

import hf_medtl
from hf_medtl.common.messages import show_messages
from hf_medtl.common.progress import track
from hf_medtl.common.quiet import quiet_libraries


class Terminal:
    """Stream that claims to be a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_stage_is_one_line_of_a_log_and_a_bar_on_a_terminal(caplog, capsys, monkeypatch):
    caplog.set_level(logging.INFO)
    assert list(track("abc", "Calibrating", 3)) == ["a", "b", "c"]
    assert list(track("a", "Computing features", 1, "batch")) == ["a"]
    list(track("ab", "Computing features", 2, "batch"))
    assert caplog.messages == ["Calibrating: 3 images", "Computing features: 1 batch", "Computing features: 2 batches"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    caplog.clear()
    assert list(track("abc", "Calibrating", 3)) == ["a", "b", "c"]
    assert "Calibrating: " in sys.stderr.text
    assert "3/3" in sys.stderr.text or "0/3" in sys.stderr.text
    assert caplog.messages == []
    monkeypatch.setenv("RANK", "1")  # another process shows none
    shown = sys.stderr.text
    list(track("abc", "Calibrating", 3))
    assert sys.stderr.text == shown


def test_noise_of_libraries_is_hidden_and_the_rest_is_shown(monkeypatch):
    from transformers.utils import logging as transformers_logging

    monkeypatch.setattr(transformers_logging, "_tqdm_hook", None)
    monkeypatch.setattr(os, "environ", {})
    quiet_libraries()
    quiet_libraries()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert transformers_logging.tqdm(range(3), desc="Loading weights").__class__.__name__ == "EmptyTqdm"
    for name, noise in {
        "transformers.trainer_utils": "mtime may not be reliable on this filesystem",
        "transformers.models.auto.image_processing_auto": "Requested torchvision backend is not available. Falling "
        "back to pil backend.",
    }.items():
        logger = logging.getLogger(name)
        for message, hidden in ((noise, True), ("something else", False)):
            record = logger.makeRecord(name, logging.WARNING, "file", 1, message, (), None)
            assert bool(logger.filter(record)) is not hidden
        assert len(logger.filters) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_messages_go_above_bars(monkeypatch, terminal):
    """A message in the middle of a bar's line could not be read."""
    stream = Terminal()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    logger = logging.getLogger("hf_medtl")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    show_messages(logging.INFO)
    for _ in track("ab", "Predicting", 2):
        logger.info("Note")
    lines = stream.text.replace("\r", "\n").split("\n")
    assert [line.strip() for line in lines].count("Note") == 2


def test_every_bar_says_when_it_is_hidden():
    """Without `disable`, tqdm draws in files of logs, too."""
    package = Path(hf_medtl.__file__).parent
    careless = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted({*package.rglob("*.py")} - {package / "common" / "progress.py"})
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm"
        if "disable" not in {keyword.arg for keyword in node.keywords}
    ]
    assert careless == []
