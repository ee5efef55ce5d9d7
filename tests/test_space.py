"""The Space without a browser: what it says of a picture, its models, its tables, and what programs get."""

import base64
import csv
import gc
import io
import json
import re
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import HfApi
from PIL import Image
from shelves import LABELS, META, Visitor, brain, chest, running, write_models

from hf_medtl import MedtlError, Predictor
from hf_medtl.predict import Prediction
from hf_medtl.publish.wording import NOTICE
from hf_medtl.space import acts, answers, hands
from hf_medtl.space.answers import Look
from hf_medtl.space.guards import API
from hf_medtl.space.shelf import HEAD, Shelf, names_of, sections
from hf_medtl.space.uploads import Refusal, Upload, examined


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def opened(uri: str) -> Image.Image:
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


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
        archive.writestr("deep/two.png", png(brain(2)))
        archive.writestr("=cmd|calc.png", b"no picture")
    for name, content in (("=1+1.png", png(brain(1))), ("bad.png", b"<svg>"), ("all.zip", stream.getvalue())):
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
        (tmp_path / f"<b>{number}.png").write_bytes(png(brain(number)))
    shown = list(acts.batch(shelf["vit"], [str(path) for path in sorted(tmp_path.iterdir())]))
    assert len(shown) == 3
    assert "data:text/csv" in shown[-1]
    assert "7 pictures, 0 with an error" in shown[-1]
    assert "<b>" not in shown[-1]


def test_what_can_not_be_answered_is_said_in_its_place(shelf):
    upload = examined("a.png", png(brain(1)))
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


# What programs and browsers get of the running Space


@pytest.fixture(scope="module")
def held() -> hands.Hands:
    return hands.Hands()


@pytest.fixture(scope="module")
def url(folders, held, tmp_path_factory):
    import gradio  # noqa: F401  its own folder is asked for before `site`

    from hf_medtl.space import page
    from hf_medtl.space.site import site

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        patch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
        patch.setattr(page, "Hands", lambda: held)
        with running(site([str(folder) for folder in folders.values()], limits={"spared": ["127.0.0.1"]})) as address:
            yield address


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def picture(tmp_path) -> str:
    (tmp_path / "a.png").write_bytes(png(brain(1)))
    return str(tmp_path / "a.png")


def test_classify_by_program(client, picture, folders):
    truth = Predictor.from_pretrained(folders["vit"]).predict([picture])[0]
    for found in (
        client.predict(handle_file(picture), api_name="/classify"),
        client.predict(handle_file(picture), "vit", api_name="/classify"),
        client.predict(file=handle_file(picture), model="vit", api_name="/classify"),
    ):
        assert found["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)
        assert found["outlier"] == pytest.approx(truth.outlier, abs=1e-6)
        assert (found["decision"], found["model"]) == (truth.decision, "vit")
    assert client.predict(handle_file(picture), "cnn", api_name="/classify")["model"] == "cnn"


def test_explain_by_program(client, picture):
    for method, label in (("", ""), ("rollout", ""), ("gradcam", "lesion")):
        found = client.predict(handle_file(picture), "vit", method, label, api_name="/explain")
        assert found["method"] == (method or "gradcam")
        assert opened(found["map"]).size == opened(found["overlay"]).size == (64, 64)
        assert opened(found["map"]).mode == "RGBA"
    assert found["verdict"] == {"passed": False, "summary": "Such maps miss the lesion."}


def test_segment_by_program(client, tmp_path, folders):
    chest().save(tmp_path / "chest.png")
    found = client.predict(handle_file(tmp_path / "chest.png"), "lungs", api_name="/segment")
    truth = Predictor.from_pretrained(folders["lungs"]).predict([tmp_path / "chest.png"])[0]
    assert np.array_equal(np.asarray(opened(found["mask"])) == 255, truth.mask == 1)
    assert found["regions"][0]["share"] == pytest.approx(truth.area["lungs"], abs=1e-6)
    assert opened(found["overlay"]).mode == "RGB"
    assert opened(found["uncertainty"]).size == (64, 64)


def test_compare_by_program(client, picture):
    found = client.predict(handle_file(picture), "vit", "cnn", api_name="/compare")
    assert [its["model"] for its in found["models"]] == ["vit", "cnn"]
    assert found["masks"] == []
    found = client.predict(handle_file(picture), "lungs", "other-lungs", api_name="/compare")
    assert [opened(mask).size for mask in found["masks"]] == [(64, 64)] * 2


def test_batch_by_program(client, picture, tmp_path, folders):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("two.png", png(brain(2)))
    (tmp_path / "bad.png").write_bytes(b"no")
    files = [handle_file(picture), handle_file(tmp_path / "bad.png"), handle_file(tmp_path / "all.zip")]
    found = client.predict(files, "vit", api_name="/batch")
    truth = Predictor.from_pretrained(folders["vit"]).predict([brain(1), brain(2)])
    assert [row["name"] for row in found["rows"]] == ["a.png", "bad.png", "two.png"]
    assert [bool(row["error"]) for row in found["rows"]] == [False, True, False]
    for row, its in zip(found["rows"][::2], truth, strict=True):
        assert row["p_lesion"] == pytest.approx(its.probabilities["lesion"], abs=1e-6)
    assert len(list(csv.DictReader(io.StringIO(found["csv"])))) == 3


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        ((None, "vit"), "classify", "No file came. Give one"),
        (("svg", "vit"), "classify", "This is a drawing (SVG), not a picture. Save it as PNG."),
        (("good", "nope"), "classify", "There is no model of that name here. Choose one of vit, cnn, lungs, other"),
        (("good", "lungs"), "classify", "lungs outlines and gives no labels."),
        (("good", "vit", "x"), "explain", "vit has maps by gradcam, "),
        (("good", "vit", "gradcam", "cat"), "explain", "vit knows the labels no_lesion, lesion; found 'cat'."),
        (("good", "vit"), "segment", "vit gives labels and no outlines."),
        (("good", "vit", "vit"), "compare", "Choose two different models"),
        (([], "vit"), "batch", "No files came."),
        ((["good"], "nope"), "batch", "There is no model of that name here."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(client, url, picture, tmp_path, arguments, name, words):
    (tmp_path / "svg.png").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    files = {"good": picture, "svg": str(tmp_path / "svg.png")}
    first, *rest = arguments
    given = [handle_file(files[its]) for its in first] if isinstance(first, list) else first
    given = handle_file(files[first]) if first in ("good", "svg") else given
    with pytest.raises(AppError, match=re.escape(words)) as caught:
        client.predict(given, *rest, api_name=f"/{name}")
    assert "Traceback" not in str(caught.value)
    assert client.predict(handle_file(picture), "vit", api_name="/classify")["model"] == "vit"


def test_plain_http_and_its_description(url, folders):
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as plain:
        schema = plain.get(API + "openapi.json").json()
        for name in ("classify", "explain", "segment", "compare", "batch"):
            assert f"{API}call/v2/{name}" in schema["paths"]
        path = plain.post(API + "upload", files={"files": ("a.png", png(brain(1)))}).json()[0]
        event = plain.post(API + "call/classify", json={"data": [{"path": path, **META}, ""]}).json()["event_id"]
        answer = plain.get(f"{API}call/classify/{event}").text
        assert not Path(path).exists()
        path = plain.post(API + "upload", files={"files": ("a.png", png(brain(1)))}).json()[0]
        event = plain.post(API + "call/v2/classify", json={"file": {"path": path, **META}}).json()["event_id"]
        other = plain.get(f"{API}call/v2/classify/{event}").text
        assert plain.get(API + "mcp/").status_code == plain.post(API + "mcp/", json={}).status_code == 404
    truth = Predictor.from_pretrained(folders["vit"]).predict([brain(1)])[0]
    for text in (answer, other):
        found = json.loads(text.rpartition("data: ")[2])[0]
        assert found["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)


def test_the_example_of_the_readme_runs(url, tmp_path, monkeypatch, capsys):
    text = (ROOT / "hf_medtl/space/README.md.jinja").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert "http://127.0.0.1:7860" in code
    shutil.copytree(ROOT / "spaces/examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:7860", url), {})
    said = capsys.readouterr().out
    assert "p_lesion" in said or "'lesion'" in said
    assert Image.open(tmp_path / "map.png").format == "PNG"


def test_what_the_page_does(url):
    one = Visitor(url, "page1")
    one.opens()
    came = one.gives(("a.png", png(brain(1))), ("bad.png", b"<svg>"), ("b.png", png(brain(2))))
    assert came["success"]
    shown = one.asks()
    assert "viewer" in shown
    assert "% of pictures like those" in shown
    assert one.asks(chosen=1) != shown
    assert "Head 2 of layer 1" in one.asks(method=HEAD, layer=1, head=2)
    bad = one.gives(("bad.png", b"<svg>"))
    assert "This is a drawing" in str(bad["data"])
    none = one.asks()
    assert "viewer" not in none


def test_gradio_keeps_no_answer(url):
    """It would for an hour after the page was closed, and one more after each change; changed components, too."""
    visitor, sizes = Visitor(url, "repeats"), []
    for number in range(3):
        visitor.gives(("a.png", png(brain(number))))
        assert "viewer" in visitor.asks()
        gc.collect()
        kept = [its for its in gc.get_objects() if type(its).__name__ == "SessionState"]
        assert kept
        sizes.append(sum(len(its.blocks_config.blocks) for its in kept))
    assert sizes[0] == sizes[-1]
    assert not any("data:image/png;base64" in str(config) for its in kept for config in its.config_values.values()
                   if (config or {}).get("props", {}).get("elem_id") in ("view", "says"))  # fmt: skip


def test_a_visitor_who_was_forgotten_is_told(url, held):
    one, other = Visitor(url, "forgotten"), Visitor(url, "stays")
    for visitor in (one, other):
        visitor.gives(("a.png", png(brain(1))))
    held.forget("forgotten")
    assert "Your pictures were forgotten" in one.asks()
    assert "viewer" in other.asks()
    one.gives(("a.png", png(brain(1))))
    assert "viewer" in one.asks()


def test_a_visitor_whom_gradio_has_forgotten_is_told(url):
    """It keeps so many sessions; a page that is open still has the choice of a picture."""
    assert "Your pictures were forgotten" in Visitor(url, "evicted").asks(chosen=0)
    assert "forgotten" not in Visitor(url, "new").asks()


def test_what_a_quick_change_leaves_behind_is_answered(url):
    """Values of controls that are none of the choices any more."""
    visitor = Visitor(url, "quick")
    visitor.gives(("a.png", png(brain(1))))
    assert "viewer" in visitor.asks(chosen=3, frame=9, label="", preset="gone")
    assert "knows the labels" in visitor.asks(label="gone")


def test_pictures_are_forgotten_when_the_page_is_closed(url, held):
    visitor = Visitor(url, "closes")
    visitor.gives(("a.png", png(brain(1))))
    hand = held._held["closes"]
    with visitor.client.stream("GET", API + "heartbeat/closes") as beats:
        lines = beats.iter_lines()  # that nothing holds would close the connection
        next(lines)
        assert hand.uploads
    until(lambda: hand.forgotten)
    assert "closes" not in held._held


def test_nobody_gets_the_answer_of_another(url, folders):
    pictures = [brain(100 + number) for number in range(12)]
    truths = Predictor.from_pretrained(folders["vit"]).predict(pictures)
    assert len({round(its.probabilities["lesion"], 5) for its in truths}) == 12
    wrong: list[object] = []

    def visit(number: int) -> None:
        client = Client(url, verbose=False, analytics_enabled=False)
        page = Visitor(url, f"visitor{number}")
        for turn in range(3):
            its = (number + 4 * turn) % 12
            path = folders["vit"].parent / f"{number}-{turn}.png"
            path.write_bytes(png(pictures[its]))
            found = client.predict(handle_file(path), "vit", api_name="/classify")
            if abs(found["probabilities"]["lesion"] - truths[its].probabilities["lesion"]) > 1e-6:
                wrong.append((number, turn))
            page.gives((f"{its}.png", png(pictures[its])))
            shown = page.asks(classifier="vit")
            if f"{100 * truths[its].probabilities['lesion']:.1f} %" not in shown:
                wrong.append((number, turn, "page"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(visit, range(4)))
    assert wrong == []


def until(true) -> None:
    """Wait at most ten seconds."""
    for _ in range(500):
        if true():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not happen")


# Pictures in hand


def some(size: int) -> hands.Hand:
    return hands.Hand([Upload("a.png", bytes(size), 1, None, False)])


def test_hands_hold_so_many_bytes():
    table = hands.Hands(most=3_000_000)
    all_of_them = [some(900_000) for _ in range(200)]
    for number, hand in enumerate(all_of_them):
        table.hold(f"v{number}", hand)
        table.use("v0")  # the first is used all the time
    kept = [number for number, hand in enumerate(all_of_them) if hand.uploads]
    assert kept == [0, 198, 199]
    assert all(hand.forgotten != bool(hand.uploads) for hand in all_of_them)
    table.hold("large", large := some(5_000_000))
    assert large.uploads  # one who is alone may have more
    assert not any(hand.uploads for hand in all_of_them)


def test_hands_are_emptied_when_nothing_is_asked():
    table = hands.Hands(kept=2)
    idle, busy = some(1), some(1)
    table.hold("idle", idle)
    table.hold("busy", busy)
    until(lambda: table.use("busy") or table.use("nobody") or idle.forgotten)
    assert not busy.forgotten
    until(lambda: busy.forgotten)
    assert not table._held
    table.hold("again", again := some(0))  # the watch goes on
    until(lambda: again.forgotten)


def test_other_pictures_take_the_place_of_those_before():
    table = hands.Hands()
    first, second = some(1), some(1)
    table.hold("one", first)
    table.hold("one", second)
    assert first.forgotten
    assert second.uploads
    table.hold("one", hands.Hand())
    assert second.forgotten
