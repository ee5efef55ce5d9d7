"""Playwright fixtures and page actions for browser tests of the Space."""

import shutil
import time
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

from tests.support.space_fixtures import run_server
from tests.support.space_samples import write_browser_models

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect, Page = sync_api.expect, sync_api.Page
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]
TABS = ("Classify", "Segment", "Compare", "Batch", "About")
UPLOAD, BATCH_UPLOAD = "#upload input[type=file]", "#many input[type=file]"
SECONDS = 20  # timeout of an answer, generous for loaded machines
expect.set_options(timeout=1000 * SECONDS)
RUNNING_REQUESTS: WeakKeyDictionary[Page, set] = WeakKeyDictionary()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the URL of a running Space of tiny models."""
    from hf_medtl.space.serve import create_app

    with run_server(
        create_app(write_browser_models(tmp_path_factory.mktemp("models")), limits={"posts_per_minute": 100_000})
    ) as url:
        yield url


@pytest.fixture(scope="module")
def browser(address):
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, address):
    """Return a function that opens the page; fail at the end on any browser error or request to another host."""
    problems, contexts = [], []

    def open_page(width: int = 1280, height: int = 900, **options) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        running = RUNNING_REQUESTS[page] = set()
        page.on("request", lambda request: running.add(request))
        page.on("requestfinished", lambda request: running.discard(request))
        page.on("requestfailed", lambda request: running.discard(request))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith((address, "data:", "blob:")) or problems.append(request.url),
        )
        page.on(
            "response", lambda response: response.status >= 400 and problems.append(f"{response.status} {response.url}")
        )
        page.goto(address)
        expect(page.locator("#examples button")).to_have_count(5)
        expect(page.locator("#method input")).to_have_value("Grad-CAM")
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.title() == "hf_medtl"  # labels and file names were not executed as HTML
        context.close()
    assert problems == []


def settle(page: Page) -> None:
    """Wait until all events of the page, including those that they trigger, are answered and all animations ended.

    An answer is dimmed while an event runs. The selection of the first tab is such an event, after the page has loaded.
    """
    end, quiet = time.monotonic() + SECONDS, 0
    while quiet < 3:  # the page triggers the next event after it has shown an answer
        assert time.monotonic() < end, "the page does not settle"
        page.evaluate(
            """async () => {
              const running = document.getAnimations().filter((each) => each.playState === "running");
              await Promise.allSettled(running.map((each) => each.finished));
              await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)));
            }"""
        )
        busy = any("/heartbeat/" not in request.url for request in RUNNING_REQUESTS[page])
        quiet = 0 if busy else quiet + 1


def upload_files(page: Page, *files: tuple[str, bytes], to: str = UPLOAD) -> None:
    page.set_input_files(to, [{"name": name, "mimeType": "", "buffer": content} for name, content in files])


def expect_answer(page: Page, width: int, height: int) -> None:
    """Wait for the answer to the image of this size."""
    expect(page.locator("#says")).to_contain_text(f"{width} × {height} pixels")


def open_example(page: Page, number: int = 0) -> None:
    page.locator("#examples button").nth(number).click()
    expect_answer(page, 256, 256)


def select_option(page: Page, control: str, option: str) -> None:
    page.locator(f"{control} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def expect_change(page: Page, action, selector: str = ".viewer .base") -> None:
    """Run `action` and wait until the image at `selector` changes."""
    before = page.locator(selector).first.get_attribute("src")
    action()
    expect(page.locator(selector).first).not_to_have_attribute("src", before)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    if name in ("Batch", "About"):
        expect(page.locator("#picture")).to_be_hidden()
    else:
        expect(page.locator("#picture")).to_be_visible()


def centre(locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def download(page: Page, link: str, name: str) -> bytes:
    with page.expect_download() as event:
        page.get_by_role("link", name=link).click()
    assert event.value.suggested_filename == name
    return Path(event.value.path()).read_bytes()


def check_no_overflow(page: Page) -> None:
    """Assert that no element makes the page wider than the window or extends beyond its edges."""
    width, visible_width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= visible_width
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((each) => {
          const box = each.getBoundingClientRect();
          return each.checkVisibility({ visibilityProperty: true }) && box.width > 1 && box.right > innerWidth + 1
            && !each.closest(".scroll, .unseen, .visually-hidden, .stages, .toast-wrap");
        }).map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert beyond == []
