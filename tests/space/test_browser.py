"""The Space in a browser: user actions and their visible results."""

import csv
import io
import re
import threading

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from hf_medtl.data.images import encode_image
from tests.support.browser import (
    BATCH_UPLOAD,
    MARKS,
    SECONDS,
    centre,
    check_no_overflow,
    download,
    expect,
    expect_answer,
    expect_change,
    open_example,
    open_tab,
    select_option,
    upload_files,
)
from tests.support.browser import address as address
from tests.support.browser import browser as browser
from tests.support.browser import visit as visit
from tests.support.space_samples import HOSTILE, LONG, draw_16_bit_image, draw_image, encode_ct, encode_mr, zip_files

pytestmark = MARKS


@pytest.mark.slow
def test_every_format_gets_an_answer(visit):
    page = visit()
    files = {
        "a.png": (encode_image(draw_image(90, 80)), 90, 80),
        "a.jpg": (encode_image(draw_image(91, 80), "JPEG"), 91, 80),
        "a.tiff": (encode_image(draw_image(92, 80), "TIFF"), 92, 80),
        "a.webp": (encode_image(draw_image(93, 80), "WEBP", lossless=True), 93, 80),
        "deep.png": (encode_image(draw_16_bit_image(94, 80)), 94, 80),
        "a.dcm": (encode_mr(95, 80), 95, 80),
    }
    for name, (content, width, height) in files.items():
        upload_files(page, (name, content))
        expect_answer(page, width, height)
        expect(page.locator("#preset")).to_be_visible(visible=name in ("deep.png", "a.dcm"))
        expect(page.locator("#announcer")).to_have_text(re.compile("lesion"))  # for screen readers
        assert page.locator(".viewer .base").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [
            width,
            height,
        ]


@pytest.mark.slow
def test_window_changes_image_and_answer(visit):
    page = visit()
    upload_files(page, ("ct.dcm", encode_ct(96, 90)))
    expect_answer(page, 96, 90)
    numbers = page.locator("#says .number").first.inner_text()
    expect_change(page, lambda: select_option(page, "#preset", "lung"))
    expect(page.locator("#level input[type=number]")).to_have_value("-600")
    expect(page.locator("#says .number").first).not_to_have_text(numbers)
    slider = page.locator("#level input[type=range]")
    slider.focus()
    expect_change(page, lambda: slider.press("PageUp"))  # by the keyboard
    expect(page.locator("#preset input")).to_have_value("")
    box = page.locator("#width input[type=range]").bounding_box()
    expect_change(page, lambda: page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2))
    expect_change(page, lambda: select_option(page, "#preset", "as the model was trained"))
    expect(page.locator("#says .number").first).to_have_text(numbers)


@pytest.mark.slow
def test_frames_and_images_can_be_selected(visit):
    page = visit()
    upload_files(
        page,
        ("frames.dcm", encode_ct(96, 90, frames=4)),
        (f"{HOSTILE}.png", encode_image(draw_image(70, 64))),
        ("c.png", encode_image(draw_image(71, 64))),
    )
    expect_answer(page, 96, 90)
    expect(page.locator("#chosen label")).to_have_count(3)
    frame = page.locator("#frame input[type=range]")
    expect(frame).to_have_value("3")  # the middle one
    frame.focus()
    expect_change(page, lambda: frame.press("End"))
    expect(page.locator(".reset-button")).to_have_count(0)  # Gradio's only knows the values of the first image
    number = page.locator("#frame input[type=number]")
    expect(number).to_have_value("4")
    number.fill("1")
    expect_change(page, lambda: number.press("Enter"))
    expect(page.locator("#chosen")).to_contain_text(HOSTILE)  # as text
    page.locator("#chosen label").nth(1).click()
    expect_answer(page, 70, 64)
    expect(page.locator("#frame")).to_be_hidden()
    page.locator("#chosen input").nth(2).press("Space")
    expect_answer(page, 71, 64)
    page.locator("#chosen input").nth(2).press("ArrowUp")
    expect_answer(page, 70, 64)
    expect(page.locator("#chosen input").nth(1)).to_be_focused()


@pytest.mark.slow
def test_image_can_be_pasted(visit):
    page = visit()
    paste = """bytes => {
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
      document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
    }"""
    page.evaluate(paste, list(encode_image(draw_image(77, 66))))
    expect_answer(page, 77, 66)
    open_tab(page, "Batch")
    page.evaluate(paste, list(encode_image(draw_image(60, 50))))
    expect(page.locator("#many")).to_contain_text(re.compile(r"image\s*\.png"))


@pytest.mark.slow
def test_viewer_overlay_swipe_zoom_and_pan(visit):
    page = visit()
    open_example(page)
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
    expect_change(page, lambda: select_option(page, "#method", "attention rollout"), ".viewer .layer")
    assert zoom() == pytest.approx(before)  # the view stays for the same image
    expect(opacity).to_have_value("20")
    page.mouse.move(*centre(stages))
    page.mouse.down()
    page.mouse.move(centre(stages)[0] + 40, centre(stages)[1])
    page.mouse.up()
    assert shift() > -40
    page.get_by_role("button", name="Fit").click()
    assert zoom() == 1
    upload_files(page, ("b.png", encode_image(draw_image(60, 50))))
    expect_answer(page, 60, 50)
    assert zoom() == 1


@pytest.mark.slow
def test_models_heatmaps_and_labels_can_be_selected(visit):
    page = visit()
    open_example(page)
    expect_change(page, lambda: select_option(page, "#method", "attention of one head"), ".viewer .layer")
    expect(page.locator("#says")).to_contain_text("Head 1 of layer 2")
    head = page.locator("#head input[type=range]")
    head.focus()
    head.press("End")
    expect(page.locator("#says")).to_contain_text("Head 2 of layer 2")
    select_option(page, "#classifier", "cnn")
    expect(page.locator("#says")).to_contain_text("cnn at ")
    expect(page.locator("#method input")).to_have_value("Grad-CAM")  # the CNN has no attention heads
    expect(page.locator("#head")).to_be_hidden()
    select_option(page, "#label", "no lesion")
    expect(page.locator("#says em")).to_have_text("no lesion")
    select_option(page, "#classifier", "many-findings")
    expect(page.locator("#says .bars tbody tr")).to_have_count(14)
    expect(page.locator("#says .bars")).to_contain_text(HOSTILE.replace("_", " "))
    expect(page.locator("#says .bars")).to_contain_text(LONG.replace("_", " "))
    assert page.locator("#says img").count() == 0
    values = [float(re.sub("[<> %]", "", text)) for text in page.locator("#says .number").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    check_no_overflow(page)


@pytest.mark.slow
def test_segment_and_download_mask(visit):
    page = visit()
    upload_files(page, ("scan.dcm", encode_mr(88, 72)))
    expect_answer(page, 88, 72)
    open_tab(page, "Segment")
    expect(page.locator("#says caption")).to_have_text("Areas")
    for name in ("area", "uncertainty", "outline"):
        page.locator(".viewer fieldset").get_by_text(name, exact=True).click()
        expect(page.locator(f".viewer .layer[data-layer={name}]")).to_be_visible()
        expect(page.locator(".viewer .layer:visible")).to_have_count(1)
    page.locator(".viewer fieldset").get_by_text("nothing", exact=True).click()
    expect(page.locator(".viewer .layer:visible")).to_have_count(0)
    pixels = int(page.locator("#says tbody tr td").nth(1).inner_text().replace(",", ""))
    mask = np.asarray(Image.open(io.BytesIO(download(page, "Mask as PNG", "mask.png"))))
    assert mask.shape == (72, 88)
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask > 0).sum() == pixels > 0
    dataset = dcmread(io.BytesIO(download(page, "Mask as DICOM SEG (names the patient)", "mask.dcm")))
    assert dataset.Modality == "SEG"
    assert dataset.pixel_array.sum() == pixels
    upload_files(page, ("plain.png", encode_image(draw_image(66, 60))))
    expect_answer(page, 66, 60)
    expect(page.locator("#says .downloads a")).to_have_count(1)  # no DICOM output for other formats


@pytest.mark.slow
def test_compare_two_models(visit):
    page = visit()
    open_example(page, 1)
    open_tab(page, "Compare")
    expect(page.locator("#says .decision")).to_contain_text(re.compile("They|Only one|Neither"))
    expect(page.locator(".viewer .stage")).to_have_count(2)
    expect(page.locator(".viewer .badge")).to_have_text(["vit", "cnn"])
    select_option(page, "#other", "many-findings")
    expect(page.locator("#says")).to_contain_text("Only one of them has the labels")
    page.locator("#other input").click()
    expect(page.get_by_role("option")).to_have_text(
        [re.compile("cnn"), re.compile("many-findings")]
    )  # models of the same task
    page.get_by_role("option", name="cnn", exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)
    select_option(page, "#one", "cnn")
    expect(page.locator("#other input")).to_have_value("vit")  # not the same model twice
    expect(page.locator(".viewer .badge")).to_have_text(["cnn", "vit"])
    open_tab(page, "Classify")
    expect(page.locator("#says .bars")).to_be_visible()


@pytest.mark.slow
def test_batch_table_and_csv(visit):
    page = visit()
    open_tab(page, "Batch")
    page.locator("#start").click()
    expect(page.get_by_role("alert")).to_contain_text("No images were given")
    inside = {
        "in/one.png": encode_image(draw_image(40, 40)),
        "in/notes.txt": b"text",
        f"in/={HOSTILE}.png": encode_image(draw_image(50, 40, 1)),
    }
    upload_files(
        page, ("first.png", encode_image(draw_image(45, 40))), ("many.zip", zip_files(inside)), to=BATCH_UPLOAD
    )
    expect(page.locator("#many")).to_contain_text(re.compile(r"many\s*\.zip"))
    page.locator("#start").click()
    link = page.get_by_role("link", name="Download CSV")
    expect(link).to_be_visible()
    rows = list(csv.DictReader(io.StringIO(download(page, "Download CSV", "answers.csv").decode())))
    assert len(rows) == page.locator("#table tbody tr").count() == 4
    assert [bool(row["error"]) for row in rows] == [row["path"].endswith(".txt") for row in rows]
    assert {row["label"] for row in rows if not row["error"]} <= {"lesion", "no_lesion"}
    assert any(HOSTILE in row["path"] for row in rows)
    expect(page.locator("#table")).to_contain_text("4 images, 1 with an error")
    expect(page.locator("#table .bad td")).to_contain_text("This is text, not an image")
    expect(page.locator("#stop")).to_be_disabled()  # no batch is running
    expect(page.locator("#announcer")).to_contain_text("4 images, 1 with an error")
    check_no_overflow(page)


@pytest.mark.slow
def test_batch_shows_progress_and_stops(visit, monkeypatch):
    from hf_medtl.space import handlers

    permits, answer = threading.Semaphore(1), handlers.predict_row

    def answer_slowly(*arguments):
        assert permits.acquire(timeout=SECONDS)
        answered.append(1)
        return answer(*arguments)

    answered = []
    monkeypatch.setattr(handlers, "predict_row", answer_slowly)
    page = visit()
    open_tab(page, "Batch")
    upload_files(page, *((f"{number}.png", encode_image(draw_image(40, 40))) for number in range(9)), to=BATCH_UPLOAD)
    expect(page.locator("#many")).to_contain_text(re.compile(r"8\s*\.png"))
    page.locator("#start").click()
    expect(page.locator("#table")).to_contain_text("1 image so far")
    with page.expect_response("**/run/predict**"):
        page.locator("#stop").click()
    for _ in range(9):
        permits.release()
    expect(page.get_by_role("link", name="Download CSV")).to_be_visible()
    assert page.locator("#table tbody tr").count() == len(answered) < 9  # finished rows stay
    expect(page.locator("#table")).to_contain_text(f"Stopped: {len(answered)} image")
    expect(page.locator("#table progress")).to_have_count(0)
    open_tab(page, "Classify")
    open_example(page)  # the next request is answered


@pytest.mark.slow
def test_bad_file_shows_message_and_next_works(visit):
    page = visit()
    for name, content, sentence in (
        (f"{HOSTILE}.png", b"<svg onload=alert(1)>", "drawing"),
        ("cut.png", encode_image(draw_image(60, 60))[:900], "damaged"),
        ("a.pdf", b"%PDF-1.7", "PDF"),
    ):
        upload_files(page, (name, content))
        expect(page.get_by_role("alert").filter(has_text="That did not work")).to_contain_text(sentence)
    upload_files(page, ("good.png", encode_image(draw_image(60, 61))))
    expect_answer(page, 60, 61)
    expect(page.get_by_role("alert").filter(has_text="That did not work")).to_have_count(0)
    upload_files(page, ("good.png", encode_image(draw_image(62, 61))), (f"{HOSTILE}.png", b"<html>"))  # one of two
    expect_answer(page, 62, 61)
    expect(page.locator(".toast-body")).to_contain_text("web page")
    expect(page.locator(".toast-body")).to_contain_text(f"{HOSTILE}.png: ")  # which one, as text


@pytest.mark.slow
def test_late_answer_does_not_replace_newer_one(visit, monkeypatch):
    from hf_medtl.space import handlers

    proceed, started, answer = threading.Event(), threading.Event(), handlers.handle_request

    def answer_late(registry, upload, request):
        if request.mode == "classify":
            started.set()
            assert proceed.wait(SECONDS)
        return answer(registry, upload, request)

    monkeypatch.setattr(handlers, "handle_request", answer_late)
    page = visit()
    page.locator("#examples button").first.click()
    assert started.wait(SECONDS)
    open_tab(page, "Segment")
    expect(page.locator("#says caption")).to_have_text("Areas")
    proceed.set()
    expect(page.locator(".html-container.pending")).to_have_count(0)
    page.wait_for_timeout(500)
    expect(page.locator("#says caption")).to_have_text("Areas")


@pytest.mark.slow
def test_queue_position_is_shown(visit, monkeypatch):
    from hf_medtl.space import handlers

    proceed, answer = threading.Event(), handlers.handle_request
    monkeypatch.setattr(handlers, "handle_request", lambda *arguments: (proceed.wait(SECONDS), answer(*arguments))[1])
    pages = [visit() for _ in range(4)]  # two are answered at a time
    for page in pages:
        page.locator("#examples button").first.click()
    expect(pages[-1].locator("#view")).to_contain_text("queue: ")
    proceed.set()
    for page in pages:
        expect_answer(page, 256, 256)
