"""Inference, model registry and batch tables of the Space, without a browser."""

import csv
import io
import json

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from hf_medtl import MedtlError, Predictor
from hf_medtl.data.images import encode_image
from hf_medtl.predict import Prediction
from hf_medtl.publish.sentences import NOTICE
from hf_medtl.publish.templates import card_sections
from hf_medtl.space import handlers, inference
from hf_medtl.space.inference import HeatmapRequest
from hf_medtl.space.registry import ATTENTION_HEAD, ModelRegistry, unique_names
from hf_medtl.space.uploads import RejectedFile, parse_upload
from tests.support.space_fixtures import LABELS, brain_image, chest_image
from tests.support.space_fixtures import model_folders as model_folders
from tests.support.space_samples import zip_files


@pytest.fixture(scope="module")
def registry(model_folders) -> ModelRegistry:
    return ModelRegistry([str(folder) for folder in model_folders.values()])


# Answers


def test_classify_matches_predictor(registry, model_folders):
    image = brain_image(1)
    result = inference.classify(registry["vit"], image)
    truth = Predictor.from_pretrained(model_folders["vit"]).predict([image])[0]
    assert result["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)
    assert (result["label"], result["decision"]) == (truth.label, truth.decision)
    assert [result[key] for key in ("model", "width", "height")] == ["vit", 64, 64]
    assert result["revision"] == Predictor.from_pretrained(model_folders["vit"]).revision
    assert (result["threshold"], result["positive_label"], result["calibrated"]) == (0.4, "lesion", True)
    assert result["coverage"] == pytest.approx(0.9)
    assert result["candidates"] == list(truth.candidates)
    assert result["wording"] == ({"lesion": "A sentence."} if truth.decision == "lesion" else {})
    assert result["notice"] == NOTICE
    json.dumps(result)  # JSON-serializable


def test_model_without_decision_settings_claims_none(registry):
    result = inference.classify(registry["cnn"], brain_image(1))
    assert set(result["probabilities"]) == {*LABELS, "=cow"}
    assert not result["calibrated"]
    assert not result["abstain"]
    assert [result[key] for key in ("threshold", "candidates", "coverage", "outlier")] == [None] * 4


def test_reasons_are_sentences():
    alpha = {"alpha": 0.1}
    both = Prediction("", candidates=LABELS, reasons=("uncertain",))
    assert "at most 10 % of images contains no_lesion and lesion" in inference.describe_reason("uncertain", both, alpha)
    none = Prediction("", candidates=(), reasons=("uncertain",))
    assert inference.describe_reason("uncertain", none, alpha).startswith("No label fits")
    strange = Prediction("", outlier=2.345)
    assert "score is 2.35," in inference.describe_reason("unlike the training images", strange, None)


def test_abstains_on_noise_and_on_large_prediction_sets(registry, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    result = inference.classify(registry["vit"], noise)
    assert result["abstain"]
    assert result["outlier"] > 1
    assert result["reasons"][-1].startswith("The image is unlike those")
    lowest = {"alpha": 0.1, "lowest": {"lesion": 0.0, "no_lesion": 0.0}}
    monkeypatch.setattr(registry["vit"].predictor.config, "conformal", lowest)
    result = inference.classify(registry["vit"], brain_image(1))
    assert result["candidates"] == list(LABELS)
    assert result["reasons"][0].startswith("More than one label is possible")


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "eigencam", "rollout", ATTENTION_HEAD])
def test_heatmap_by_every_method(registry, method):
    image = brain_image(1).resize((80, 48))
    values, facts = inference.heatmap(registry["vit"], image, HeatmapRequest(method, None, 2, 1))
    assert values.shape == (48, 80)
    assert 0 <= values.min() < values.max() <= 1
    assert facts["method"] == method
    if method == ATTENTION_HEAD:
        assert (facts["layer"], facts["head"]) == (2, 1)
        other, _ = inference.heatmap(registry["vit"], image, HeatmapRequest(method, None, 2, 2))
        assert np.abs(values - other).max() > 0.01
    else:
        assert facts["probability"] == max(inference.classify(registry["vit"], image)["probabilities"].values())
    json.dumps(facts)


def test_verdict_belongs_to_shown_heatmap(registry):
    summaries = {
        label: inference.heatmap(registry["vit"], brain_image(1), HeatmapRequest("gradcam", label))[1]["verdict"]
        for label in LABELS
    }
    assert summaries["lesion"] == {"passed": False, "summary": "Such maps miss the lesion.", "warnings": []}
    assert summaries["no_lesion"]["passed"] is None
    other = inference.saved_verdict(registry["vit"], "rollout", "lesion")
    assert other["passed"] is None
    assert "Those by Grad-CAM were" in other["summary"]
    assert "hf-medtl explain" in inference.saved_verdict(registry["cnn"], "gradcam", "lesion")["summary"]


@pytest.mark.parametrize(
    ("name", "heatmap_request", "words"),
    [
        ("vit", HeatmapRequest("scorecam"), "vit has no heatmaps by 'scorecam'. Available: gradcam, "),
        ("cnn", HeatmapRequest("rollout"), "cnn has no heatmaps by"),
        ("cnn", HeatmapRequest(ATTENTION_HEAD), "cnn has no heatmaps by"),
        ("vit", HeatmapRequest(label="cat"), "vit has no label 'cat'. Choose one of no_lesion, lesion"),
        ("vit", HeatmapRequest(ATTENTION_HEAD, layer=3), "layers 1 to 2 with heads 1 to 2"),
        ("vit", HeatmapRequest(ATTENTION_HEAD, head=0), "layers 1 to 2 with heads 1 to 2"),
        ("lungs", HeatmapRequest(), "lungs has no heatmaps by .gradcam.. Available: none"),
    ],
)
def test_unknown_heatmap_raises(registry, name, heatmap_request, words):
    with pytest.raises(MedtlError, match=words):
        inference.heatmap(registry[name], brain_image(1), heatmap_request)


def test_segment_matches_predictor(registry, model_folders):
    image = chest_image().resize((90, 60))
    mask, unsure, facts = inference.segment(registry["lungs"], image)
    truth = Predictor.from_pretrained(model_folders["lungs"]).predict([image])[0]
    assert np.array_equal(mask, truth.mask)
    region = facts["regions"][0]
    assert (region["name"], region["pixels"]) == ("lungs", int((truth.mask == 1).sum()))
    assert region["share"] == pytest.approx(truth.area["lungs"])
    assert unsure.shape == mask.shape == (60, 90)
    assert facts["uncertainty"] == pytest.approx(float(unsure.mean()))
    assert facts["postprocessing"] == {"largest_components": 2}
    assert inference.segment(registry["other-lungs"], image)[2]["postprocessing"] is None
    json.dumps(facts)


def test_right_and_left_lung_are_the_patients():
    mask = np.zeros((40, 100), bool)
    mask[10:30, 10:40] = True  # 600 pixels on the left: the right lung
    mask[10:30, 60:80] = True  # 400
    mask[0, 99] = True
    assert inference.lung_sides(mask) == {"right": {"pixels": 600, "share": 0.6}, "left": {"pixels": 400, "share": 0.4}}
    mirrored = inference.lung_sides(mask[:, ::-1])
    assert (mirrored["right"]["pixels"], mirrored["left"]["pixels"]) == (400, 600)
    one = mask.copy()
    one[10:30, 40:60] = True  # the lungs touch
    assert inference.lung_sides(one) is None
    speck = np.zeros((40, 100), bool)
    speck[10:30, 10:40], speck[5, 90] = True, True
    assert inference.lung_sides(speck) is None
    assert inference.lung_sides(np.zeros((4, 4), bool)) is None


def test_compare_reports_differences_and_dice(registry):
    result = inference.compare(registry["vit"], registry["cnn"], brain_image(1))
    one, other = result["models"]
    assert [one["model"], other["model"]] == ["vit", "cnn"]
    assert result["agree"] == (one["decision"] == other["decision"])
    assert result["difference"] == {
        label: one["probabilities"][label] - other["probabilities"][label] for label in LABELS
    }
    assert result["only_one"] == ["=cow"]
    masks = inference.compare(registry["lungs"], registry["other-lungs"], chest_image())
    first, second = masks["masks"]
    assert masks["disagreement"] == (first != second).mean() > 0
    same = 2 * ((first == 1) & (second == 1)).sum() / ((first == 1).sum() + (second == 1).sum())
    assert masks["dice"] == pytest.approx(same)
    for names, words in ((("vit", "vit"), "two different"), (("vit", "lungs"), "two of a kind")):
        with pytest.raises(MedtlError, match=words):
            inference.compare(*(registry[name] for name in names), brain_image(1))


def test_wrong_task_raises(registry):
    with pytest.raises(MedtlError, match="is a segmentation model"):
        inference.classify(registry["lungs"], chest_image())
    with pytest.raises(MedtlError, match="is a classifier"):
        inference.segment(registry["vit"], chest_image())


# Registry


def test_unique_names(tmp_path):
    for part in ("a/x", "b/x", "y"):
        (tmp_path / part).mkdir(parents=True)
    assert unique_names([str(tmp_path / "a/x"), "me/y"]) == ["x", "y"]
    assert unique_names([str(tmp_path / "a/x"), str(tmp_path / "b/x"), "me/x"]) == ["a/x", "b/x", "me/x"]
    assert unique_names([str(tmp_path / "y")]) == ["y"]
    with pytest.raises(MedtlError, match="twice"):
        unique_names([str(tmp_path / "y"), str(tmp_path / "a/../y")])


def test_registry_reads_methods_heads_and_card(registry):
    assert registry.names(segmentation=False) == ["vit", "cnn"]
    assert registry.names(segmentation=True) == ["lungs", "other-lungs"]
    assert registry["vit"].heads == (2, 2)
    assert registry["vit"].methods == ("gradcam", "gradcam++", "eigencam", "rollout", ATTENTION_HEAD)
    assert registry["cnn"].heads is None
    assert registry["cnn"].methods == ("gradcam", "gradcam++", "eigencam")
    assert registry["lungs"].methods == ()
    assert registry["vit"].results == {}
    assert "For tests." in registry["vit"].card
    assert "Training" not in registry["vit"].card
    assert card_sections("# only a title") == ""


def test_unknown_models_raise(registry):
    with pytest.raises(MedtlError, match="Choose one of vit, cnn, lungs, other-lungs"):
        registry["<b>"]
    with pytest.raises(MedtlError, match="at least one model"):
        ModelRegistry([])
    with pytest.raises(MedtlError, match="can't be loaded"):
        ModelRegistry(["nobody/nothing"])


def test_hub_model_without_run_files_has_no_results(hub, tiny_checkpoint):
    api = HfApi()
    url = api.create_repo("ci/plain-vit")
    api.upload_folder(repo_id=url.repo_id, folder_path=tiny_checkpoint("vit"))
    model = ModelRegistry(["ci/plain-vit"])["plain-vit"]
    assert (model.results, model.verdicts, model.card) == ({}, {}, "")
    assert len(model.predictor.revision) == 40
    assert inference.classify(model, brain_image(1))["candidates"] is None


# Handlers


def test_batch_has_row_for_each_image_good_or_bad(registry, model_folders, tmp_path):
    archive = zip_files({"deep/two.png": encode_image(brain_image(2)), "=cmd|calc.png": b"no image"})
    files = {"=1+1.png": encode_image(brain_image(1)), "bad.png": b"<svg>", "all.zip": archive}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = list(handlers.predict_rows(registry["vit"], [str(tmp_path / name) for name in files]))
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    assert [row["path"] for row in rows] == ["=1+1.png", "bad.png", "deep/two.png", "=cmd|calc.png"]
    truth = Predictor.from_pretrained(model_folders["vit"]).predict([brain_image(1), brain_image(2)])
    for row, prediction in zip((rows[0], rows[2]), truth, strict=True):
        numbers = {key for key in row if key.startswith("p_")}
        assert {key: row[key] for key in numbers} == pytest.approx(
            {key: prediction.row()[key] for key in numbers}, abs=1e-6
        )
        assert {row[key] == prediction.row()[key] for key in row.keys() - numbers - {"path"}} == {True}
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert rows[1]["decision"] is None
    names = list(rows[0])
    text = handlers.to_csv(rows, names)
    table = list(csv.DictReader(io.StringIO(text)))
    assert list(table[0]) == names
    assert [row["path"] for row in table] == ["'=1+1.png", "bad.png", "deep/two.png", "'=cmd|calc.png"]
    assert float(table[0]["p_lesion"]) == rows[0]["p_lesion"]


@pytest.mark.parametrize("cell", ["=1", "+1+cmd", "-1+cmd", "@x", "\t=1", "\r=1", "\n=1", " =1", "＝1"])
def test_csv_escapes_formulas(cell):
    escaped = next(csv.DictReader(io.StringIO(handlers.to_csv([{"path": cell}], ["path"]), newline="")))["path"]
    assert escaped == "'" + cell
    assert next(csv.DictReader(io.StringIO(handlers.to_csv([{"path": -0.5}], ["path"]))))["path"] == "-0.5"


def test_batch_pages_end_with_csv(registry, tmp_path):
    for number in range(7):
        (tmp_path / f"<b>{number}.png").write_bytes(encode_image(brain_image(number)))
    shown = list(handlers.batch_pages(registry["vit"], [str(path) for path in sorted(tmp_path.iterdir())]))
    assert len(shown) == 3
    assert "data:text/csv" in shown[-1]
    assert "7 images, 0 with an error" in shown[-1]
    assert "<b>" not in shown[-1]


def test_unavailable_answer_shows_message(registry):
    upload = parse_upload("a.png", encode_image(brain_image(1)))
    request = handlers.AnalysisRequest("segment", "vit", "vit", "vit", "lungs")
    view, message = handlers.handle_request(registry, upload, request)
    assert "viewer" in view
    assert "is a classifier" in message
    request = handlers.AnalysisRequest("compare", "vit", None, "vit", "<i>")
    view, message = handlers.handle_request(registry, upload, request)
    assert "There is no model of that name" in message
    request = handlers.AnalysisRequest("classify", "vit", None, None, None, frame=7)
    view, message = handlers.handle_request(registry, upload, request)
    assert view == ""
    assert "There is no frame 7" in message
    row = handlers.error_row(registry["vit"], "x", "y")
    assert isinstance(row["error"], str)
    assert handlers.predict_row(registry["vit"], RejectedFile("x", "y")) == row
