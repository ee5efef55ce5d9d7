"""Names that must not be published of a run: from its tables, and from the headers of its images."""

import logging

import pandas as pd
import pytest
from huggingface_hub import HfApi, snapshot_download
from pydicom import dcmread
from pydicom.data import get_testdata_file

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.loading import load
from hf_medtl.data.name_scan import check_names
from hf_medtl.errors import MedtlError
from hf_medtl.publish.checkpoints import CheckpointUploader
from hf_medtl.publish.hub import push
from hf_medtl.publish.private_names import allowed_words, check_planned_card, private_names
from tests.support.commands import WAIVED
from tests.support.image_files import write_noise_image


def write_table(run: RunFolder, name: str, **columns: list[str]) -> None:
    run.write(name, to_csv(pd.DataFrame(columns)))


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Return a run whose data are a DICOM file of a patient and a file with a name, and that had an external test."""
    header = dcmread(get_testdata_file("MR_small.dcm"))
    header.PatientName = "Schneider^Berta"
    header.save_as(tmp_path / "1.dcm")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    ids, sha256 = ["Lehmann/1.dcm", "Station Kessel/2.dcm"], ["a", "b"]
    facts = {"label": ["Healthy", "Ill"], "patient": ["", ""], "group": ["g1", "g2"], "split": ["train", "test"]}
    write_table(run, "splits.csv", image_id=ids, path=ids, sha256=sha256, **facts)
    write_table(run, "external.csv", image_id=["Wagner.png"], label=["Ill"])
    write_table(run, "excluded.csv", path=["Vogel.png"], label=[""], kind=["unreadable"], reason=["x"])
    files = [str(tmp_path / "1.dcm"), str(tmp_path / "gone.dcm")]
    write_table(run, "identifiers.csv", identifier=["image-000001", "image-000002"], image_id=ids, file=files)
    run.write("recipe.yaml", "dataset: table\n")
    return run


def test_names_are_of_all_tables_and_headers(run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        names = private_names(run.path)
    assert {"lehmann", "kessel", "wagner", "vogel", "schneider", "berta"} <= names.keys()
    assert not {"healthy", "ill", "train"} & names.keys()  # labels and splits are published
    assert "1 of 2 images are not where they were" in caplog.text
    (card := tmp_path / "README.md").write_text("Thanks to Berta.")
    with pytest.raises(MedtlError, match=r"README.md holds a word that is also in a DICOM header"):
        check_names({"README.md": card}, names)
    check_names({"README.md": card}, names, allowed_words(["Berta"]))


def test_card_with_a_name_is_refused_before_training(tmp_path):
    for i in range(12):
        write_noise_image(tmp_path / ("ill" if i % 2 else "healthy") / f"Lehmann_{i}.png", i)
    loaded = load("imagefolder", tmp_path)
    check_planned_card("A model for healthy and ill slices.", [loaded, None])
    with pytest.raises(MedtlError, match=r"The model card, line 2, holds a word that is also in a file or folder name"):
        check_planned_card("A model\nwith thanks to Dr. Lehmann", [None, loaded])


def test_no_names_if_they_are_public(run):
    assert private_names(run.path, publish_names=True) == {}
    run.write("recipe.yaml", "dataset: brain-phantoms\n")
    assert private_names(run.path) == {}


def test_names_are_read_again_when_a_table_changes(run):
    assert "wagner" in private_names(run.path)
    write_table(run, "external.csv", image_id=["Becker.png"], label=["Ill"])
    assert {"becker"} <= private_names(run.path).keys() - {"wagner"}


def test_checkpoints_go_without_names_or_not_at_all(run, monkeypatch, caplog):
    committed = {}

    def commit(api, repo, files, message, *, names, **where):
        check_names(files, names)
        committed.update({name: path.read_text(encoding="utf-8") for name, path in files.items()})

    monkeypatch.setattr("hf_medtl.publish.checkpoints.commit_files", commit)
    monkeypatch.setattr("hf_medtl.publish.checkpoints.HfApi.create_branch", lambda *_, **__: None)
    uploader, copy = CheckpointUploader("owner/name", {"license": "mit"}), run.path / ".upload"
    facts = {"name": "owner/name", "branch": "checkpoints", "step": 1, "epoch": "1", "epochs": "2", "folder": "last"}
    copy.mkdir()
    (copy / "config.json").write_text("{}")
    uploader._upload(copy, facts)
    assert "image-000002,image-000002,b,Ill,,g2,test" in committed["splits.csv"]
    assert {"README.md", "config.json", "last/config.json", "recipe.yaml"} < committed.keys()
    copy.mkdir()
    (copy / "config.json").write_text('{"_name_or_path": "/data/Kessel/vit"}')
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        uploader._upload(copy, facts)  # training goes on
    assert "config.json holds a word that is also in a file or folder name" in caplog.text


def test_pushed_run_has_identifiers_and_is_pushed_once(hub, publishable_run, tmp_path):
    run = RunFolder(publishable_run)
    names = set(run.splits["image_id"])
    run.write("results.json", run.results | {"dataset": "imagefolder"})  # as if they were the user's own images
    repo = "ci-user/private-names"
    push(publishable_run, repo, waive=WAIVED)
    commits = len(HfApi().list_repo_commits(repo))
    push(publishable_run, repo, waive=WAIVED)  # nothing has changed
    assert len(HfApi().list_repo_commits(repo)) == commits
    downloaded = RunFolder(snapshot_download(repo, local_dir=tmp_path / "downloaded"))
    assert set(downloaded.predictions["image_id"]) < set(downloaded.splits["image_id"])
    assert all(name.startswith("image-0") for name in downloaded.splits["image_id"])
    texts = [path.read_bytes() for path in downloaded.path.rglob("*.*") if path.is_file()]
    assert not [name for name in names if any(name.encode() in text for text in texts)]
    assert set(RunFolder(publishable_run).splits["image_id"]) == names
