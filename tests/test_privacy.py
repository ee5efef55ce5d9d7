"""Patient data in DICOM headers: neither output, logs, cache nor uploads contain the name or number."""

import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.support.commands import COMMAND, flags, run_command

NAME, NUMBER = "Mustermann", "PID-4711-0815"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 DICOM files that name their patient, one of them damaged."""
    root = tmp_path_factory.mktemp("ward")
    rng = np.random.default_rng(0)
    for i in range(40):
        header = dcmread(get_testdata_file("MR_small.dcm"))
        header.PatientName, header.PatientID = f"{NAME}^Erika", NUMBER
        header.OtherPatientIDs = header.PatientComments = header.StudyDescription = f"{NAME} {NUMBER}"
        coarse = rng.integers(0, 1500, (8, 8)) + 400 * (i % 2)
        header.PixelData = np.kron(coarse, np.ones((8, 8))).astype(np.int16).tobytes()
        file = root / ("sick" if i % 2 else "well") / f"{i}.dcm"
        file.parent.mkdir(exist_ok=True)
        header.save_as(file)
    damaged = (root / "well" / "38.dcm").read_bytes()
    (root / "well" / "38.dcm").write_bytes(damaged[: len(damaged) // 2])
    return root


def files_with_patient_data(*folders: Path) -> list[str]:
    """Return the files below the folders whose path or bytes contain the name or number."""
    secrets = [
        secret.encode(code) for secret in (NAME, NAME.upper(), NAME.lower(), NUMBER) for code in ("utf-8", "utf-16-le")
    ]
    return [
        str(file)
        for root in folders
        for file in root.rglob("*")
        if file.is_file() and any(secret in str(file).encode() or secret in file.read_bytes() for secret in secrets)
    ]


@pytest.mark.slow
def test_patient_name_and_number_reach_no_output(folder, tiny_checkpoint, tmp_path):
    assert len(files_with_patient_data(folder)) == 40
    processes = []
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
        process = run_command(COMMAND, "data", *command, **cache)
        assert process.returncode == 0, process.stderr
        processes.append(process)
    values = {
        "dataset": "imagefolder",
        "data_dir": folder,
        "model_name_or_path": tiny_checkpoint("vit"),
        "num_train_epochs": 1,
        "output_dir": tmp_path / "run",
        "use_cpu": True,
        "log_level": "debug",
    }
    processes.append(
        run_command(sys.executable, "-X", "dev", "-W", "default", "recipes/vit_brain.py", *flags(**values), **cache)
    )
    assert (tmp_path / "run" / "results.json").exists(), processes[-1].stderr[-3000:]
    assert any("38.dcm" in process.stderr for process in processes)  # the damaged file is named without its content
    for i, process in enumerate(processes):
        (tmp_path / f"{i}.log").write_text(process.stdout + process.stderr)
    assert {"run", "cache", "audit", "push", "grid.png"} <= {path.name for path in tmp_path.iterdir()}
    assert files_with_patient_data(tmp_path) == []
