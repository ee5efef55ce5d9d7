"""What is published names images by neutral identifiers, which join its tables; names stay on this machine."""

import hashlib
import json

import pandas as pd
import pytest

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.run_folder import RunFolder, read_table
from hf_medtl.data.identifiers import adopt_identifiers, number_images
from hf_medtl.errors import MedtlError
from hf_medtl.publish.neutral_files import are_names_public, neutral_files, neutral_run

PATHS = ["data/no/Meier_Hans/slice_1.png", "data/no/Meier_Hans/slice_2.png", "data/yes/Muster|Erika/slice_1.png"]
IDS = [path.removeprefix("data/") for path in PATHS]
NEUTRAL = ["image-000001", "image-000002", "image-000003"]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Return a run as older versions wrote it, with names on its card and without identifiers.csv."""
    run = RunFolder(tmp_path)
    facts = {"label": ["no", "no", "yes"], "patient": "", "group": "g1", "split": "test", "sha256": ["a", "a", "b"]}
    run.write("splits.csv", to_csv(pd.DataFrame({"image_id": IDS, "path": PATHS, **facts})))
    digest = hashlib.sha256((tmp_path / "splits.csv").read_bytes()).hexdigest()
    run.write("results.json", {"dataset": "imagefolder", "splits_sha256": digest, "labels": ["no", "yes"]})
    run.write("predictions.csv", to_csv(pd.DataFrame({"image_id": IDS[::-1], "label": "no", "p_no": 0.1 + 0.2})))
    names = ["slice_2.png", "slice_1.png"]  # the second is that of two images
    run.write("explanations.json", {"pages": {"wrong": [{"picture": name} for name in names]}})
    row = r"| yes/Muster\|Erika/slice_1.png | no | 0.1 |"
    run.write("README.md", f"| image | true | p |\n|---|---|---|\n{row}\n| slice | no | 1 |\n\nSplit: `{digest}`.\n")
    run.write("recipe.yaml", "seed: 1\n")
    return run


def test_published_files_join_without_names(run):
    files = {path.name: path for path in run.path.iterdir()}
    before = {name: path.read_bytes() for name, path in files.items()}
    published = neutral_files(run.path, files)
    assert {name: path.read_bytes() for name, path in files.items()} == before  # local files keep names
    texts = {name: path.read_text(encoding="utf-8") for name, path in published.items()}
    assert not [name for name, text in texts.items() if "Meier" in text or "Erika" in text or "slice_" in text]
    splits, predictions = read_table(published["splits.csv"]), read_table(published["predictions.csv"])
    assert splits["image_id"].tolist() == splits["path"].tolist() == NEUTRAL
    assert predictions["image_id"].tolist() == NEUTRAL[::-1]
    assert "0.30000000000000004" in texts["predictions.csv"]  # to the last digit
    assert json.loads(texts["explanations.json"])["pages"]["wrong"] == [{"picture": NEUTRAL[1]}, {"picture": ""}]
    digest = hashlib.sha256(published["splits.csv"].read_bytes()).hexdigest()
    assert json.loads(texts["results.json"])["splits_sha256"] == digest
    assert "| image-000003 | no | 0.1 |\n| slice | no | 1 |" in texts["README.md"]
    assert f"Split: `{digest}`." in texts["README.md"]
    assert published["recipe.yaml"] == files["recipe.yaml"]
    listed = read_table(run.path / "identifiers.csv")  # for the user to look up a file
    assert dict(zip(listed["identifier"], listed["image_id"], strict=True)) == dict(zip(NEUTRAL, IDS, strict=True))


def test_published_files_are_published_again_as_they_are(run):
    published = neutral_files(run.path, {path.name: path for path in run.path.iterdir()})
    for name, path in published.items():
        run.write(name, path.read_bytes())
    files = {name: run.path / name for name in published}
    assert neutral_files(run.path, files) == files


def test_tables_of_a_report_join_without_names(run):
    renamed = neutral_run(run)
    assert renamed.predictions["image_id"].tolist() == NEUTRAL[::-1]
    assert renamed.splits["image_id"].tolist() == NEUTRAL
    assert run.predictions["image_id"].tolist() == IDS[::-1]
    assert neutral_run(run, publish_names=True).predictions["image_id"].tolist() == IDS[::-1]


def test_damaged_tables_are_refused(run):
    files = {"predictions.csv": run.path / "predictions.csv"}
    (run.path / "predictions.csv").write_bytes(b"")
    with pytest.raises(MedtlError, match=r"predictions.csv is damaged"):
        neutral_files(run.path, files)
    (run.path / "splits.csv").write_text("name,split\n1,test\n")
    with pytest.raises(MedtlError, match="no column image_id"):
        neutral_files(run.path, files)


def test_names_are_public_if_the_data_are_or_the_user_says_so(run):
    assert not are_names_public(run)
    assert are_names_public(run, publish_names=True)
    run.write("recipe.yaml", "publish_names: true\n")
    assert are_names_public(run)
    run.write("recipe.yaml", "")
    run.write("results.json", {"dataset": "brain-phantoms"})
    assert are_names_public(run)
    run.write("results.json", {"dataset": "owner/hospital"})
    assert not are_names_public(run)


def test_published_split_finds_its_images_by_content(run):
    published = neutral_files(run.path, {path.name: path for path in run.path.iterdir()})["splits.csv"]
    table = pd.DataFrame({"image_id": ["x", "y", "z", "new"], "sha256": ["a", "a", "b", "c"]})  # x and y are copies
    assert adopt_identifiers(table, published)["image_id"].tolist() == [*NEUTRAL, "new"]
    assert adopt_identifiers(table, run.path / "splits.csv") is table


def test_identifiers_sort_as_the_images_do():
    names = [f"{i:07d}.png" for i in range(3)]
    assert list(number_images(names).values()) == NEUTRAL
    assert number_images(NEUTRAL) == dict(zip(NEUTRAL, NEUTRAL, strict=True))
    many = list(number_images([str(i) for i in range(1_000_001)]).values())
    assert many[0] == "image-0000001" and many == sorted(many)
