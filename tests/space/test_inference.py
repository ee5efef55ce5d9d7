"""The Space without a browser: what it says of a picture, its models, its tables, and what programs get."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from hf_medtl import MedtlError, Predictor
from hf_medtl.predict import Prediction
from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space import handlers as acts
from hf_medtl.space import inference as answers
from hf_medtl.space.inference import Look
from hf_medtl.space.registry import HEAD, Shelf, names_of, sections
from hf_medtl.space.uploads import Refusal, examined
from tests.support.space_fixtures import LABELS, brain, chest
from tests.support.space_fixtures import folders as folders
from tests.support.space_samples import saved


@pytest.fixture(scope="module")
def shelf(folders) -> Shelf:
    return Shelf([str(folder) for folder in folders.values()])


# Answers


def test_labels_are_those_of_the_predictor(shelf, folders):
    picture = brain(1)
    found = answers.classify(shelf["vit"], picture)
    truth = Predictor.from_pretrained(folders["vit"]).predict([picture])[0]
    assert found["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)
    assert (found["label"], found["decision"]) == (truth.label, truth.decision)
    assert (found["model"], found["revision"], found["width"], found["height"]) == ("vit", truth_of(folders), 64, 64)
    assert (found["threshold"], found["positive_label"], found["calibrated"]) == (0.4, "lesion", True)
    assert found["coverage"] == pytest.approx(0.9)
    assert found["candidates"] == list(truth.candidates)
    assert found["wording"] == ({"lesion": "A sentence."} if truth.decision == "lesion" else {})
    assert found["notice"] == NOTICE
    json.dumps(found)  # plain values


def truth_of(folders) -> str | None:
    return Predictor.from_pretrained(folders["vit"]).revision


def test_a_model_without_decisions_claims_none(shelf):
    found = answers.classify(shelf["cnn"], brain(1))
    assert set(found["probabilities"]) == {*LABELS, "=cow"}
    assert not found["calibrated"]
    assert not found["abstain"]
    assert [found[key] for key in ("threshold", "candidates", "coverage", "outlier")] == [None] * 4


def test_reasons_are_in_words():
    alpha = {"alpha": 0.1}
    both = Prediction("", candidates=LABELS, reasons=("uncertain",))
    assert "at most 10 % of pictures holds no_lesion and lesion" in answers.in_words("uncertain", both, alpha)
    none = Prediction("", candidates=(), reasons=("uncertain",))
    assert answers.in_words("uncertain", none, alpha).startswith("No label fits")
    strange = Prediction("", outlier=2.345)
    assert "it scores 2.35," in answers.in_words("unlike the training pictures", strange, None)


def test_it_says_that_it_can_not_say(shelf, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    found = answers.classify(shelf["vit"], noise)
    assert found["abstain"]
    assert found["outlier"] > 1
    assert found["reasons"][-1].startswith("The picture is unlike those")
    lowest = {"alpha": 0.1, "lowest": {"lesion": 0.0, "no_lesion": 0.0}}
    monkeypatch.setattr(shelf["vit"].predictor.config, "conformal", lowest)
    found = answers.classify(shelf["vit"], brain(1))
    assert found["candidates"] == list(LABELS)
    assert found["reasons"][0].startswith("More than one label is possible")


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "eigencam", "rollout", HEAD])
def test_maps_by_every_method(shelf, method):
    picture = brain(1).resize((80, 48))
    values, facts = answers.look(shelf["vit"], picture, Look(method, None, 2, 1))
    assert values.shape == (48, 80)
    assert 0 <= values.min() < values.max() <= 1
    assert facts["method"] == method
    if method == HEAD:
        assert (facts["layer"], facts["head"]) == (2, 1)
        other, _ = answers.look(shelf["vit"], picture, Look(method, None, 2, 2))
        assert np.abs(values - other).max() > 0.01
    else:
        assert facts["probability"] == max(answers.classify(shelf["vit"], picture)["probabilities"].values())
    json.dumps(facts)


def test_the_verdict_is_that_of_the_map_that_is_shown(shelf):
    summaries = {label: answers.look(shelf["vit"], brain(1), Look("gradcam", label))[1]["verdict"] for label in LABELS}
    assert summaries["lesion"] == {"passed": False, "summary": "Such maps miss the lesion."}
    assert summaries["no_lesion"]["passed"] is None
    other = answers.verdict(shelf["vit"], "rollout", "lesion")
    assert other["passed"] is None
    assert "Those by Grad-CAM were" in other["summary"]
    assert "hf-medtl explain" in answers.verdict(shelf["cnn"], "gradcam", "lesion")["summary"]


@pytest.mark.parametrize(
    ("name", "wish", "words"),
    [
        ("vit", Look("scorecam"), "vit has maps by gradcam, .*found 'scorecam'"),
        ("cnn", Look("rollout"), "cnn has maps by"),
        ("cnn", Look(HEAD), "cnn has maps by"),
        ("vit", Look(label="cat"), "vit knows the labels no_lesion, lesion; found 'cat'"),
        ("vit", Look(HEAD, layer=3), "layers 1 to 2 with heads 1 to 2"),
        ("vit", Look(HEAD, head=0), "layers 1 to 2 with heads 1 to 2"),
        ("lungs", Look(), "lungs has maps by"),
    ],
)
def test_a_map_that_there_is_not(shelf, name, wish, words):
    with pytest.raises(MedtlError, match=words):
        answers.look(shelf[name], brain(1), wish)


def test_outlines_and_areas(shelf, folders):
    picture = chest().resize((90, 60))
    mask, unsure, facts = answers.segment(shelf["lungs"], picture)
    truth = Predictor.from_pretrained(folders["lungs"]).predict([picture])[0]
    assert np.array_equal(mask, truth.mask)
    region = facts["regions"][0]
    assert (region["name"], region["pixels"]) == ("lungs", int((truth.mask == 1).sum()))
    assert region["share"] == pytest.approx(truth.area["lungs"])
    assert unsure.shape == mask.shape == (60, 90)
    assert facts["uncertainty"] == pytest.approx(float(unsure.mean()))
    assert facts["postprocessing"] == {"largest_components": 2}
    assert answers.segment(shelf["other-lungs"], picture)[2]["postprocessing"] is None
    json.dumps(facts)


def test_right_and_left_are_the_patients():
    mask = np.zeros((40, 100), bool)
    mask[10:30, 10:40] = True  # 600 pixels on the left: the right lung
    mask[10:30, 60:80] = True  # 400
    mask[0, 99] = True
    assert answers.sides(mask) == {"right": {"pixels": 600, "share": 0.6}, "left": {"pixels": 400, "share": 0.4}}
    mirrored = answers.sides(mask[:, ::-1])
    assert (mirrored["right"]["pixels"], mirrored["left"]["pixels"]) == (400, 600)
    one = mask.copy()
    one[10:30, 40:60] = True  # they touch
    assert answers.sides(one) is None
    speck = np.zeros((40, 100), bool)
    speck[10:30, 10:40], speck[5, 90] = True, True
    assert answers.sides(speck) is None
    assert answers.sides(np.zeros((4, 4), bool)) is None


def test_two_models_side_by_side(shelf):
    found = answers.compare(shelf["vit"], shelf["cnn"], brain(1))
    one, other = found["models"]
    assert [one["model"], other["model"]] == ["vit", "cnn"]
    assert found["agree"] == (one["decision"] == other["decision"])
    assert found["difference"] == {
        label: one["probabilities"][label] - other["probabilities"][label] for label in LABELS
    }
    assert found["only_one"] == ["=cow"]
    masks = answers.compare(shelf["lungs"], shelf["other-lungs"], chest())
    first, second = masks["masks"]
    assert masks["disagreement"] == (first != second).mean() > 0
    same = 2 * ((first == 1) & (second == 1)).sum() / ((first == 1).sum() + (second == 1).sum())
    assert masks["dice"] == pytest.approx(same)
    for names, words in ((("vit", "vit"), "two different"), (("vit", "lungs"), "two of a kind")):
        with pytest.raises(MedtlError, match=words):
            answers.compare(*(shelf[name] for name in names), brain(1))


def test_each_kind_of_model_does_its_own(shelf):
    with pytest.raises(MedtlError, match="gives no labels"):
        answers.classify(shelf["lungs"], chest())
    with pytest.raises(MedtlError, match="no outlines"):
        answers.segment(shelf["vit"], chest())


# The shelf


def test_names_tell_models_apart(tmp_path):
    for part in ("a/x", "b/x", "y"):
        (tmp_path / part).mkdir(parents=True)
    assert names_of([str(tmp_path / "a/x"), "me/y"]) == ["x", "y"]
    assert names_of([str(tmp_path / "a/x"), str(tmp_path / "b/x"), "me/x"]) == ["a/x", "b/x", "me/x"]
    assert names_of([str(tmp_path / "y")]) == ["y"]
    with pytest.raises(MedtlError, match="twice"):
        names_of([str(tmp_path / "y"), str(tmp_path / "a/../y")])


def test_what_is_known_of_each(shelf):
    assert shelf.of(masks=False) == ["vit", "cnn"]
    assert shelf.of(masks=True) == ["lungs", "other-lungs"]
    assert shelf["vit"].heads == (2, 2)
    assert shelf["vit"].methods == ("gradcam", "gradcam++", "eigencam", "rollout", HEAD)
    assert shelf["cnn"].heads is None
    assert shelf["cnn"].methods == ("gradcam", "gradcam++", "eigencam")
    assert shelf["lungs"].methods == ()
    assert shelf["vit"].results == {}
    assert "For tests." in shelf["vit"].prose
    assert "Training" not in shelf["vit"].prose
    assert sections("# only a title") == ""


def test_models_that_are_not_there(shelf):
    with pytest.raises(MedtlError, match="Choose one of vit, cnn, lungs, other-lungs"):
        shelf["<b>"]
    with pytest.raises(MedtlError, match="at least one model"):
        Shelf([])
    with pytest.raises(MedtlError, match="can't be loaded"):
        Shelf(["nobody/nothing"])


def test_a_model_of_the_hub_has_no_results(hub, tiny):
    api = HfApi()
    url = api.create_repo("ci/plain-vit")
    api.upload_folder(repo_id=url.repo_id, folder_path=tiny("vit"))
    model = Shelf(["ci/plain-vit"])["plain-vit"]
    assert (model.results, model.verdicts, model.prose) == ({}, {}, "")
    assert len(model.predictor.revision) == 40
    assert answers.classify(model, brain(1))["candidates"] is None


# What the page does


def test_a_row_for_each_picture_good_or_bad(shelf, folders, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("deep/two.png", saved(brain(2)))
        archive.writestr("=cmd|calc.png", b"no picture")
    for name, content in (("=1+1.png", saved(brain(1))), ("bad.png", b"<svg>"), ("all.zip", stream.getvalue())):
        (tmp_path / name).write_bytes(content)
    rows = list(acts.on_batch(shelf["vit"], [str(tmp_path / name) for name in ("=1+1.png", "bad.png", "all.zip")]))
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    assert [row["path"] for row in rows] == ["=1+1.png", "bad.png", "deep/two.png", "=cmd|calc.png"]
    truth = Predictor.from_pretrained(folders["vit"]).predict([brain(1), brain(2)])
    for row, its in zip((rows[0], rows[2]), truth, strict=True):
        numbers = {key for key in row if key.startswith("p_")}
        assert {key: row[key] for key in numbers} == pytest.approx({key: its.row()[key] for key in numbers}, abs=1e-6)
        assert {row[key] == its.row()[key] for key in row.keys() - numbers - {"path"}} == {True}
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert rows[1]["decision"] is None
    names = list(rows[0])
    text = acts.table(rows, names)
    table = list(csv.DictReader(io.StringIO(text)))
    assert list(table[0]) == names
    assert [row["path"] for row in table] == ["'=1+1.png", "bad.png", "deep/two.png", "'=cmd|calc.png"]
    assert float(table[0]["p_lesion"]) == rows[0]["p_lesion"]


@pytest.mark.parametrize("cell", ["=1", "+1", "-1+cmd", "@x", "\t=1", "\r=1", "\n=1", " =1", "＝1"])
def test_no_cell_is_a_formula(cell):
    found = next(csv.DictReader(io.StringIO(acts.table([{"path": cell}], ["path"]), newline="")))["path"]
    assert found == "'" + cell
    assert next(csv.DictReader(io.StringIO(acts.table([{"path": -0.5}], ["path"]))))["path"] == "-0.5"


def test_the_table_of_the_page_ends_with_a_csv(shelf, tmp_path):
    for number in range(7):
        (tmp_path / f"<b>{number}.png").write_bytes(saved(brain(number)))
    shown = list(acts.batch(shelf["vit"], [str(path) for path in sorted(tmp_path.iterdir())]))
    assert len(shown) == 3
    assert "data:text/csv" in shown[-1]
    assert "7 pictures, 0 with an error" in shown[-1]
    assert "<b>" not in shown[-1]


def test_what_can_not_be_answered_is_said_in_its_place(shelf):
    upload = examined("a.png", saved(brain(1)))
    wish = acts.Wish("segment", "vit", "vit", "vit", "lungs")
    view, says = acts.answer(shelf, upload, wish)
    assert "viewer" in view
    assert "no outlines" in says
    view, says = acts.answer(shelf, upload, acts.Wish("compare", "vit", None, "vit", "<i>"))
    assert "There is no model of that name" in says
    view, says = acts.answer(shelf, upload, acts.Wish("classify", "vit", None, None, None, frame=7))
    assert view == ""
    assert "There is no frame 7" in says
    assert isinstance(acts.refusal(shelf["vit"], "x", "y")["error"], str)
    assert acts.row(shelf["vit"], Refusal("x", "y")) == acts.refusal(shelf["vit"], "x", "y")
