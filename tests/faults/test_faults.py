"""Fault campaign: disturbed work, repeated, is the same work or one plain refusal, and harms nothing that was finished.

`make test` makes a few trials, `make faults` as many as HF_MEDTL_FAULTS says, drawn from HF_MEDTL_FAULTS_SEED.
"""

import io
import json
import os
import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import HfApi
from PIL import Image
from safetensors.numpy import load_file

from hf_medtl.common.files import is_partial
from hf_medtl.runs.verify import verify
from tests.faults.conftest import Workshop
from tests.faults.stages import STAGES, Stage

CLOCK = """
import threading, time
def turn_back(now=time.time):
    time.time = lambda: now() - 86400
threading.Timer({delay}, turn_back).start()
"""
LIMIT = "import resource\nresource.setrlimit(resource.{name}, ({value}, {value}))"
MEMORY = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {value},) * 2)
"""


def check_whole(path: Path) -> None:
    """Assert that a file is complete, by its format."""
    size = path.stat().st_size
    assert size or path.suffix in {".txt", ".log", ".lock"}, f"{path} is empty"
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".csv":
        assert len(pd.read_csv(path).columns)
        assert path.read_bytes().endswith(b"\n"), f"{path} is cut"
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix in {".png", ".jpg"}:
        Image.open(path).load()
    elif path.name == "README.md":
        assert path.read_text("utf-8").startswith("---"), f"{path} has no metadata"


def check_finished(workshop: Workshop, before: dict[str, bytes]) -> None:
    """Assert that every file of the finished runs is still there and whole, and the weights are unchanged."""
    for name, content in before.items():
        path = workshop.runs / name
        assert path.exists(), f"{name} of a finished run is lost"
        if path.suffix == ".safetensors":
            assert path.read_bytes() == content, f"{name} of a finished run has changed"
        else:
            check_whole(path)


def find_problems(workshop: Workshop) -> list[str]:
    """Return what `hf-medtl verify` says of the finished runs, and of a run that was made."""
    folders = [workshop.runs / "a", workshop.runs / "b", *(p for p in workshop.out.glob("run") if any(p.iterdir()))]
    return [problem for folder in folders for problem in verify(folder).problems]


def is_plain(text: str) -> bool:
    """Return whether a command ended with an error for people: no traceback."""
    return "Traceback" not in text and re.search(r"Error( in process \d+)?: |Interrupted", text) is not None


def check_same(workshop: Workshop, reference: Workshop, stage: Stage, name: str) -> None:
    """Assert that a stage made the files of the undisturbed one; numbers of tables may differ by rounding."""
    made, wanted = workshop.made(stage), reference.made(stage)
    assert made.keys() == wanted.keys()
    for file, content in wanted.items():
        if file.endswith("table.csv"):  # batches of other sizes have other sums in the last bits
            own, other = (pd.read_csv(io.BytesIO(x)) for x in (made[file], content))
            columns = other.select_dtypes("number").columns
            assert own[columns].to_numpy() == pytest.approx(other[columns].to_numpy(), abs=2e-6, nan_ok=True)
            assert own.drop(columns=["path", *columns]).equals(other.drop(columns=["path", *columns]))
        else:
            assert made[file] == content, f"{file} differs"
    if "{hub}" in stage.words:
        kind = "dataset" if name == "data_push" else "model"
        own, other = (HfApi().list_repo_files(w.values["hub"], repo_type=kind) for w in (workshop, reference))
        assert sorted(own) == sorted(other)


def disturb(workshop: Workshop, stage: Stage, fault: str, moment: float, seconds: float) -> list[int]:
    """Run the command of a stage with a fault at a moment, as a fraction of its duration; return the exit codes."""
    delay, code = moment * seconds, ""
    if fault == "clock":
        code = CLOCK.format(delay=delay)
    elif fault == "file_limit":
        code = LIMIT.format(name="RLIMIT_FSIZE", value=int(200_000 * moment**2) + 100)
    elif fault == "memory":
        code = MEMORY.format(value=int(400e6 * moment))
    elif fault == "full_disk":
        workshop.mount_small_disk(int(300_000 * moment) + 4096)
    processes = workshop.start(stage, "disturbed", code=code)
    if fault in {"kill", "terminate", "pause", "changed_data"}:
        time.sleep(delay)
        victim = processes[int(moment * 1000) % len(processes)]
        if fault == "changed_data":
            file = next(iter(sorted(workshop.data.rglob("*.png"))))
            Image.new("L", (64, 64), 77).save(file)
        elif victim.poll() is None:
            victim.send_signal({"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "pause": signal.SIGSTOP}[fault])
            if fault == "pause":
                time.sleep(1)
                victim.send_signal(signal.SIGCONT)
    return [process.wait(120) for process in processes]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_disturbed_work_is_repeated_or_refused(trial, make_workshop, undisturbed, record_property):
    name, fault, moment = trial
    stage = STAGES[name]
    record_property("stage", name)
    record_property("fault", fault)
    reference, seconds = undisturbed(name)
    workshop = make_workshop()
    before = {p.relative_to(workshop.runs).as_posix(): p.read_bytes() for p in workshop.runs.rglob("*") if p.is_file()}
    original = {path: path.read_bytes() for path in workshop.data.rglob("*") if path.is_file()}
    codes = disturb(workshop, stage, fault, moment, seconds)
    check_finished(workshop, before)
    said = workshop.read("disturbed")
    # A process that is told to end may do so without a word, as by default, where nothing has to be kept.
    assert {*codes} <= {0, -signal.SIGKILL, -signal.SIGTERM} or is_plain(said), said[-3000:]
    workshop.make_room()
    for path, content in original.items():
        path.write_bytes(content)
    finished = not any(codes)
    if not finished:
        begun = list((workshop.out / "run").glob("*"))
        codes = [process.wait(300) for process in workshop.start(stage, "repeated", stage.again if begun else "")]
        said = workshop.read("repeated")
        check_finished(workshop, before)
    if any(codes):
        assert is_plain(said), said[-3000:]
        outcome = "refused: " + re.sub(r"\S*/\S*", "PATH", said.strip().splitlines()[-1])[:110]
    elif finished and fault == "changed_data":
        outcome = "finished with the old image or the new one"
    else:
        check_same(workshop, reference, stage, name)
        outcome = "finished before, the same" if finished else "the same"
        assert find_problems(workshop) == []
    left = [path for path in workshop.folder.rglob("*") if is_partial(path)]
    record_property("outcome", outcome + (f", {len(left)} partial files left" if left else ""))
