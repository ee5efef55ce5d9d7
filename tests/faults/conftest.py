"""Number and seed of the trials of the fault campaign, its fixtures, and a table of its outcomes."""

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.stages import STAGES, Stage
from tests.support.commands import ROOT
from tests.support.process_pool import ForkedProcess, ProcessPool

TRIALS, SEED = int(os.environ.get("HF_MEDTL_FAULTS", "0")), int(os.environ.get("HF_MEDTL_FAULTS_SEED", "0"))
SHORT = (("training", "kill"), ("evaluate", "kill"), ("export", "file_limit"), ("predict", "kill"), ("push", "kill"))
# How often each fault is drawn, relative to the others.
FAULTS = {"kill": 10, "terminate": 2, "file_limit": 3, "full_disk": 2, "memory": 2, "changed_data": 2, "pause": 1}
FAULTS |= {"clock": 1}
COMMAND = """
import os, runpy
os.environ.update({environment!r})
{code}
{start}
"""
START = "from hf_medtl.cli.app import main; main()"
START_STUDY = f"runpy.run_path({str(ROOT / 'recipes' / 'study.py')!r}, run_name='__main__')"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Draw the stage, the fault and the moment of each trial."""
    if "trial" in metafunc.fixturenames:
        draw = random.Random(SEED)
        trials = [(*pair, draw.random()) for pair in SHORT]
        if TRIALS:
            names, weights = list(FAULTS), list(FAULTS.values())
            trials = [(draw.choice(list(STAGES)), *draw.choices(names, weights), draw.random()) for _ in range(TRIALS)]
        ids = [f"{number}-{stage}-{fault}-{moment:.3f}" for number, (stage, fault, moment) in enumerate(trials)]
        metafunc.parametrize("trial", trials, ids=ids)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many trials of each stage and fault ended how."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    found = [dict(report.user_properties) for report in reports if report.when == "call"]
    counts = Counter((p["stage"], p["fault"], p.get("outcome", "FAILED")) for p in found if "stage" in p)
    for (stage, fault, outcome), number in sorted(counts.items()):
        terminalreporter.write_line(f"{number:4d}  {stage:18s} {fault:13s} {outcome}")


@dataclass
class Workshop:
    """Folders of one trial: copies of the finished runs, a folder to write to, a cache, and the images."""

    folder: Path
    pool: ProcessPool
    values: dict[str, str]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def mount_small_disk(self, size: int) -> None:
        """Make the folder to write to a disk of `size` bytes."""
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "trial", self.out], check=False).returncode:
            pytest.skip("only root can mount a small disk")

    def make_room(self) -> None:
        """Enlarge the small disk, if there is one."""
        if self.out.is_mount():
            subprocess.run(["mount", "-o", "remount,size=1G", self.out], check=True)

    def start(self, stage: Stage, name: str, more: str = "", code: str = "") -> list[ForkedProcess]:
        """Start the command of a stage; its output goes to NAME.RANK in the trial's folder."""
        first, *words = f"{stage.words} {more}".format(**self.values).split()
        environment = {"HF_MEDTL_CACHE": str(self.folder / "cache")}
        start, words = (START_STUDY, words) if first == "study" else (START, [first, *words])
        text = COMMAND.format(environment=environment, code=code, start=start)
        log = str(self.folder / f"{name}.{{rank}}")
        pids = self.pool.ask(stdout=log, stderr=log, argv=["hf-medtl", *words], processes=stage.processes, code=text)
        return [ForkedProcess(self.pool, pid) for pid in pids]

    def read(self, name: str) -> str:
        """Return what the processes of a command printed."""
        return "\n".join(log.read_text("utf-8", "replace") for log in sorted(self.folder.glob(f"{name}.*")))

    def made(self, stage: Stage) -> dict[str, bytes]:
        """Return the files that must be the same after a repeated command."""
        places = [(self.runs if pattern.startswith("a/") else self.out, pattern) for pattern in stage.same]
        files = [(place, path) for place, pattern in places for path in sorted(place.glob(pattern))]
        return {path.relative_to(place).as_posix(): path.read_bytes() for place, path in files}


@pytest.fixture(scope="session")
def make_workshop(phantoms, tiny_checkpoint, finished_run, hub, process_pool, tmp_path_factory):
    """Return a function that makes the folders of a trial."""
    disks: list[Path] = []

    def make() -> Workshop:
        folder = tmp_path_factory.mktemp("trial")
        for name in "ab":
            shutil.copytree(finished_run, folder / "runs" / name)
        shutil.copytree(phantoms, folder / "data")
        (folder / "out").mkdir()
        disks.append(folder / "out")
        values = {"vit": tiny_checkpoint("vit"), "cnn": tiny_checkpoint("cnn"), "hub": f"ci/trial-{folder.name}"}
        values |= {name: folder / name for name in ("runs", "out", "data")}
        return Workshop(folder, process_pool, {key: str(value) for key, value in values.items()})

    yield make
    for disk in filter(Path.is_mount, disks):
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="session")
def undisturbed(make_workshop):
    """Return a function that runs a stage once without a fault: its folders and how many seconds it took."""
    done: dict[str, tuple[Workshop, float]] = {}

    def run(name: str) -> tuple[Workshop, float]:
        if name not in done:
            workshop, stage = make_workshop(), STAGES[name]
            begin = time.monotonic()
            codes = [process.wait(600) for process in workshop.start(stage, "undisturbed")]
            assert codes == [0] * stage.processes, workshop.read("undisturbed")[-3000:]
            assert all(list((workshop.runs if p.startswith("a/") else workshop.out).glob(p)) for p in stage.same)
            done[name] = workshop, time.monotonic() - begin
        return done[name]

    return run
