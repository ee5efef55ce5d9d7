"""Endpoints and page events of a running Space."""

import csv
import gc
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from hf_medtl import Predictor
from hf_medtl.data.images import encode_image
from hf_medtl.space import sessions
from hf_medtl.space.registry import ATTENTION_HEAD
from hf_medtl.space.security.middleware import API
from tests.support.commands import ROOT
from tests.support.space_fixtures import (
    META,
    Visitor,
    brain_image,
    chest_image,
    decode_data_uri,
    run_server,
    wait_until,
)
from tests.support.space_fixtures import model_folders as model_folders
from tests.support.space_samples import zip_files


@pytest.fixture(scope="module")
def session_store() -> sessions.SessionStore:
    return sessions.SessionStore()


@pytest.fixture(scope="module")
def url(model_folders, session_store, tmp_path_factory):
    import gradio  # noqa: F401  reads its temporary folder at import, before `serve`

    from hf_medtl.space import app
    from hf_medtl.space.serve import create_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        patch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
        patch.setattr(app, "SessionStore", lambda: session_store)
        with run_server(
            create_app([str(folder) for folder in model_folders.values()], limits={"exempt_clients": ["127.0.0.1"]})
        ) as address:
            yield address


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture
def image(tmp_path) -> str:
    (tmp_path / "a.png").write_bytes(encode_image(brain_image(1)))
    return str(tmp_path / "a.png")


@pytest.mark.slow
def test_classify_endpoint(client, image, model_folders):
    truth = Predictor.from_pretrained(model_folders["vit"]).predict([image])[0]
    for result in (
        client.predict(handle_file(image), api_name="/classify"),
        client.predict(handle_file(image), "vit", api_name="/classify"),
        client.predict(file=handle_file(image), model="vit", api_name="/classify"),
    ):
        assert result["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)
        assert result["outlier"] == pytest.approx(truth.outlier, abs=1e-6)
        assert (result["decision"], result["model"]) == (truth.decision, "vit")
    assert client.predict(handle_file(image), "cnn", api_name="/classify")["model"] == "cnn"


def test_explain_endpoint(client, image):
    for method, label in (("", ""), ("rollout", ""), ("gradcam", "lesion")):
        result = client.predict(handle_file(image), "vit", method, label, api_name="/explain")
        assert result["method"] == (method or "gradcam")
        assert decode_data_uri(result["map"]).size == decode_data_uri(result["overlay"]).size == (64, 64)
        assert decode_data_uri(result["map"]).mode == "RGBA"
    assert result["verdict"] == {"passed": False, "summary": "Such maps miss the lesion.", "warnings": []}


def test_segment_endpoint(client, tmp_path, model_folders):
    chest_image().save(tmp_path / "chest.png")
    result = client.predict(handle_file(tmp_path / "chest.png"), "lungs", api_name="/segment")
    truth = Predictor.from_pretrained(model_folders["lungs"]).predict([tmp_path / "chest.png"])[0]
    assert np.array_equal(np.asarray(decode_data_uri(result["mask"])) == 255, truth.mask == 1)
    assert result["regions"][0]["share"] == pytest.approx(truth.area["lungs"], abs=1e-6)
    assert decode_data_uri(result["overlay"]).mode == "RGB"
    assert decode_data_uri(result["uncertainty"]).size == (64, 64)


def test_compare_endpoint(client, image):
    result = client.predict(handle_file(image), "vit", "cnn", api_name="/compare")
    assert [model["model"] for model in result["models"]] == ["vit", "cnn"]
    assert result["masks"] == []
    result = client.predict(handle_file(image), "lungs", "other-lungs", api_name="/compare")
    assert [decode_data_uri(mask).size for mask in result["masks"]] == [(64, 64)] * 2


def test_batch_endpoint(client, image, tmp_path, model_folders):
    (tmp_path / "all.zip").write_bytes(zip_files({"two.png": encode_image(brain_image(2))}))
    (tmp_path / "bad.png").write_bytes(b"no")
    files = [handle_file(image), handle_file(tmp_path / "bad.png"), handle_file(tmp_path / "all.zip")]
    result = client.predict(files, "vit", api_name="/batch")
    truth = Predictor.from_pretrained(model_folders["vit"]).predict([brain_image(1), brain_image(2)])
    assert [row["name"] for row in result["rows"]] == ["a.png", "bad.png", "two.png"]
    assert [bool(row["error"]) for row in result["rows"]] == [False, True, False]
    for row, prediction in zip(result["rows"][::2], truth, strict=True):
        assert row["p_lesion"] == pytest.approx(prediction.probabilities["lesion"], abs=1e-6)
    assert len(list(csv.DictReader(io.StringIO(result["csv"])))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        ((None, "vit"), "classify", "No file was given. Give one"),
        (("svg", "vit"), "classify", "This is a drawing (SVG), not an image. Save it as PNG."),
        (("good", "nope"), "classify", "There is no model of that name here. Choose one of vit, cnn, lungs, other"),
        (("good", "lungs"), "classify", "lungs is a segmentation model."),
        (("good", "vit", "x"), "explain", "vit has no heatmaps by 'x'. Available: gradcam, "),
        (("good", "vit", "gradcam", "cat"), "explain", "vit has no label 'cat'. Choose one of no_lesion, lesion."),
        (("good", "vit"), "segment", "vit is a classifier."),
        (("good", "vit", "vit"), "compare", "Choose two different models"),
        (([], "vit"), "batch", "No files were given."),
        ((["good"], "nope"), "batch", "There is no model of that name here."),
    ],
)  # fmt: skip
def test_endpoint_errors_are_one_sentence(client, url, image, tmp_path, arguments, name, words):
    (tmp_path / "svg.png").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    files = {"good": image, "svg": str(tmp_path / "svg.png")}
    first, *rest = arguments
    argument = [handle_file(files[key]) for key in first] if isinstance(first, list) else first
    argument = handle_file(files[first]) if first in ("good", "svg") else argument
    with pytest.raises(AppError, match=re.escape(words)) as caught:
        client.predict(argument, *rest, api_name=f"/{name}")
    assert "Traceback" not in str(caught.value)
    assert client.predict(handle_file(image), "vit", api_name="/classify")["model"] == "vit"


def test_plain_http_and_openapi(url, model_folders):
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as plain:
        schema = plain.get(API + "openapi.json").json()
        for name in ("classify", "explain", "segment", "compare", "batch"):
            assert f"{API}call/v2/{name}" in schema["paths"]
        path = plain.post(API + "upload", files={"files": ("a.png", encode_image(brain_image(1)))}).json()[0]
        event = plain.post(API + "call/classify", json={"data": [{"path": path, **META}, ""]}).json()["event_id"]
        answer = plain.get(f"{API}call/classify/{event}").text
        assert not Path(path).exists()
        path = plain.post(API + "upload", files={"files": ("a.png", encode_image(brain_image(1)))}).json()[0]
        event = plain.post(API + "call/v2/classify", json={"file": {"path": path, **META}}).json()["event_id"]
        other = plain.get(f"{API}call/v2/classify/{event}").text
        assert plain.get(API + "mcp/").status_code == plain.post(API + "mcp/", json={}).status_code == 404
    truth = Predictor.from_pretrained(model_folders["vit"]).predict([brain_image(1)])[0]
    for text in (answer, other):
        result = json.loads(text.rpartition("data: ")[2])[0]
        assert result["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)


def test_readme_example_runs(url, tmp_path, monkeypatch, capsys):
    text = (ROOT / "hf_medtl/space/README.md.jinja").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert "http://127.0.0.1:7860" in code
    shutil.copytree(ROOT / "spaces/examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:7860", url), {})
    printed = capsys.readouterr().out
    assert "p_lesion" in printed or "'lesion'" in printed
    assert Image.open(tmp_path / "map.png").format == "PNG"


def test_page_events(url):
    visitor = Visitor(url, "page1")
    visitor.load_page()
    uploaded = visitor.drop_files(
        ("a.png", encode_image(brain_image(1))), ("bad.png", b"<svg>"), ("b.png", encode_image(brain_image(2)))
    )
    assert uploaded["success"]
    shown = visitor.read_page()
    assert "viewer" in shown
    assert "% of images like those" in shown
    assert visitor.read_page(chosen=1) != shown
    assert "Head 2 of layer 1" in visitor.read_page(method=ATTENTION_HEAD, layer=1, head=2)
    bad = visitor.drop_files(("bad.png", b"<svg>"))
    assert "This is a drawing" in str(bad["data"])
    empty = visitor.read_page()
    assert "viewer" not in empty


@pytest.mark.slow
def test_gradio_keeps_no_copy_of_answers(url):
    """Gradio would keep answers and changed components for an hour after the page was closed."""
    visitor, sizes = Visitor(url, "repeats"), []
    for number in range(3):
        visitor.drop_files(("a.png", encode_image(brain_image(number))))
        assert "viewer" in visitor.read_page()
        gc.collect()
        kept = [state for state in gc.get_objects() if type(state).__name__ == "SessionState"]
        assert kept
        sizes.append(sum(len(state.blocks_config.blocks) for state in kept))
    assert sizes[0] == sizes[-1]
    assert not any("data:image/png;base64" in str(config) for state in kept for config in state.config_values.values()
                   if (config or {}).get("props", {}).get("elem_id") in ("view", "says"))  # fmt: skip


def test_expired_session_shows_message(url, session_store):
    one, other = Visitor(url, "forgotten"), Visitor(url, "stays")
    for visitor in (one, other):
        visitor.drop_files(("a.png", encode_image(brain_image(1))))
    session_store.remove("forgotten")
    assert "Your images were removed" in one.read_page()
    assert "viewer" in other.read_page()
    one.drop_files(("a.png", encode_image(brain_image(1))))
    assert "viewer" in one.read_page()


def test_session_dropped_by_gradio_shows_message(url):
    """Gradio keeps a limited number of sessions; an open page still sends its selected image."""
    assert "Your images were removed" in Visitor(url, "evicted").read_page(chosen=0)
    assert "were removed" not in Visitor(url, "new").read_page()


def test_outdated_control_values_get_an_answer(url):
    """Control values that are no longer among the choices."""
    visitor = Visitor(url, "quick")
    visitor.drop_files(("a.png", encode_image(brain_image(1))))
    assert "viewer" in visitor.read_page(chosen=3, frame=9, label="", preset="gone")
    assert "has no label" in visitor.read_page(label="gone")


def test_closing_the_page_expires_the_session(url, session_store):
    visitor = Visitor(url, "closes")
    visitor.drop_files(("a.png", encode_image(brain_image(1))))
    session = session_store._sessions["closes"]
    with visitor.client.stream("GET", API + "heartbeat/closes") as heartbeat:
        lines = heartbeat.iter_lines()  # without a reference the connection would close
        next(lines)
        assert session.uploads
    wait_until(lambda: session.expired)
    assert "closes" not in session_store._sessions


@pytest.mark.slow
def test_concurrent_visitors_get_their_own_answers(url, model_folders):
    images = [brain_image(100 + number) for number in range(12)]
    truths = Predictor.from_pretrained(model_folders["vit"]).predict(images)
    assert len({round(truth.probabilities["lesion"], 5) for truth in truths}) == 12
    wrong: list[object] = []

    def visit(number: int) -> None:
        client = Client(url, verbose=False, analytics_enabled=False)
        page = Visitor(url, f"visitor{number}")
        for attempt in range(3):
            index = (number + 4 * attempt) % 12
            path = model_folders["vit"].parent / f"{number}-{attempt}.png"
            path.write_bytes(encode_image(images[index]))
            result = client.predict(handle_file(path), "vit", api_name="/classify")
            if abs(result["probabilities"]["lesion"] - truths[index].probabilities["lesion"]) > 1e-6:
                wrong.append((number, attempt))
            page.drop_files((f"{index}.png", encode_image(images[index])))
            shown = page.read_page(classifier="vit")
            if f"{100 * truths[index].probabilities['lesion']:.1f} %" not in shown:
                wrong.append((number, attempt, "page"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(visit, range(4)))
    assert wrong == []
