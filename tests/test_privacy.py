"""Patient data in headers and file names: outputs, logs, cache and uploads do not contain the name or number."""

import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from hf_medtl import MedtlError, Recipe, load, run
from hf_medtl.publish.hub import plan_upload
from hf_medtl.space.publish import write_space
from tests.support.commands import COMMAND, WAIVED, flags, options, run_cli, run_command
from tests.support.image_files import write_noise_image

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
def test_patient_name_and_number_reach_no_output(folder, process_pool, tiny_checkpoint, tmp_path):
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
        process = process_pool.run_script(COMMAND, "data", *command, **cache)
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


def write_named_images(root: Path, seed: int) -> Path:
    """Write 32 images in folders that are called after patients."""
    for i in range(32):
        label = "sick" if i % 2 else "well"
        write_noise_image(root / label / f"{NAME}_Erika_{seed + i // 2}" / "slice_1.png", seed + i)
    return root


@pytest.mark.slow
def test_names_of_folders_stay_on_this_machine(tiny_checkpoint, tmp_path):
    data, other = write_named_images(tmp_path / "data", 0), write_named_images(tmp_path / "other", 100)
    recipe = options(data, tiny_checkpoint("vit"), tmp_path / "run", dataset="imagefolder", num_train_epochs=1)
    folder = run(Recipe(**recipe | {"per_device_train_batch_size": 16, "model_license": "mit"}))
    run_cli("explain", folder, "--data_dir", data, "--number", 2, "--sample", 2)
    run_cli(
        "evaluate",
        folder,
        "--dataset",
        "imagefolder",
        "--data_dir",
        other,
        "--out",
        tmp_path / "evaluation",
        "--update_card",
    )
    run_cli("report", folder, "--out", tmp_path / "report.html", "--data_dir", data)
    assert "image-0000" in (tmp_path / "report.html").read_text(encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| image-0000" in card  # noise can't be learned: some decisions are wrong

    files = plan_upload(folder, WAIVED)
    assert {"explanations.json", "evaluations.json", "splits.csv", "predictions.csv"} < files.keys()
    space = write_space(tmp_path / "space", [str(folder)], waive=WAIVED)
    published = [*files.values(), *space.values(), tmp_path / "report.html", tmp_path / "evaluation" / "README.md"]
    secrets = (b"Mustermann", b"Erika", b"slice_1")
    assert not [path for path in published if any(secret in path.read_bytes() for secret in secrets)]
    assert not [name for name in (*files, *space) if "identifiers" in name]

    # Here names stay, and the identifiers lead to them.
    local = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    there = files["predictions.csv"].read_text(encoding="utf-8").splitlines()
    names = dict(line.split(",")[:2] for line in (folder / "identifiers.csv").read_text(encoding="utf-8").splitlines())
    assert [names.get(line.partition(",")[0]) for line in there[1:]] == [line.partition(",")[0] for line in local[1:]]
    assert any(f"| {identifier} |" in card for identifier in names)
    # The published split finds the images again, by their content.
    again = load("imagefolder", data, splits=files["splits.csv"]).table["image_id"].tolist()
    splits = files["splits.csv"].read_text(encoding="utf-8").splitlines()
    assert again == [line.partition(",")[0] for line in splits[1:]]
    # A name that came onto the card another way is found.
    with (folder / "README.md").open("a", encoding="utf-8") as stream:
        stream.write(f"\nThanks to {NAME.upper()}.\n")
    with pytest.raises(MedtlError, match=r"README.md, line \d+, holds a word that is also in a file or folder name"):
        plan_upload(folder, WAIVED)
    assert plan_upload(folder, WAIVED, allowed=frozenset({NAME.lower()}))
    assert plan_upload(folder, WAIVED, publish_names=True)["splits.csv"] == folder / "splits.csv"
