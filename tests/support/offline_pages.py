"""The pages that hf_medtl writes as files, of synthetic content."""

from pathlib import Path

import pytest

from hf_medtl.data import shortcuts
from hf_medtl.data.audit import audit
from hf_medtl.data.audit_page import write_audit
from hf_medtl.data.loading import survey
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.evaluation.marks import Axis, Line, Plot
from hf_medtl.report.blocks import Report, Section
from hf_medtl.report.page import render_page

HOSTILE = "<a href='https://elsewhere.example/label'>label</a>"


@pytest.fixture(scope="module")
def offline_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of a report with two plots and of an audit, by name of their template."""
    folder = tmp_path_factory.mktemp("pages")
    plots = [
        Plot(title, [Line(HOSTILE, [0, 0.5, 1], [0, 0.8, 1])], Axis("x"), Axis("y"), "9 images", HOSTILE, HOSTILE)
        for title in ("First", "Second")
    ]
    report = Report("Title", HOSTILE, {"task": HOSTILE}, ["run"], [Section("Plots", plots)])
    pages = {"report.html.jinja": folder / "report.html"}
    pages["report.html.jinja"].write_text(render_page(report), encoding="utf-8")
    data = survey("brain-phantoms", write_phantoms(folder / "brain", "brain", patients=6, images=2, size=64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "TREES", 2)
        findings = audit(data) | {"url": "https://example.org/data"}
    pages["audit.html.jinja"] = write_audit(data, findings, folder)
    unsafe = write_audit(data, findings | {"url": "javascript:alert(1)"}, folder / "unsafe")
    return pages | {"audit.html.jinja of an unsafe address": unsafe}
