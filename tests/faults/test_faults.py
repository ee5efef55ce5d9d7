"""Fault campaign: disturbed work, repeated, is the same work or one plain refusal, and harms nothing that was finished.

`make test` makes a few trials, `make faults` as many as HF_MEDTL_FAULTS says, drawn from HF_MEDTL_FAULTS_SEED.
"""

import io
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import HfApi
from PIL import Image
from safetensors.numpy import load, load_file

from hf_medtl.common.files import is_partial
from hf_medtl.runs.verify import verify
from tests.faults.conftest import Workshop
from tests.faults.stages import STAGES, Stage
from tests.support.process_pool import ForkedProcess

# Faults that send a signal to a process, or to all of them.
SIGNALS = {"kill": "SIGKILL", "terminate": "SIGTERM", "pause": "SIGSTOP", "lost_process": "SIGSTOP"}
SIGNALS |= dict.fromkeys(("clock_set_back", "other_data", "number"), "SIGKILL")
ROUNDING = 2e-6
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


def check_close(name: str, own: bytes, other: bytes) -> None:
    """Assert that the numbers of a table or of weights differ at most by rounding, and all else is equal.

    That is 1e-7 after the steps of a training here (2e-16 if it computes with 64 bits), which move weights by 1e-4.
    """
    if name.endswith(".safetensors"):
        tensors, wanted = load(own), load(other)
        assert tensors.keys() == wanted.keys()
        for key, values in wanted.items():
            assert tensors[key] == pytest.approx(values, abs=ROUNDING, rel=0), f"{key} of {name} differs"
        return
    table, expected = pd.read_csv(io.BytesIO(own)), pd.read_csv(io.BytesIO(other))
    columns = expected.select_dtypes("number").columns
    assert table[columns].to_numpy() == pytest.approx(expected[columns].to_numpy(), abs=ROUNDING, nan_ok=True)
    texts = ["path", *columns] if "path" in table else columns  # paths are of the trial
    assert table.drop(columns=texts).equals(expected.drop(columns=texts))


def check_same(workshop: Workshop, reference: Workshop, stage: Stage, name: str, rounded: bool) -> None:
    """Assert that a stage made the files of the undisturbed one; numbers of `predict`, or all, may be rounded."""
    made, wanted = workshop.made(stage), reference.made(stage)
    assert made.keys() == wanted.keys()
    for file, content in wanted.items():
        if rounded or file.endswith("table.csv"):  # batches of other sizes have other sums in the last bits
            check_close(file, made[file], content)
        else:
            assert made[file] == content, f"{file} differs"
    if "{hub}" in stage.words:
        kind = "dataset" if name == "data_push" else "model"
        own, other = (HfApi().list_repo_files(w.values["hub"], repo_type=kind) for w in (workshop, reference))
        assert sorted(own) == sorted(other)


def disturb(workshop: Workshop, reference: Workshop, stage: Stage, fault: str, moment: float) -> list[int]:
    """Run the command of a stage with a fault at a moment, as a fraction of its duration; return the exit codes.

    If it ends before that moment, its duration is corrected.
    """
    delay, code, more = moment * reference.seconds, "", ""
    if fault == "clock":
        code = CLOCK.format(delay=delay)
    elif fault == "file_limit":
        code = LIMIT.format(name="RLIMIT_FSIZE", value=int(200_000 * moment**2) + 100)
    elif fault == "memory":
        code = MEMORY.format(value=int(400e6 * moment))
    elif fault == "full_disk":
        workshop.mount_small_disk(int(300_000 * moment) + 4096)
    elif fault == "read_only_data":
        workshop.forbid_writing(workshop.data)
    elif fault == "lost_process":
        more = "--ddp_timeout 10"
    processes = workshop.start(stage, "disturbed", more, code)
    if fault in {"changed_data", "read_only", *SIGNALS}:
        begin = time.monotonic()
        while any(process.poll() is None for process in processes):
            # A process that stands still before the others have found it keeps them for good (TCPStore has no timeout).
            if time.monotonic() > begin + delay and (fault != "lost_process" or (workshop.out / "run").exists()):
                break
            time.sleep(0.01)
        if all(process.poll() is not None for process in processes):
            reference.seconds = min(reference.seconds, time.monotonic() - begin)
            return [process.wait() for process in processes]
    if fault == "changed_data":
        change_image(workshop)
    elif fault == "read_only":
        workshop.forbid_writing(workshop.out, workshop.runs)
    elif fault in SIGNALS:
        victim = processes[int(moment * 1000) % len(processes)]
        victims = [each for each in (processes if fault == "number" else [victim]) if each.poll() is None]
        for each in victims:
            each.send_signal(signal.Signals[SIGNALS[fault]])
        if victims and SIGNALS[fault] == "SIGSTOP":
            if fault == "lost_process":
                wait(workshop, [process for process in processes if process is not victim], "disturbed")
            else:
                time.sleep(2)
            victim.send_signal(signal.SIGCONT)
    return wait(workshop, processes, "disturbed")


def wait(workshop: Workshop, processes: list[ForkedProcess], name: str) -> list[int]:
    """Return the exit codes of processes that must end within two minutes."""
    try:
        return [process.wait(120) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGABRT)  # faulthandler tells where it hangs
                process.send_signal(signal.SIGCONT)
        time.sleep(2)
        pytest.fail(f"The work hangs. {workshop.read(name)[-6000:]}")


def change_image(workshop: Workshop) -> None:
    """Replace the first image of the data."""
    Image.new("L", (64, 64), 77).save(min(path for path in workshop.data.rglob("*.png") if path.parent.name != "masks"))


def repeat(workshop: Workshop, stage: Stage, name: str, processes: int | None = None) -> list[ForkedProcess]:
    """Start the command of a stage again, to go on if it had begun."""
    return workshop.start(stage, name, stage.again if any(workshop.out.glob("run/*")) else "", processes=processes)


def wait_plainly(workshop: Workshop, processes: list[ForkedProcess], name: str) -> list[int]:
    """Return the exit codes of repeated processes, which must have ended well, by a kill, or with a plain error."""
    codes, said = wait(workshop, processes, name), workshop.read(name)
    assert {*codes} <= {0, -signal.SIGKILL} or is_plain(said), said[-3000:]
    return codes


def go_on_differently(workshop: Workshop, stage: Stage, fault: str, delay: float) -> list[int]:
    """Do what comes between a kill and the right repetition; return the exit codes of a command, if there was one."""
    if fault == "clock_set_back":  # all files are dated a day later than what comes
        for folder in (workshop.out, workshop.runs, workshop.folder / "cache"):
            for path in filter(Path.is_file, folder.rglob("*")):
                os.utime(path, (path.stat().st_atime + 86400, path.stat().st_mtime + 86400))
    elif fault == "other_data":
        change_image(workshop)
        begun = any(workshop.out.glob("run/**/splits.csv"))
        codes = wait_plainly(workshop, repeat(workshop, stage, "mixed"), "mixed")
        assert any(codes) or not begun, "a run went on with other data"
        return codes
    elif fault == "number":  # of processes: two, one, two
        alone = repeat(workshop, stage, "alone", 1)
        time.sleep(delay)
        if alone[0].poll() is None:
            alone[0].kill()
        return wait_plainly(workshop, alone, "alone")
    return [1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_disturbed_work_is_repeated_or_refused(trial, make_workshop, undisturbed, record_property):
    name, fault, number = trial.split("-")
    stage, moment = STAGES[name], float(number)
    record_property("stage", name)
    record_property("fault", fault)
    reference = undisturbed(name)
    for _ in range(3):
        workshop, seconds = make_workshop(stage), reference.seconds
        before, original = (
            {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (workshop.runs, workshop.data)
        )
        codes = disturb(workshop, reference, stage, fault, moment)
        if any(codes) or reference.seconds == seconds:
            break
    check_finished(workshop, before)
    said, finished = workshop.read("disturbed"), not any(codes)
    # A process that is told to end may do so without a word, as by default, where nothing has to be kept.
    assert {*codes} <= {0, -signal.SIGKILL, -signal.SIGTERM} or is_plain(said), said[-3000:]
    assert finished or fault != "read_only_data", said[-3000:]
    workshop.make_room()
    workshop.allow_writing()
    if not finished:
        codes = go_on_differently(workshop, stage, fault, moment * reference.seconds)
        check_finished(workshop, before)
    changed = fault in {"changed_data", "other_data"} and not any(codes)
    if any(codes):
        for file, content in original.items():
            if (workshop.data / file).read_bytes() != content:
                (workshop.data / file).write_bytes(content)
        codes = wait(workshop, repeat(workshop, stage, "repeated"), "repeated")
        said = workshop.read("repeated")
        check_finished(workshop, before)
    if any(codes):  # without the fault, only what lies there already may be refused
        assert is_plain(said), said[-3000:]
        assert re.search("not empty|a finished run|already exists", said), said[-3000:]
        outcome = "refused: " + re.sub(r"\S*/\S*", "PATH", said.strip().splitlines()[-1])[:110]
    elif changed:
        outcome = "finished with the old image or the new one"
    else:
        check_same(workshop, reference, stage, name, rounded=fault == "number")
        outcome = "finished before, the same" if finished else "the same"
        assert find_problems(workshop) == []
    left = [path for path in workshop.folder.rglob("*") if is_partial(path)]
    record_property("outcome", outcome + (f", {len(left)} partial files left" if left else ""))
