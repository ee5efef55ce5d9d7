"""Phantoms: deterministic images, exact masks, no shortcut to the label, atomic writing."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes, label

from hf_medtl.common.files import list_files
from hf_medtl.data import phantoms
from hf_medtl.data.phantoms import LABELS, draw_brain, draw_chest, draw_cohort, write_phantoms

DRAW = {"brain": draw_brain, "chest": draw_chest}
SIZE = 64


def files(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in list_files(folder).items()}


@pytest.mark.parametrize("kind", LABELS)
def test_same_arguments_give_same_bytes_in_any_order(kind):
    keys = [(patient, index) for patient in range(3) for index in range(2)]
    first = {key: DRAW[kind](*key, True, size=SIZE) for key in keys}
    again = {key: DRAW[kind](*key, True, size=SIZE) for key in reversed(keys)}
    assert all(np.array_equal(first[key].image, again[key].image) for key in keys)
    assert all(np.array_equal(first[key].mask, again[key].mask) for key in keys)
    assert len({phantom.image.tobytes() for phantom in first.values()}) == len(keys)
    assert not np.array_equal(first[0, 0].image, DRAW[kind](0, 0, True, seed=1, size=SIZE).image)


@pytest.mark.parametrize("size", [32, 65, 128])
@pytest.mark.parametrize("kind", LABELS)
def test_image_shape_and_label_names(kind, size):
    phantom = DRAW[kind](7, 1, True, size=size)
    assert phantom.image.shape == phantom.mask.shape == (size, size)
    assert phantom.image.dtype == phantom.mask.dtype == np.uint8
    assert (phantom.label, phantom.patient, phantom.index) == (LABELS[kind][1], f"{kind}-0007", 1)
    assert set(np.unique(phantom.mask)) == {0, 255}
    assert 25 < phantom.image.std() < 100


@pytest.mark.slow
def test_lesion_mask_is_inside_head_and_empty_without_lesion():
    for patient in range(40):
        without, with_lesion = (draw_brain(patient, 0, lesion, size=SIZE) for lesion in (False, True))
        assert not without.mask.any()
        assert 0.002 < (with_lesion.mask > 0).mean() < 0.1
        head = binary_fill_holes(without.image > 60)
        assert head[with_lesion.mask > 0].all()


@pytest.mark.slow
def test_lung_mask_is_two_dark_lungs():
    for patient in range(40):
        normal, opaque = (draw_chest(patient, 0, opacity, size=SIZE) for opacity in (False, True))
        assert np.array_equal(normal.mask, opaque.mask)
        lungs, count = label(normal.mask)
        areas = np.bincount(lungs.ravel())[1:] / lungs.size
        assert count == 2
        assert areas.min() > 0.04
        assert 0.1 < areas.sum() < 0.5
        assert normal.image[normal.mask > 0].mean() < normal.image[normal.mask == 0].mean()


@pytest.mark.parametrize("kind", LABELS)
def test_label_changes_only_the_finding(kind):
    for patient in range(12):
        without, with_finding = (DRAW[kind](patient, 0, finding, size=SIZE) for finding in (False, True))
        changed = np.abs(with_finding.image.astype(int) - without.image) > 2
        assert changed.any()
        assert not (changed & ~binary_dilation(with_finding.mask > 0, iterations=SIZE // 8)).any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("measure", [np.mean, np.max])
def test_brightness_does_not_predict_label(kind, measure):
    cohort = list(draw_cohort(kind, patients=60, images=1, size=SIZE))
    with_finding, without = (
        np.array([measure(phantom.image) for phantom in cohort if phantom.label == name], float)
        for name in reversed(LABELS[kind])
    )
    above = with_finding[:, None] - without
    auc = (above > 0).mean() + (above == 0).mean() / 2
    assert len(with_finding) == len(without) == 30
    assert 0.25 < auc < 0.75


def test_larger_cohort_starts_with_smaller_one():
    small, large = (list(draw_cohort("brain", patients=n, images=1, size=32)) for n in (5, 8))
    assert [p.label for p in small] == [p.label for p in large[:5]]
    assert [p.label for p in large].count("lesion") == 4


@pytest.mark.parametrize("kind", LABELS)
def test_writes_images_masks_and_table(kind, tmp_path):
    folder = write_phantoms(tmp_path / "deep" / kind, kind, patients=4, images=2, size=32)
    written = files(folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == [kind]
    assert len(written) == 2 * 8 + 2
    for phantom in draw_cohort(kind, patients=4, images=2, size=32):
        name = f"{phantom.patient}_{phantom.index}.png"
        with Image.open(folder / phantom.label / name) as image, Image.open(folder / "masks" / name) as mask:
            assert (image.format, image.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(image), phantom.image)
            assert np.array_equal(np.asarray(mask), phantom.mask)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert all(text in readme for text in ("synthetic", "hf_medtl", "CC0-1.0", "4 patients", "seed 0"))
    assert json.loads(written["phantoms.json"])["kind"] == kind


def test_complete_folder_is_reused(tmp_path, monkeypatch):
    folder = write_phantoms(tmp_path / "brain", "brain", patients=2, images=1, size=32)
    before = files(folder)
    monkeypatch.setattr(phantoms, "draw_brain", None)  # drawing anything would fail
    assert write_phantoms(str(folder), "brain", patients=2, images=1, size=32) == folder
    assert files(folder) == before


@pytest.mark.parametrize("more", [{"seed": 1}, {"patients": 3}, {"images": 2}, {"size": 48}, {"kind": "chest"}])
def test_refuses_folder_of_other_phantoms(tmp_path, more):
    asked = {"kind": "brain", "patients": 2, "images": 1, "size": 32}
    folder = write_phantoms(tmp_path / "set", **asked)
    before = files(folder)
    with pytest.raises(FileExistsError, match=r"expected phantoms made with .* found .* pass another folder"):
        write_phantoms(folder, **(asked | more))
    assert files(folder) == before


def test_refuses_folder_of_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"no readable phantoms\.json"):
        write_phantoms(tmp_path, "brain", patients=2, images=1, size=32)
    assert files(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, stop):
    def stops(patient, index, lesion, **more):
        if patient == 1:
            raise stop
        return draw_brain(patient, index, lesion, **more)

    with monkeypatch.context() as patch, pytest.raises(stop):
        patch.setattr(phantoms, "draw_brain", stops)
        write_phantoms(tmp_path / "brain", "brain", patients=2, images=1, size=32)
    assert list(tmp_path.iterdir()) == []
    assert len(files(write_phantoms(tmp_path / "brain", "brain", patients=2, images=1, size=32))) == 6


def test_concurrent_writer_of_same_folder_is_accepted(tmp_path, monkeypatch):
    asked = {"kind": "brain", "patients": 2, "images": 1, "size": 32}

    def overtaken(patient, index, lesion, **more):
        monkeypatch.setattr(phantoms, "draw_brain", draw_brain)
        write_phantoms(tmp_path / "brain", **asked)
        return draw_brain(patient, index, lesion, **more)

    monkeypatch.setattr(phantoms, "draw_brain", overtaken)
    assert len(files(write_phantoms(tmp_path / "brain", **asked))) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["brain"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "knee"}, "kind: expected one of brain, chest, found 'knee'"),
        ({"patients": 1}, "patients: expected at least 2, found 1"),
        ({"images": 0}, "images: expected at least 1, found 0"),
        ({"size": 31}, "size: expected at least 32, found 31"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
    ],
)
def test_invalid_arguments_raise_before_writing(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "set", **({"kind": "brain"} | more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draw", DRAW.values())
def test_invalid_arguments_of_one_image_raise(draw):
    with pytest.raises(ValueError, match="patient: expected at least 0"):
        draw(-1, 0, False)
    with pytest.raises(ValueError, match="size: expected at least 32"):
        draw(0, 0, False, size=8)
