"""Pages that hf_medtl writes or serves load nothing from elsewhere, and send nothing there."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_medtl.space.security.headers import HEADERS, POLICY
from tests.support.commands import ROOT
from tests.support.offline_pages import offline_pages as offline_pages

LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "ping", "background", "manifest", "xlink:href"}
OPENING = {"form", "iframe", "frame", "object", "embed", "base", "link", "applet", "portal"}
RECORDING = ("camera", "microphone", "display-capture", "clipboard-read", "geolocation")


class Elements(HTMLParser):
    """The elements of a page, as (name, attributes), and its style sheets."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.styles = " ".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def meta(self, key: str, name: str) -> str:
        """Return the content of the only <meta> of that name."""
        (content,) = [found["content"] for tag, found in self.elements if tag == "meta" and found.get(key) == name]
        return content or ""


def policy_of(text: str) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in text.split("; "))


def test_every_template_of_a_page_is_checked(offline_pages: dict[str, Path]):
    templates = {path.name for path in (ROOT / "hf_medtl").rglob("*.html*")}
    assert templates == {name for name in offline_pages if name.endswith(".jinja")} | {"views.html.jinja"}
    assert "<html" not in (ROOT / "hf_medtl/space/views.html.jinja").read_text(encoding="utf-8")  # parts of the Space


def test_written_pages_load_and_send_nothing(offline_pages: dict[str, Path]):
    for name, path in offline_pages.items():
        page = Elements(path.read_text(encoding="utf-8"))
        policy = policy_of(page.meta("http-equiv", "Content-Security-Policy"))
        refused = {"default-src", "connect-src", "base-uri", "form-action"}
        assert {directive: policy[directive] for directive in refused} == dict.fromkeys(refused, "'none'"), name
        assert not re.search(r"https?:|\*|'self'|unsafe-eval", str(policy)), name
        assert "unsafe-inline" not in policy.get("script-src", ""), name
        assert page.meta("name", "referrer") == "no-referrer", name
        first = [tag for tag, _ in page.elements].index("style")
        assert ("http-equiv", "Content-Security-Policy") in {
            pair for tag, found in page.elements[:first] if tag == "meta" for pair in found.items()
        }, name  # a policy is only valid for what comes after it
        assert not {tag for tag, _ in page.elements} & OPENING, name
        assert "url(" not in page.styles and "@import" not in page.styles, name
        for tag, found in page.elements:
            assert not [key for key in found if key.startswith("on")], (name, tag)
            assert "url(" not in (found.get("style") or ""), (name, tag)
            assert found.get("http-equiv", "Content-Security-Policy") == "Content-Security-Policy", name
            for key in LOADING & set(found):
                assert (found[key] or "").startswith("data:image/"), (name, tag, key)
            address = found.get("href") or "#"
            assert address.startswith("#") or (tag == "a" and re.fullmatch(r"https?://[^?#]+", address)), (
                name,
                address,
            )
            assert address.startswith("#") or found["rel"] == "noreferrer", (name, address)
    links = {
        name: [found["href"] for tag, found in Elements(path.read_text(encoding="utf-8")).elements if tag == "a"]
        for name, path in offline_pages.items()
    }
    assert links["audit.html.jinja"] == ["https://example.org/data"]  # documentation may be linked
    assert links["audit.html.jinja of an unsafe address"] == []


@pytest.mark.parametrize("feature", RECORDING)
def test_space_may_not_record(feature: str):
    assert f"{feature}=()" in HEADERS["Permissions-Policy"].split(", ")


def test_space_sends_nothing_elsewhere():
    assert {name: POLICY[name] for name in ("default-src", "connect-src", "form-action")} == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "form-action": "'none'",
    }
    sources = " ".join(value for name, value in POLICY.items() if name != "frame-ancestors")
    assert not re.search(r"https?:|\*|//", sources)
