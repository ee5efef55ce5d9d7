"""What is in a header stays there: a patient's name is found in no output, log, cache or upload."""

import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.support.commands import COMMAND, flags, script

NAME, NUMBER = "Mustermann", "PID-4711-0815"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 DICOM files that name their patient, one of them damaged, and one whose window quotes the name."""
    place = tmp_path_factory.mktemp("ward")
    rng = np.random.default_rng(0)
    for i in range(40):
        header = dcmread(get_testdata_file("MR_small.dcm"))
        header.PatientName, header.PatientID = f"{NAME}^Erika", NUMBER
        header.OtherPatientIDs = header.PatientComments = header.StudyDescription = f"{NAME} {NUMBER}"
        coarse = rng.integers(0, 1500, (8, 8)) + 400 * (i % 2)
        header.PixelData = np.kron(coarse, np.ones((8, 8))).astype(np.int16).tobytes()
        file = place / ("sick" if i % 2 else "well") / f"{i}.dcm"
        file.parent.mkdir(exist_ok=True)
        header.save_as(file)
    damaged = (place / "well" / "38.dcm").read_bytes()
    (place / "well" / "38.dcm").write_bytes(damaged[: len(damaged) // 2])
    return place


def traces(*places: Path) -> list[str]:
    """Files below the places whose path or bytes hold the name or number."""
    words = [
        word.encode(code) for word in (NAME, NAME.upper(), NAME.lower(), NUMBER) for code in ("utf-8", "utf-16-le")
    ]
    return [
        str(file)
        for place in places
        for file in place.rglob("*")
        if file.is_file() and any(word in str(file).encode() or word in file.read_bytes() for word in words)
    ]


def test_a_name_in_a_header_is_found_in_no_output(folder, tiny, tmp_path):
    assert len(traces(folder)) == 40
    shown = []
    cache = {"HF_MEDTL_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path)}
    common = ["imagefolder", "--data_dir", folder]
    for command in (
        ["audit", *common, "--out", tmp_path / "audit", "--other", f"imagefolder={folder}"],
        ["preview", *common, "--out", tmp_path / "grid.png"],
        [
            "push",
            "imagefolder",
            "ci/ward",
            "--data_dir",
            folder,
            "--rights_held",
            "--dry_run",
            "--out",
            tmp_path / "push",
        ],
    ):
        done = script(COMMAND, "data", *command, **cache)
        assert done.returncode == 0, done.stderr
        shown.append(done)
    values = {"dataset": "imagefolder", "data_dir": folder, "model_name_or_path": tiny("vit"), "num_train_epochs": 1,
              "output_dir": tmp_path / "run", "use_cpu": True, "log_level": "debug"}  # fmt: skip
    shown.append(
        script(sys.executable, "-X", "dev", "-W", "default", "recipes/vit_brain.py", *flags(**values), **cache)
    )
    assert (tmp_path / "run" / "results.json").exists(), shown[-1].stderr[-3000:]
    assert any("38.dcm" in done.stderr for done in shown)  # the damaged one is named, without what is in it
    for i, done in enumerate(shown):
        (tmp_path / f"{i}.log").write_text(done.stdout + done.stderr)
    assert {"run", "cache", "audit", "push", "grid.png"} <= {path.name for path in tmp_path.iterdir()}
    assert traces(tmp_path) == []
