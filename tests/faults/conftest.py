"""Number and seed of the trials of the fault campaign, its fixtures, and a table of its outcomes.

HF_MEDTL_FAULTS may also name trials, as the campaign prints them: "training-kill-0.511 push-file_limit-0.938".
"""

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.stages import STAGES, Stage
from tests.support.commands import ROOT
from tests.support.process_pool import ForkedProcess, ProcessPool
from tests.support.tiny_models import save_segformer

TRIALS, SEED = os.environ.get("HF_MEDTL_FAULTS", "0"), int(os.environ.get("HF_MEDTL_FAULTS_SEED", "0"))
SHORT = "evaluate-kill-0.758 card-file_limit-0.1 predict-kill-0.511 predict-read_only-0.5 push-kill-0.511"
COMMAND = """
import faulthandler, os, runpy
faulthandler.enable()
os.environ.update({environment!r})
{code}
{start}
"""
START = "from hf_medtl.cli.app import main; main()"
START_STUDY = f"runpy.run_path({str(ROOT / 'recipes' / 'study.py')!r}, run_name='__main__')"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Draw the stage, the fault and the moment of each trial."""
    if "trial" not in metafunc.fixturenames:
        return
    draw = random.Random(SEED)

    def draw_trial() -> str:
        stage = draw.choice(list(STAGES))
        faults = STAGES[stage].faults
        return f"{stage}-{draw.choices([*faults], [*faults.values()])[0]}-{draw.random():.3f}"

    trials = [draw_trial() for _ in range(int(TRIALS))] if TRIALS.isdigit() else TRIALS.split()
    # With --dist loadgroup one process has all trials of a stage, which need its undisturbed run.
    groups = [(trial, pytest.mark.xdist_group(trial.partition("-")[0])) for trial in trials or SHORT.split()]
    metafunc.parametrize("trial", [pytest.param(trial, marks=group) for trial, group in groups])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many trials of each stage and fault ended how."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    found = [dict(report.user_properties) for report in reports if report.when == "call"]
    counts = Counter((p["stage"], p["fault"], p.get("outcome", "FAILED")) for p in found if "stage" in p)
    for (stage, fault, outcome), number in sorted(counts.items()):
        terminalreporter.write_line(f"{number:4d}  {stage:18s} {fault:13s} {outcome}")


def mount(*words: object) -> None:
    """Mount a file system, or skip the test if this user may not."""
    if subprocess.run(["mount", *map(str, words)], check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small or a read-only disk")


@dataclass
class Workshop:
    """Folders of one trial: copies of the finished runs, a folder to write to, a cache, and the images.

    Attributes:
        folder: of the trial, which has all others.
        pool: starts the processes.
        values: what replaces the words of a stage in braces.
        read_only: folders that are read-only for a while.
        seconds: how long the command took, at best.
    """

    folder: Path
    pool: ProcessPool
    values: dict[str, str]
    read_only: list[Path] = field(default_factory=list)
    seconds: float = 0.0

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
        mount("-t", "tmpfs", "-o", f"size={size}", "trial", self.out)

    def make_room(self) -> None:
        """Enlarge the small disk, if there is one."""
        if self.out.is_mount():
            mount("-o", "remount,size=1G", self.out)

    def forbid_writing(self, *folders: Path) -> None:
        """Make folders read-only, also for root; files that are open for writing stay so."""
        for folder in folders:
            mount("--bind", folder, folder)
            self.read_only.append(folder)
            mount("-o", "remount,bind,ro", folder)

    def allow_writing(self) -> None:
        """Undo `forbid_writing`."""
        while self.read_only:
            subprocess.run(["umount", "-l", self.read_only.pop()], check=True)

    def start(
        self, stage: Stage, name: str, more: str = "", code: str = "", processes: int | None = None
    ) -> list[ForkedProcess]:
        """Start the command of a stage; its output goes to NAME.RANK in the trial's folder."""
        first, *words = f"{stage.words} {more}".format(**self.values).split()
        environment = {"HF_MEDTL_CACHE": str(self.folder / "cache")}
        start, words = (START_STUDY, words) if first == "study" else (START, [first, *words])
        text = COMMAND.format(environment=environment, code=code, start=start)
        log = str(self.folder / f"{name}.{{rank}}")
        number = processes or stage.processes
        pids = self.pool.ask(stdout=log, stderr=log, argv=["hf-medtl", *words], processes=number, code=text)
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
def make_workshop(phantoms, chest_phantoms, tiny_checkpoint, finished_run, hub, process_pool, tmp_path_factory):
    """Return a function that makes the folders of a trial."""
    process_pool.run_code("")  # waits until it has imported all: moments are fractions of the work alone
    made: list[Workshop] = []
    segformer, steady = (tmp_path_factory.mktemp("models") / name for name in ("segformer", "steady"))
    save_segformer(segformer)
    shutil.copytree(tiny_checkpoint("vit"), steady)
    config = json.loads((steady / "config.json").read_text())
    (steady / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0}))

    def make(stage: Stage) -> Workshop:
        folder = tmp_path_factory.mktemp("trial")
        for name in "ab":
            shutil.copytree(finished_run, folder / "runs" / name)
        shutil.copytree(chest_phantoms if "chest-phantoms" in stage.words else phantoms, folder / "data")
        (folder / "out").mkdir()
        values = {
            "vit": tiny_checkpoint("vit"),
            "cnn": tiny_checkpoint("cnn"),
            "segformer": segformer,
            "steady": steady,
            "hub": f"ci/trial-{folder.name}",
        }
        values |= {name: folder / name for name in ("runs", "out", "data")}
        made.append(Workshop(folder, process_pool, {key: str(value) for key, value in values.items()}))
        return made[-1]

    yield make
    for workshop in made:
        workshop.allow_writing()
        if workshop.out.is_mount():
            subprocess.run(["umount", "-l", workshop.out], check=True)


@pytest.fixture(scope="session")
def undisturbed(make_workshop):
    """Return a function that runs a stage once without a fault and returns its folders."""
    done: dict[str, Workshop] = {}

    def run(name: str) -> Workshop:
        if name not in done:
            stage = STAGES[name]
            workshop, begin = make_workshop(stage), time.monotonic()
            codes = [process.wait(600) for process in workshop.start(stage, "undisturbed")]
            workshop.seconds = time.monotonic() - begin
            assert codes == [0] * stage.processes, workshop.read("undisturbed")[-3000:]
            assert all(list((workshop.runs if p.startswith("a/") else workshop.out).glob(p)) for p in stage.same)
            done[name] = workshop
        return done[name]

    return run
