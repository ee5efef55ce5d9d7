"""Accessibility of the Space's page: screen sizes, colour schemes and keyboard."""

import re

import pytest

from hf_medtl.data.images import encode_image
from tests.support.browser import (
    BATCH_UPLOAD,
    MARKS,
    TABS,
    check_no_overflow,
    expect,
    expect_answer,
    open_example,
    open_tab,
    select_option,
    settle,
    upload_files,
)
from tests.support.browser import address as address
from tests.support.browser import browser as browser
from tests.support.browser import visit as visit
from tests.support.space_samples import draw_image, encode_ct

pytestmark = MARKS


@pytest.mark.slow
def test_notice_stays_in_viewport(visit):
    page = visit(1280, 500)
    open_example(page)
    for name in TABS:
        open_tab(page, name)
        page.mouse.move(640, 400)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(page.get_by_text("For research and education only").first).to_be_in_viewport()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scale"), [(390, 1), (720, 2), (768, 1), (1440, 1), (1920, 1)])
def test_page_fits_every_screen(visit, width, scale):
    page = visit(
        width, 450 if scale == 2 else 900, device_scale_factor=scale
    )  # 720 at 2: a window of 1440 zoomed to 200 %
    check_no_overflow(page)
    upload_files(page, ("wide.png", encode_image(draw_image(200, 60))), ("tall.png", encode_image(draw_image(60, 200))))
    expect_answer(page, 200, 60)
    if width == 390:  # the page scrolled to the image and its answer
        expect(page.locator("figure.viewer")).to_be_in_viewport()
        expect(page.locator("#says .decision").or_(page.locator("#says .bars"))).not_to_have_count(0)
        expect(page.locator("#says section > *").first).to_be_in_viewport()
    widths = set()
    for name in TABS:
        assert page.get_by_role("tab", name=name).is_visible(), f"the tab {name} is in a menu"
        open_tab(page, name)
        if name in ("Segment", "Compare"):
            expect(page.locator("#says")).to_contain_text({"Segment": "lungs at", "Compare": "cnn at"}[name])
        check_no_overflow(page)
        widths.add(page.locator("main").bounding_box()["width"])
    assert len(widths) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_wcag_violation(visit, scheme):
    """Check WCAG 2.1 A and AA with axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(color_scheme=scheme)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}

    def violations(where: str) -> list[str]:
        settle(page)
        return [
            f"{where}: {violation['id']}: {node['failureSummary'][:300]} {node['html'][:120]}"
            for violation in axe.run(page, options=rules).response["violations"]
            for node in violation["nodes"]
        ]

    problems = violations("start")
    upload_files(page, ("frames.dcm", encode_ct(96, 90, frames=3)), ("b.png", encode_image(draw_image(60, 60))))
    expect_answer(page, 96, 90)
    problems += violations("Classify")
    select_option(page, "#method", "attention of one head")
    expect(page.locator("#says")).to_contain_text("Head 1")
    problems += violations("head")
    for name, sign in {"Segment": "lungs at", "Compare": "cnn at", "Batch": "", "About": ""}.items():
        open_tab(page, name)
        expect(page.locator("#says")).to_contain_text(sign) if sign else None
        if name == "Batch":
            upload_files(page, ("bad.txt", b"text"), ("b.png", encode_image(draw_image(60, 60))), to=BATCH_UPLOAD)
            expect(page.locator("#many")).to_contain_text(re.compile(r"b\s*\.png"))
            page.locator("#start").click()
            expect(page.get_by_role("link", name="Download CSV")).to_be_visible()
        problems += violations(name)
    open_tab(page, "Classify")
    upload_files(page, ("bad.png", b"text"))
    expect(page.get_by_role("alert").filter(has_text="That did not work")).to_be_visible()
    problems += violations("bad file")
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_keyboard_reaches_every_control(visit):
    """Tab reaches each control up to the viewer in page order, with a visible focus."""
    page = visit()
    order, shown = [], []
    for _ in range(40):
        page.keyboard.press("Tab")
        control, outline = page.evaluate(
            """() => {
              const at = document.activeElement, shown = at.closest("label:has(:focus-visible)") ?? at;
              const style = getComputedStyle(shown), wrap = getComputedStyle(at.closest(".wrap") ?? at);
              const id = at.closest("[id]:not([id^=component]):not([id^=html])")?.id ?? at.className;
              return [at.role === "tab" ? "tab" : at.getAttribute("role") === "tab" ? "tab" : id,
                      style.outlineStyle !== "none" || style.boxShadow !== "none" || wrap.boxShadow !== "none"];
            }"""
        )
        if control == "examples" and "examples" not in order:
            page.keyboard.press("Enter")
            expect_answer(page, 256, 256)
        order += [control] if control not in order else []
        shown.append((control, outline))
        if at_viewer := page.evaluate("document.activeElement.classList.contains('stages')"):
            break
    assert at_viewer
    wanted = ["upload", "examples", "tab", "classifier", "method", "label", "view"]
    assert [control for control in order if control in wanted] == wanted
    assert [control for control, seen in shown if not seen] == []
    page.keyboard.press("+")
    page.wait_for_function("document.querySelector('figure.viewer').hasAttribute('data-zoomed')")
