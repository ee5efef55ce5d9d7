"""The Space in a browser: what people do on its page, and what they see then."""

import csv
import io
import re
import threading

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from tests.support.browser import (
    MANY,
    MARKS,
    SECONDS,
    answered,
    centre,
    changes,
    choose,
    example,
    expect,
    give,
    kept,
    no_overflow,
    tab,
)
from tests.support.browser import address as address
from tests.support.browser import browser as browser
from tests.support.browser import visit as visit
from tests.support.space_samples import HOSTILE, LONG, ct, deep, drawn, one_dicom, saved, zipped

pytestmark = MARKS


def test_every_format_gets_an_answer(visit):
    page = visit()
    files = {
        "a.png": (saved(drawn(90, 80)), 90, 80),
        "a.jpg": (saved(drawn(91, 80), "JPEG"), 91, 80),
        "a.tiff": (saved(drawn(92, 80), "TIFF"), 92, 80),
        "a.webp": (saved(drawn(93, 80), "WEBP", lossless=True), 93, 80),
        "deep.png": (saved(deep(94, 80)), 94, 80),
        "a.dcm": (one_dicom(95, 80), 95, 80),
    }
    for name, (content, width, height) in files.items():
        give(page, (name, content))
        answered(page, width, height)
        expect(page.locator("#preset")).to_be_visible(visible=name in ("deep.png", "a.dcm"))
        expect(page.locator("#told")).to_have_text(re.compile("lesion"))  # to those who can't see it
        assert page.locator(".viewer .base").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [
            width,
            height,
        ]


def test_window_changes_image_and_answer(visit):
    page = visit()
    give(page, ("ct.dcm", ct(96, 90)))
    answered(page, 96, 90)
    numbers = page.locator("#says .number").first.inner_text()
    changes(page, lambda: choose(page, "#preset", "lung"))
    expect(page.locator("#level input[type=number]")).to_have_value("-600")
    expect(page.locator("#says .number").first).not_to_have_text(numbers)
    slider = page.locator("#level input[type=range]")
    slider.focus()
    changes(page, lambda: slider.press("PageUp"))  # by the keyboard
    expect(page.locator("#preset input")).to_have_value("")
    box = page.locator("#width input[type=range]").bounding_box()
    changes(page, lambda: page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2))
    changes(page, lambda: choose(page, "#preset", "as the model was trained"))
    expect(page.locator("#says .number").first).to_have_text(numbers)


def test_frames_and_images_can_be_selected(visit):
    page = visit()
    give(
        page,
        ("frames.dcm", ct(96, 90, frames=4)),
        (f"{HOSTILE}.png", saved(drawn(70, 64))),
        ("c.png", saved(drawn(71, 64))),
    )
    answered(page, 96, 90)
    expect(page.locator("#chosen label")).to_have_count(3)
    frame = page.locator("#frame input[type=range]")
    expect(frame).to_have_value("3")  # the middle one
    frame.focus()
    changes(page, lambda: frame.press("End"))
    expect(page.locator(".reset-button")).to_have_count(0)  # Gradio's knows the values of the first picture alone
    number = page.locator("#frame input[type=number]")
    expect(number).to_have_value("4")
    number.fill("1")
    changes(page, lambda: number.press("Enter"))
    expect(page.locator("#chosen")).to_contain_text(HOSTILE)  # as text
    page.locator("#chosen label").nth(1).click()
    answered(page, 70, 64)
    expect(page.locator("#frame")).to_be_hidden()
    page.locator("#chosen input").nth(2).press("Space")
    answered(page, 71, 64)
    page.locator("#chosen input").nth(2).press("ArrowUp")
    answered(page, 70, 64)
    expect(page.locator("#chosen input").nth(1)).to_be_focused()


def test_image_can_be_pasted(visit):
    page = visit()
    paste = """bytes => {
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
      document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
    }"""
    page.evaluate(paste, list(saved(drawn(77, 66))))
    answered(page, 77, 66)
    tab(page, "Batch")
    page.evaluate(paste, list(saved(drawn(60, 50))))
    expect(page.locator("#many")).to_contain_text(re.compile(r"image\s*\.png"))


def test_viewer_overlay_swipe_zoom_and_pan(visit):
    page = visit()
    example(page)
    layer, sheet = page.locator(".viewer .layer"), page.locator(".viewer .stage:not(.twin) .sheet")
    opacity = page.get_by_label("Opacity of the overlay")
    opacity.fill("20")
    expect(layer).to_have_css("opacity", "0.2")
    page.get_by_text("side by side", exact=True).click()
    expect(page.locator(".viewer .stage")).to_have_count(2)
    expect(page.locator(".viewer .twin .layer")).to_have_count(0)
    page.get_by_text("swipe", exact=True).click()
    expect(page.locator(".viewer .stage")).to_have_count(1)
    page.get_by_label("Position of the swipe").fill("25")
    expect(layer).to_have_css("clip-path", "inset(0px 75% 0px 0px)")
    page.get_by_text("overlay", exact=True).click()

    def zoom() -> float:
        return sheet.evaluate("its => new DOMMatrix(getComputedStyle(its).transform).a")

    def shift() -> float:
        return sheet.evaluate("its => new DOMMatrix(getComputedStyle(its).transform).e")

    page.get_by_role("button", name="Zoom in").click()
    assert zoom() == pytest.approx(1.4)
    stages = page.locator(".viewer .stages")
    stages.focus()
    stages.press("+")
    stages.press("ArrowRight")
    assert zoom() == pytest.approx(1.96)
    assert shift() < 0
    stages.hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("new DOMMatrix(getComputedStyle(document.querySelector('.sheet')).transform).a > 2.3")
    before = zoom()
    changes(page, lambda: choose(page, "#method", "attention rollout"), ".viewer .layer")
    assert zoom() == pytest.approx(before)  # the same image: where one looks stays
    expect(opacity).to_have_value("20")
    page.mouse.move(*centre(stages))
    page.mouse.down()
    page.mouse.move(centre(stages)[0] + 40, centre(stages)[1])
    page.mouse.up()
    assert shift() > -40
    page.get_by_role("button", name="Fit").click()
    assert zoom() == 1
    give(page, ("b.png", saved(drawn(60, 50))))
    answered(page, 60, 50)
    assert zoom() == 1


def test_models_heatmaps_and_labels_can_be_selected(visit):
    page = visit()
    example(page)
    changes(page, lambda: choose(page, "#method", "attention of one head"), ".viewer .layer")
    expect(page.locator("#says")).to_contain_text("Head 1 of layer 2")
    head = page.locator("#head input[type=range]")
    head.focus()
    head.press("End")
    expect(page.locator("#says")).to_contain_text("Head 2 of layer 2")
    choose(page, "#classifier", "cnn")
    expect(page.locator("#says")).to_contain_text("cnn at ")
    expect(page.locator("#method input")).to_have_value("Grad-CAM")  # it has no heads
    expect(page.locator("#head")).to_be_hidden()
    choose(page, "#label", "no lesion")
    expect(page.locator("#says em")).to_have_text("no lesion")
    choose(page, "#classifier", "many-findings")
    expect(page.locator("#says .bars tbody tr")).to_have_count(14)
    expect(page.locator("#says .bars")).to_contain_text(HOSTILE.replace("_", " "))
    expect(page.locator("#says .bars")).to_contain_text(LONG.replace("_", " "))
    assert page.locator("#says img").count() == 0
    values = [float(re.sub("[<> %]", "", text)) for text in page.locator("#says .number").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    no_overflow(page)


def test_segment_and_download_mask(visit):
    page = visit()
    give(page, ("scan.dcm", one_dicom(88, 72)))
    answered(page, 88, 72)
    tab(page, "Segment")
    expect(page.locator("#says caption")).to_have_text("Areas")
    for name in ("area", "uncertainty", "outline"):
        page.locator(".viewer fieldset").get_by_text(name, exact=True).click()
        expect(page.locator(f".viewer .layer[data-layer={name}]")).to_be_visible()
        expect(page.locator(".viewer .layer:visible")).to_have_count(1)
    page.locator(".viewer fieldset").get_by_text("nothing", exact=True).click()
    expect(page.locator(".viewer .layer:visible")).to_have_count(0)
    pixels = int(page.locator("#says tbody tr td").nth(1).inner_text().replace(",", ""))
    mask = np.asarray(Image.open(io.BytesIO(kept(page, "Mask as PNG", "mask.png"))))
    assert mask.shape == (72, 88)
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask > 0).sum() == pixels > 0
    made = dcmread(io.BytesIO(kept(page, "Mask as DICOM SEG (names the patient)", "mask.dcm")))
    assert made.Modality == "SEG"
    assert made.pixel_array.sum() == pixels
    give(page, ("plain.png", saved(drawn(66, 60))))
    answered(page, 66, 60)
    expect(page.locator("#says .downloads a")).to_have_count(1)  # no DICOM of what was none


def test_compare_two_models(visit):
    page = visit()
    example(page, 1)
    tab(page, "Compare")
    expect(page.locator("#says .decision")).to_contain_text(re.compile("They|Only one|Neither"))
    expect(page.locator(".viewer .stage")).to_have_count(2)
    expect(page.locator(".viewer .badge")).to_have_text(["vit", "cnn"])
    choose(page, "#other", "many-findings")
    expect(page.locator("#says")).to_contain_text("Only one of them has the labels")
    page.locator("#other input").click()
    expect(page.get_by_role("option")).to_have_text([re.compile("cnn"), re.compile("many-findings")])  # of its kind
    page.get_by_role("option", name="cnn", exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)
    choose(page, "#one", "cnn")
    expect(page.locator("#other input")).to_have_value("vit")  # not twice the same
    expect(page.locator(".viewer .badge")).to_have_text(["cnn", "vit"])
    tab(page, "Classify")
    expect(page.locator("#says .bars")).to_be_visible()


def test_batch_table_and_csv(visit):
    page = visit()
    tab(page, "Batch")
    page.locator("#start").click()
    expect(page.get_by_role("alert")).to_contain_text("No images were given")
    inside = {
        "in/one.png": saved(drawn(40, 40)),
        "in/notes.txt": b"text",
        f"in/={HOSTILE}.png": saved(drawn(50, 40, 1)),
    }
    give(page, ("first.png", saved(drawn(45, 40))), ("many.zip", zipped(inside)), to=MANY)
    expect(page.locator("#many")).to_contain_text(re.compile(r"many\s*\.zip"))
    page.locator("#start").click()
    link = page.get_by_role("link", name="Download CSV")
    expect(link).to_be_visible()
    rows = list(csv.DictReader(io.StringIO(kept(page, "Download CSV", "answers.csv").decode())))
    assert len(rows) == page.locator("#table tbody tr").count() == 4
    assert [bool(row["error"]) for row in rows] == [row["path"].endswith(".txt") for row in rows]
    assert {row["label"] for row in rows if not row["error"]} <= {"lesion", "no_lesion"}
    assert any(HOSTILE in row["path"] for row in rows)
    expect(page.locator("#table")).to_contain_text("4 images, 1 with an error")
    expect(page.locator("#table .bad td")).to_contain_text("This is text, not an image")
    expect(page.locator("#stop")).to_be_disabled()  # nothing goes on
    expect(page.locator("#told")).to_contain_text("4 images, 1 with an error")
    no_overflow(page)


def test_batch_shows_progress_and_stops(visit, monkeypatch):
    from hf_medtl.space import handlers

    go, answer = threading.Semaphore(1), handlers.predict_row

    def slowly(*arguments):
        assert go.acquire(timeout=SECONDS)
        seen.append(1)
        return answer(*arguments)

    seen = []
    monkeypatch.setattr(handlers, "predict_row", slowly)
    page = visit()
    tab(page, "Batch")
    give(page, *((f"{number}.png", saved(drawn(40, 40))) for number in range(9)), to=MANY)
    expect(page.locator("#many")).to_contain_text(re.compile(r"8\s*\.png"))
    page.locator("#start").click()
    expect(page.locator("#table")).to_contain_text("1 image so far")
    with page.expect_response("**/run/predict**"):
        page.locator("#stop").click()
    for _ in range(9):
        go.release()
    expect(page.get_by_role("link", name="Download CSV")).to_be_visible()
    assert page.locator("#table tbody tr").count() == len(seen) < 9  # what was answered stays
    expect(page.locator("#table")).to_contain_text(f"Stopped: {len(seen)} image")
    expect(page.locator("#table progress")).to_have_count(0)
    tab(page, "Classify")
    example(page)  # whoever comes next is answered


def test_bad_file_shows_message_and_next_works(visit):
    page = visit()
    for name, content, sentence in (
        (f"{HOSTILE}.png", b"<svg onload=alert(1)>", "drawing"),
        ("cut.png", saved(drawn(60, 60))[:900], "damaged"),
        ("a.pdf", b"%PDF-1.7", "PDF"),
    ):
        give(page, (name, content))
        expect(page.get_by_role("alert").filter(has_text="That did not work")).to_contain_text(sentence)
    give(page, ("good.png", saved(drawn(60, 61))))
    answered(page, 60, 61)
    expect(page.get_by_role("alert").filter(has_text="That did not work")).to_have_count(0)
    give(page, ("good.png", saved(drawn(62, 61))), (f"{HOSTILE}.png", b"<html>"))  # one of two
    answered(page, 62, 61)
    expect(page.locator(".toast-body")).to_contain_text("web page")
    expect(page.locator(".toast-body")).to_contain_text(f"{HOSTILE}.png: ")  # which one, as text


def test_late_answer_does_not_replace_newer_one(visit, monkeypatch):
    from hf_medtl.space import handlers

    go, began, answer = threading.Event(), threading.Event(), handlers.handle_request

    def late(registry, upload, wish):
        if wish.mode == "classify":
            began.set()
            assert go.wait(SECONDS)
        return answer(registry, upload, wish)

    monkeypatch.setattr(handlers, "handle_request", late)
    page = visit()
    page.locator("#examples button").first.click()
    assert began.wait(SECONDS)
    tab(page, "Segment")
    expect(page.locator("#says caption")).to_have_text("Areas")
    go.set()
    expect(page.locator(".html-container.pending")).to_have_count(0)
    page.wait_for_timeout(500)
    expect(page.locator("#says caption")).to_have_text("Areas")


def test_queue_position_is_shown(visit, monkeypatch):
    from hf_medtl.space import handlers

    go, answer = threading.Event(), handlers.handle_request
    monkeypatch.setattr(handlers, "handle_request", lambda *arguments: (go.wait(SECONDS), answer(*arguments))[1])
    pages = [visit() for _ in range(4)]  # two are answered at a time
    for page in pages:
        page.locator("#examples button").first.click()
    expect(pages[-1].locator("#view")).to_contain_text("queue: ")
    go.set()
    for page in pages:
        answered(page, 256, 256)
