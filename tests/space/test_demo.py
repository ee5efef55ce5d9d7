"""Demonstration models of a Space without models; a fast script stands in for their training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from hf_medtl import MedtlError, __version__
from hf_medtl.space import demo
from tests.support.commands import ROOT

NAMES = ["drawn-brains-vit", "drawn-brains-cnn", "drawn-lungs"]
TRAINING = """#!{python}
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True)
with open("{calls}", "a") as calls:
    calls.write(folder.name + " " + str(os.getpid()) + "\\n")
(folder / "checkpoint-1").mkdir()
print("Epoch 1/1: validation loss 1", flush=True)
if folder.name in os.environ.get("FAILS", "").split():
    sys.exit("Killed by the test.")
time.sleep(float(os.environ.get("SECONDS", "0")))
(folder / "results.json").write_text("{{}}")
"""


@pytest.fixture
def model_folder(tmp_path, monkeypatch) -> Path:
    """Return the folder of the demonstration models; training is replaced by a script."""
    program = tmp_path / "training"
    program.write_text(TRAINING.format(python=sys.executable, calls=tmp_path / "calls"))
    program.chmod(0o755)
    monkeypatch.setattr(demo, "sys", SimpleNamespace(executable=str(program)))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hf_medtl" / "space" / __version__


def calls(tmp_path: Path) -> list[str]:
    return [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]


def complete_models(model_folder: Path) -> set[str]:
    """Return the names of the models; assert that each is complete."""
    names = {path.name for path in model_folder.iterdir() if path.name != ".lock"}
    assert names <= set(NAMES)
    assert all((model_folder / name / "results.json").is_file() for name in names)
    return names


def test_models_are_trained_once(model_folder, tmp_path, capfd, caplog):
    caplog.set_level("INFO", "hf_medtl")
    assert demo.demo_models() == [str(model_folder / name) for name in NAMES]
    assert sorted(calls(tmp_path)) == sorted(NAMES)
    assert complete_models(model_folder) == set(NAMES)
    assert not list(model_folder.glob("*/checkpoint-*"))
    assert caplog.messages == ["Training small models on synthetic images: 35 epochs"]  # there is no terminal
    demo.demo_models()
    assert len(calls(tmp_path)) == 3
    assert (len(caplog.messages), capfd.readouterr().err) == (1, "")


def test_failed_training_raises_and_next_start_resumes(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "drawn-brains-cnn")
    monkeypatch.setenv("SECONDS", "0.5")
    with pytest.raises(MedtlError, match=r"(?s)the demonstration model drawn-brains-cnn failed: .*Killed by the test"):
        demo.demo_models()
    kept = complete_models(model_folder)
    assert "drawn-brains-cnn" not in kept
    monkeypatch.setenv("FAILS", "")
    demo.demo_models()
    assert complete_models(model_folder) == set(NAMES)
    assert not set(calls(tmp_path)[-3 + len(kept) :]) & kept


def test_unwritable_folder_raises(model_folder, tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(MedtlError, match=r"Cannot write to .*HF_HOME to another folder"):
        demo.demo_models()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_interruption_leaves_no_partial_model(model_folder, tmp_path, sign):
    code = (
        "import signal, sys; from types import SimpleNamespace; from hf_medtl.space import demo; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # background processes ignore it
        "demo.sys = SimpleNamespace(executable=sys.argv[1]); demo.demo_models()"
    )
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "SECONDS": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "training")], env=os.environ | environment, stderr=subprocess.PIPE
    )
    while not (tmp_path / "calls").exists() or len(calls(tmp_path)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    start = time.monotonic()
    process.send_signal(sign)
    process.communicate(timeout=60)
    assert process.returncode
    assert time.monotonic() - start < 20  # not the 30 seconds of the training
    assert len(calls(tmp_path)) == 2  # the third was not started
    if sign == signal.SIGINT:
        assert complete_models(model_folder) == set()
    else:
        for line in (tmp_path / "calls").read_text().splitlines():
            os.kill(int(line.split()[1]), signal.SIGKILL)
    demo.demo_models()
    assert complete_models(model_folder) == set(NAMES)
