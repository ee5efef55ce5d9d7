"""A dataset is published without names of files, and without files from elsewhere on the disk."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HTTPError
from PIL import Image

from hf_medtl.common.hub_errors import with_retries
from hf_medtl.data.audit import audit
from hf_medtl.data.audit_page import summary, write_audit
from hf_medtl.data.identifiers import number_images
from hf_medtl.data.loading import load, survey
from hf_medtl.data.publish import check_places, check_published_names, hide_names, upload_dataset, write_parquet
from hf_medtl.errors import MedtlError
from tests.support.image_files import write_noise_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ward")
    for i in range(16):
        label = "sick" if i % 2 else "well"
        write_noise_image(root / label / f"Mustermann_Erika_{i}" / "slice.png", i)
        if i < 2:  # copies, which the audit lists
            write_noise_image(root / label / f"Mustermann_Erika_{i}" / "copy.png", i)
    return root


def test_published_dataset_has_no_names(folder, tmp_path):
    loaded, surveyed = load("imagefolder", folder), survey("imagefolder", folder)
    names = number_images(surveyed.table["image_id"].tolist())
    findings = audit(surveyed)
    write_parquet(hide_names(loaded, names), tmp_path, summary(findings), "ci/ward")
    shown = dict(zip(surveyed.table["path"], surveyed.table["image_id"].map(names), strict=True))
    write_audit(surveyed, findings, tmp_path / "audit", shown)
    assert not [path for path in tmp_path.rglob("*.*") if b"mustermann" in path.read_bytes().lower()]
    check_published_names(tmp_path, surveyed)
    splits = pd.read_csv(tmp_path / "splits.csv")
    assert splits["image_id"].tolist() == splits["path"].tolist()
    assert set(splits["image_id"]) == set(loaded.table["image_id"].map(names))
    files = (tmp_path / "data").iterdir()
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    by_id = {row["image_id"]: row for row in rows}
    assert {row["image"]["path"] for row in rows} == {f"{name}.png" for name in by_id}
    row = loaded.table.iloc[3]  # the identifier is that of this very image
    with Image.open(loaded.root / row["path"]) as image:
        path = tmp_path / "one.png"
        path.write_bytes(by_id[names[row["image_id"]]]["image"]["bytes"])
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image.convert("L")))
    listed = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))["duplicates"]
    assert {file["path"] for group in listed for file in group["files"]} <= set(names.values())
    (tmp_path / "README.md").write_text("From the folder Mustermann.")
    with pytest.raises(MedtlError, match=r"README.md holds a word that is also in a file or folder name"):
        check_published_names(tmp_path, surveyed)
    check_published_names(tmp_path, surveyed, frozenset({"mustermann"}))


def test_a_hub_that_breaks_the_connection_is_one_error(tmp_path, monkeypatch):
    asked = []

    def refuse(*args, **more):
        asked.append(args)
        raise HTTPError("Connection refused")  # no OSError

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    monkeypatch.setattr(with_retries, "__defaults__", (3, lambda seconds: None))
    with pytest.raises(MedtlError, match=r"^ci/ward could not be uploaded \(HTTPError: Connection refused\)"):
        upload_dataset(tmp_path, "ci/ward")
    assert len(asked) == 3


def test_masks_and_links_from_elsewhere_are_not_published(folder, tmp_path):
    surveyed = survey("imagefolder", folder)
    check_places(surveyed)
    secret = write_noise_image(tmp_path / "elsewhere" / "secret.png", 1)
    for place in (str(secret), f"../{tmp_path.name}/elsewhere/secret.png"):
        table = surveyed.table.assign(mask="")
        table.loc[0, "mask"] = f"{table['path'][0]}|{place}"
        moved = type(surveyed)(**vars(surveyed) | {"table": table})
        with pytest.raises(MedtlError, match=r"1 of 2 masks are outside .*--outside DIR.*Nothing was uploaded"):
            check_places(moved)
    check_places(type(surveyed)(**vars(surveyed) | {"table": table.assign(mask=str(secret))}), [tmp_path / "elsewhere"])
    link = tmp_path / "data" / "link.png"
    link.parent.mkdir()
    try:
        link.symlink_to(secret)
    except OSError:
        pytest.skip("no symbolic links here")
    linked = type(surveyed)(**vars(surveyed) | {"root": link.parent, "table": table.assign(path="link.png", mask="")})
    with pytest.raises(MedtlError, match=r"images are outside"):
        check_places(linked)
