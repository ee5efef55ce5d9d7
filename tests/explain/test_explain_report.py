"""Heatmap statistics, gallery pages and `hf-medtl explain`."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_medtl import MedtlError
from hf_medtl.data.loading import load
from hf_medtl.explain.gallery import GalleryItem, draw_page, overlay, select_examples
from hf_medtl.explain.localization import Region, energy_in_region, summarise_energy
from hf_medtl.explain.report import certainty, shortcut_warnings
from hf_medtl.explain.statistics import GRID, common_grid, draw_figures, heatmap_statistics, mean_maps
from hf_medtl.runs.explain import dataset_masks, lung_masks
from hf_medtl.runs.lock import RUN_LOCK, lock_folder
from tests.support.commands import run_cli
from tests.support.tiny_models import build_tiny


def spot(x, y, size=(90, 120), width=0.05):
    """Return a map with its energy around a position, given as fractions of width and height."""
    rows, columns = ((np.arange(length) + 0.5) / length for length in size)
    return np.exp(-((columns - x) ** 2 + (rows[:, None] - y) ** 2) / 2 / width**2).astype(np.float32)


def test_statistics_locate_heatmaps():
    left = [spot(0.25, 0.4, (90 + i, 120)) for i in range(5)]
    right = [spot(0.75, 0.6, (64, 200)) for _ in range(5)]
    maps, labels = [*left, *right, np.zeros((30, 30), np.float32)], ["a"] * 5 + ["b"] * 6
    statistics = heatmap_statistics(maps, labels)
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    assert (statistics["n"], statistics["constant"]) == (11, 1)
    a, b = statistics["by_label"]["a"], statistics["by_label"]["b"]
    assert (a["x"], a["y"], a["n"]) == pytest.approx((0.25, 0.4, 5), abs=0.01)
    assert (b["x"], b["y"], b["n"]) == pytest.approx((0.75, 0.6, 5), abs=0.01)
    assert a["spread"] == pytest.approx(0.05 * np.sqrt(np.pi / 2), abs=0.01)  # mean of a Rayleigh distribution
    assert a["left"] > 0.99
    assert b["right"] > 0.99
    assert a["border"] < 0.01
    assert min(a["consistency"], b["consistency"]) > 0.95 > statistics["all"]["consistency"] > statistics["across"]
    assert statistics["all"]["x"] == pytest.approx(0.5, abs=0.01)


def test_near_uniform_map_has_fractions_of_image():
    even = np.ones((50, 70), np.float32)
    even[0, 0] = 0.99
    statistics = heatmap_statistics([even], ["a"])["all"]
    assert (statistics["x"], statistics["y"], statistics["left"], statistics["border"]) == pytest.approx(
        (0.5, 0.5, 0.5, 0.36), abs=0.01
    )
    assert statistics["spread"] == pytest.approx(0.383, abs=0.005)
    assert statistics["consistency"] is None
    alone = heatmap_statistics([np.zeros((9, 9), np.float32)], ["a"])
    assert alone["constant"] == 1
    assert alone["by_label"]["a"] == {"n": 0, "consistency": None} | dict.fromkeys(
        ("x", "y", "spread", "left", "right", "border")
    )
    with pytest.raises(MedtlError, match="found 1 and 2"):
        heatmap_statistics([even], ["a", "b"])


def test_mean_maps_and_figures(tmp_path):
    maps, labels = [spot(0.2, 0.2), spot(0.8, 0.8, (40, 50)), spot(0.5, 0.5)], ["a", "a", "b"]
    means = mean_maps(maps, labels)
    assert list(means) == ["a", "b"]
    np.testing.assert_allclose(means["a"], common_grid(maps[:2]).mean(axis=0))
    assert common_grid([common_grid(maps[:1])[0]]).shape == (1, GRID, GRID)
    paths = draw_figures([*maps, np.zeros((8, 8), np.float32)], [*labels, "c"], tmp_path)
    assert sorted(path.name for path in paths) == ["centres.png", "mean_maps.png"]
    assert all(min(Image.open(path).size) > 200 for path in paths)


def test_overlay_keeps_image_where_map_is_zero():
    image = Image.fromarray(np.full((20, 30), 100, np.uint8))
    values = np.zeros((20, 30), np.float32)
    values[5:10, 5:10] = 1
    mixed = np.asarray(overlay(image, values, 0.5))
    assert mixed.shape == (20, 30, 3)
    assert (mixed[values == 0] == 100).all()
    np.testing.assert_allclose(mixed[7, 7], (np.array([253, 231, 37]) + 100) / 2, atol=1)  # the end of viridis
    assert (np.asarray(overlay(image, values, 1))[7, 7] == [253, 231, 37]).all()
    for opacity, shape in ((0, (20, 30)), (1.1, (20, 30)), (0.5, (30, 20))):
        with pytest.raises(MedtlError, match="Expected a map of 20 × 30"):
            overlay(image, np.zeros(shape, np.float32), opacity)


def test_pages_show_most_certain_images(tmp_path):
    truth, decided = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1])
    examples = select_examples(truth, decided, np.array([0.2, 0.9, 0.1, 0.5]), 3)
    assert {name: rows.tolist() for name, rows in examples.items()} == {
        "most_certain_right": [1, 0],
        "most_certain_wrong": [3, 2],
        "least_certain": [2, 0, 3],
    }
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.0, 1.0]])
    assert certainty(probabilities, 1, 0.2) == pytest.approx([0.5, 0, 0.375, 1])
    assert certainty(np.array([[0.5, 0.3, 0.2]]), 2, None) == pytest.approx([0.2])
    items = [GalleryItem(Image.new("RGB", (40, 30)), np.zeros((30, 40), np.float32), "$caption") for _ in range(5)]
    draw_page(items, tmp_path / "page.png", "title")
    assert min(Image.open(tmp_path / "page.png").size) > 200


@pytest.fixture(scope="module")
def explained(finished_run, phantoms, tmp_path_factory):
    """Return a finished run, the folder written by the command, and its output."""
    root = tmp_path_factory.mktemp("explained")
    run = shutil.copytree(finished_run, root / "run")
    arguments = ("--data_dir", phantoms, "--out", root / "new", "--sample", 2, "--number", 3, "--update_card")
    printed = run_cli("explain", run, *arguments)
    return run, root / "new", printed


@pytest.mark.slow
def test_command_explains_run(explained):
    finished, out, printed = explained
    explanations = json.loads((out / "explanations.json").read_text())
    assert explanations["method"] == "gradcam"
    assert explanations["n"] == explanations["statistics"]["n"] > 5
    assert set(explanations["verdict"]) <= {"lesion", "no_lesion"}
    for label, verdict in explanations["verdict"].items():
        assert f"{label}: {verdict['summary']}" in printed
        assert verdict["n"] <= 2
        assert verdict["passed"] == (not verdict["failed"])
    assert not all(verdict["passed"] for verdict in explanations["verdict"].values())  # two epochs of a tiny ViT
    for name, rows in explanations["pages"].items():
        assert (out / f"{name}.png").exists() == bool(rows)
        assert len(rows) <= 3
    assert explanations["n"] == json.loads((finished / "results.json").read_text())["n"]
    assert {path.name for path in out.glob("*.png")} >= {"mean_maps.png", "centres.png", "least_certain.png"}
    assert json.loads((finished / "explanations.json").read_text()) == explanations
    card = (finished / "README.md").read_text()
    assert "Not examined" not in card
    assert all(
        card.count(f"- {label}: {verdict['summary']}") == 1 for label, verdict in explanations["verdict"].items()
    )


def report_with(border: float, ratio: tuple[float, float | None] | None = None) -> dict[str, Any]:
    """Return the parts of explanations.json that warnings read, for heatmaps of the label "lesion"."""
    statistics: dict[str, Any] = {"by_label": {"lesion": {"border": border}}}
    if ratio is None:
        return {"statistics": statistics}
    facts = {"ratio": {"value": ratio[0], "low": ratio[1]}, "inside": {"value": 0.3}}
    return {"statistics": statistics, "energy": {"region": "lungs", "by_label": {"lesion": facts}}}


def test_energy_at_border_or_outside_region_is_a_warning():
    assert shortcut_warnings(report_with(0.35), "lesion") == []
    assert shortcut_warnings(report_with(0.9), "other") == []
    (border,) = shortcut_warnings(report_with(0.52), "lesion")
    assert "52% of the heatmaps' energy lies in the outermost tenth" in border
    assert "which is 36% of their area" in border
    assert shortcut_warnings(report_with(0.1, (1.8, 1.2)), "lesion") == []
    for ratio in ((1.8, 0.9), (0.8, None)):
        (outside,) = shortcut_warnings(report_with(0.1, ratio), "lesion")
        assert "do not favour the lungs: 70% of their energy lies outside" in outside


def test_energy_is_mean_over_maps_with_interval_over_patients():
    region = Region("lungs", "nobody", lambda path, image: np.zeros((2, 2), bool))
    left = np.zeros((10, 10), bool)
    left[:, :5] = True
    maps = [spot(x, 0.5, (10, 10), 0.1) for x in (0.1, 0.2, 0.25, 0.3, 0.35, 0.8)]
    energies = [*(energy_in_region(values, left) for values in maps), energy_in_region(maps[0], np.zeros_like(left))]
    assert energies[-1] is None
    result = summarise_energy(region, energies, [*"aaaaabb"], [*"1234566"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["region"], result["source"], result["unknown"]) == ("lungs", "nobody", 1)
    a, b = result["by_label"]["a"], result["by_label"]["b"]
    assert a["inside"]["value"] == pytest.approx(np.mean([energy.energy for energy in energies[:5]]))
    assert a["area"]["value"] == 0.5
    assert a["ratio"]["value"] == pytest.approx(2 * a["inside"]["value"])
    assert 1.5 < a["ratio"]["low"] < a["ratio"]["value"] < a["ratio"]["high"]
    assert (b["n"], b["n_groups"], b["inside"]["low"]) == (1, 1, None)
    assert b["inside"]["value"] < 0.05
    assert "inside the lungs, which cover 50 % of the images" in a["summary"]
    assert "times as much as expected from a map that is independent of the region (n = 5)" in a["summary"]


@pytest.mark.slow
def test_command_measures_energy_inside_dataset_masks(finished_run, phantoms, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    printed = run_cli("explain", run, "--data_dir", phantoms, "--sample", 9, "--number", 1, "--masks")
    explanations = json.loads((run / "explanations.json").read_text())
    energy = explanations["energy"]
    assert energy["region"] == "lesion"
    assert energy["unknown"] > 0  # an image without a lesion has an empty mask
    assert (
        sum(facts["n"] for facts in energy["by_label"].values()) + energy["unknown"] == explanations["statistics"]["n"]
    )
    for label, facts in energy["by_label"].items():
        assert 0 < facts["area"]["value"] < 0.2
        assert f"{label}: {facts['summary']}" in printed
        assert f"- {label}: {facts['summary']}" in (run / "README.md").read_text()
    measured = [verdict["energy"] for verdict in explanations["verdict"].values() if verdict["energy"]["n"]]
    assert measured
    assert any("energy" in verdict["checks"] for verdict in explanations["verdict"].values())


@pytest.mark.slow
def test_lung_region_comes_from_segmentation_model(finished_run, phantoms, tmp_path):
    model, processor = build_tiny(labels=("background", "heart", "left lung", "right lung"))
    model.save_pretrained(tmp_path / "unet")
    processor.save_pretrained(tmp_path / "unet")
    region, image = lung_masks(str(tmp_path / "unet")), Image.effect_noise((50, 40), 90).convert("RGB")
    from hf_medtl import Predictor

    (prediction,) = Predictor.from_pretrained(tmp_path / "unet").predict(image)
    assert np.array_equal(region.mask_for(tmp_path, image), prediction.mask >= 2)
    assert region.name == "lungs"
    assert str(tmp_path.parent) not in region.source
    common = "--data_dir", phantoms, "--sample", 1, "--number", 1, "--out", tmp_path / "out"
    printed = run_cli("explain", finished_run, *common, "--lung_model", tmp_path / "unet")  # leaves the run alone
    energy = json.loads((tmp_path / "out" / "explanations.json").read_text())["energy"]
    assert energy["by_label"]
    assert all(facts["summary"] in printed for facts in energy["by_label"].values())
    with (
        lock_folder(tmp_path / "out", RUN_LOCK, "works"),
        pytest.raises(MedtlError, match="Another process writes explanations in"),
    ):
        run_cli("explain", finished_run, *common, "--lung_model", tmp_path / "unet")
    with pytest.raises(MedtlError, match="predicts labels"):
        run_cli("explain", finished_run, *common, "--lung_model", finished_run)
    with pytest.raises(MedtlError, match="--masks or --lung_model"):
        run_cli("explain", finished_run, *common, "--lung_model", finished_run, "--masks")


def test_masks_are_resized_and_missing_ones_empty(phantoms, tmp_path):
    root = shutil.copytree(phantoms, tmp_path / "brain")
    first, second = sorted((root / "lesion").iterdir())[:2]
    mask = Image.open(root / "masks" / first.name)
    mask.resize((32, 32), Image.Resampling.NEAREST).save(root / "masks" / first.name)
    (root / "masks" / second.name).unlink()
    region, image = dataset_masks(load("brain-phantoms", root)), Image.open(first)
    assert region.mask_for(first, image).shape == (image.height, image.width)
    assert region.mask_for(first, image).mean() == pytest.approx((np.asarray(mask) > 0).mean(), abs=0.01)
    assert not region.mask_for(second, image).any()
    shutil.rmtree(root / "masks")
    with pytest.raises(MedtlError, match="has no masks"):
        dataset_masks(load("brain-phantoms", root))


def test_unexplainable_inputs_raise(finished_run, phantoms, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match=r"--split is one of .* found 'tset'"):
        run_cli("explain", finished_run, "--data_dir", phantoms, "--out", tmp_path, "--split", "tset")
    with pytest.raises(MedtlError, match=r"has no splits\.csv"):
        run_cli("explain", tiny_checkpoint("vit"), "--data_dir", phantoms, "--out", tmp_path)
    with pytest.raises(MedtlError, match="can't be loaded as a classifier"):
        run_cli("explain", tmp_path, "--data_dir", phantoms, "--out", tmp_path)
    with pytest.raises(MedtlError, match=r"--method is one of .* found 'cam'"):
        run_cli("explain", finished_run, "--data_dir", phantoms, "--out", tmp_path, "--method", "cam")
