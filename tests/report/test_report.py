"""Reports of runs: what they say is what was measured, whatever labels are called, and nothing else is in them."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.ndimage import binary_erosion

from hf_medtl import MedtlError, audit, run, survey
from hf_medtl.data.audit import verdicts
from hf_medtl.evaluation.evaluate import results, results_of_masks, results_of_several
from hf_medtl.evaluation.names import NAMES
from hf_medtl.publish.templates import interval
from hf_medtl.report.build import NOTICE
from hf_medtl.report.images import PREDICTED, TRUE, outlined
from hf_medtl.report.write import write_report
from tests.support.commands import ROOT, typed
from tests.support.segmentation_runs import recipe as recipe_of_masks

LABELS = ("no <b>lesion</b>", "lesion $x_1$ & </script><script>alert(1)</script>")


def write_run(folder: Path, seed: int = 0, labels=LABELS, n: int = 60, train: int = 100, **more: object) -> Path:
    """A finished run of one label a picture, without weights and pictures; two pictures a group."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) // 2 % len(labels)
    logits = np.eye(len(labels))[truth] * 1.5 + rng.normal(0, 1, (n, len(labels)))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = [f"g{i // 2:04d}" for i in range(n)]
    positive, cut = (labels[1], 0.4) if len(labels) == 2 else (None, None)
    result = {"dataset": "brain-tumor-mri", "task": "image-classification", "split": "test"}
    result |= results(truth, chances, groups, labels, positive, cut)
    result |= {"temperature": 1.25, "train_seconds": 12.3, "threshold_rule": cut and "youden"} | more
    names = [f"{labels[k].split()[0]}/{i}.png" for i, k in enumerate(truth)]
    table = pd.DataFrame({"image_id": names, "label": np.array(labels)[truth], "group": groups})
    folder.mkdir(parents=True)
    table.assign(**{f"p_{name}": chances[:, k] for k, name in enumerate(labels)}).to_csv(
        folder / "predictions.csv", index=False
    )
    seen = pd.DataFrame({"image_id": [f"t{i}" for i in range(train)], "label": labels[0], "split": "train",
                         "group": [f"t{i}" for i in range(train)]})  # fmt: skip
    splits = pd.concat([table.assign(split="test"), seen]).assign(patient="", path="a.png", sha256="0")
    splits.to_csv(folder / "splits.csv", index=False)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": f"model-{seed % 2}"}))
    (folder / "results.json").write_text(json.dumps(result))
    return folder


def write_folds(folder: Path, seed: int) -> Path:
    """Two folds and what they say together."""
    singles = [write_run(folder / f"fold-{k}", seed + k) for k in (0, 1)]
    tables = []
    for k, single in enumerate(singles):
        table = pd.read_csv(single / "predictions.csv")
        tables.append(table.assign(image_id=[f"{k}-{name}" for name in table["image_id"]],
                                   group=[f"{k}-{name}" for name in table["group"]], fold=k))  # fmt: skip
    table = pd.concat(tables)
    table.to_csv(folder / "predictions.csv", index=False)
    found = [json.loads((single / "results.json").read_text()) for single in singles]
    truth = table["label"].map(LABELS.index).to_numpy()
    chances = table[[f"p_{name}" for name in LABELS]].to_numpy()
    cuts = np.array([one["threshold"] for one in found])[table["fold"]]
    pooled = results(truth, chances, table["group"].tolist(), LABELS, LABELS[1], cuts)
    means = {
        name: {"value": its["value"], "lowest": its["value"], "highest": its["value"]}
        for name, its in found[0]["metrics"].items()
    }
    shown = ("n", "n_groups", "threshold", "temperature", "metrics")
    pooled |= {"folds": [{"fold": k} | {key: one[key] for key in shown} for k, one in enumerate(found)],
               "mean_over_folds": means, "dataset": "brain-tumor-mri", "task": "image-classification"}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(pooled))
    return folder


def write_masks(folder: Path, seed: int = 0) -> Path:
    """A finished run of masks, without weights and pictures."""
    rng = np.random.default_rng(seed)
    n = 24
    table = pd.DataFrame({
        "image_id": [f"{i}.png" for i in range(n)], "label": "a", "source": np.where(np.arange(n) % 3, "<i>A</i>", "B"),
        "group": [f"g{i // 2}" for i in range(n)],
        **{name: rng.uniform(0.7, 1, n) for name in ("dice", "iou", "precision", "recall")},
        "hausdorff95": rng.uniform(1, 9, n), "both_empty": 0.0, "one_empty": 0.0,
    })  # fmt: skip
    folder.mkdir(parents=True)
    table.to_csv(folder / "predictions.csv", index=False)
    result = {"dataset": "lung-masks", "task": "image-segmentation", "split": "test"}
    result |= results_of_masks(table, ["background", "lungs"], {})
    (folder / "results.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """Tables, headings, pictures and plots of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.images: list[dict[str, str]] = []
        self.plots: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        its = dict(attrs)
        self.addresses += [its[key] for key in ("src", "href") if its.get(key)]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(its)
        if its.get("class") == "plot":
            self.plots.append(its)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables.setdefault(self._caption, self._rows)
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._open or "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"th", "td"} & {*self._open}:
            self._rows[-1][-1] += data

    @property
    def figures(self) -> dict:
        island = re.search(r'<script type="application/json" id="figures">(.*?)</script>', self.html, re.S)
        return json.loads(island[1])


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[list[Path], Path]:
    """Three runs on the same pictures, learnt from different numbers of them, and their page."""
    place = tmp_path_factory.mktemp("reports")
    sizes = (50, 100, 200)
    runs = [write_run(place / f"run-{size}", seed, train=size) for seed, size in enumerate(sizes)]
    write_report(runs, place / "report.html")
    return runs, place


def test_the_numbers_are_those_of_results_json(three):
    runs, place = three
    page = Page(place / "report.html")
    first = json.loads((runs[0] / "results.json").read_text())["metrics"]
    shown = {row[0]: row[1] for row in page.tables["Metrics"][1:]}
    assert shown == {NAMES[name]: interval(its) for name, its in first.items()}
    head, *rows = page.tables["Side by side"]
    assert head == ["metric", "run-50", "run-100", "run-200"]
    for place_in_row, folder in enumerate(runs, 1):
        its = json.loads((folder / "results.json").read_text())["metrics"]
        assert {row[0]: row[place_in_row] for row in rows} == {NAMES[name]: interval(x) for name, x in its.items()}
    one, other = (json.loads((folder / "results.json").read_text())["metrics"]["roc_auc"] for folder in runs[:2])
    gain = next(row[1] for row in page.tables["Paired differences"] if row[0] == "ROC AUC")
    assert gain.startswith(f"{other['value'] - one['value']:+.3f}".replace("-", "−"))


def test_a_page_is_whole_small_and_calls_nobody(three):
    _, place = three
    page = Page(place / "report.html")
    assert (place / "report.html").stat().st_size < 8e6
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "default-src 'none'" in page.html
    assert str(place) not in page.html
    assert NOTICE in page.text
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.plots) > 10
    for plot in page.plots:
        assert plot["role"] == "img"
        assert len(plot["aria-label"]) > 20
    captions = re.findall(r"</div>\n<figcaption>(.*?)<noscript>", page.html)
    assert len(captions) == len(page.plots)
    assert all(re.search(r"\d+ (test |validation )?pictures", caption) for caption in captions)
    assert "place of the data was not given" in page.text


def test_labels_are_text_and_no_code(three):
    _, place = three
    page = Page(place / "report.html")
    assert "<script>alert" not in page.html
    assert "<b>lesion" not in page.html
    assert LABELS[1] in page.text
    named = [trace.get("name", "") for figure in page.figures.values() for trace in figure["data"]]
    assert any("&lt;/script&gt;" in name for name in named)
    assert not any("<" in name for name in named)


def test_plots_are_what_plotly_knows(three):
    import plotly.graph_objects as go

    _, place = three
    raw = json.dumps(Page(place / "report.html").figures)
    for figure in json.loads(re.sub(r"var\(--[a-z-]+\)", "#0072b2", raw)).values():
        go.Figure(figure)  # raises for a key or value that is not of plotly's schema


def test_a_learning_curve_where_runs_learnt_from_different_numbers(three):
    _, place = three
    page = Page(place / "report.html")
    label = next(plot for plot in page.plots if plot["aria-label"].startswith("Learning curve"))
    points = [trace for trace in page.figures[label["id"]]["data"] if trace["mode"] == "markers"]
    assert {trace["name"]: trace["x"] for trace in points} == {"model-0": [50, 200], "model-1": [100]}


def test_slides_and_pdf_say_the_same(three, tmp_path):
    from pptx import Presentation

    runs = three[0][:2]
    write_report(runs, tmp_path / "report.html", tmp_path / "report.pptx", tmp_path / "report.pdf")
    show = Presentation(tmp_path / "report.pptx")
    titles = [slide.shapes.title.text for slide in show.slides]
    assert {f"Run {folder.name}" for folder in runs} <= {*titles}
    assert titles[-1] == "Limits"
    for slide in show.slides:
        assert NOTICE in [s.text_frame.text for s in slide.shapes if s.has_text_frame]
    table = next(s.table for slide in show.slides for s in slide.shapes if s.has_table)
    metrics = json.loads((runs[0] / "results.json").read_text())["metrics"]
    assert table.cell(1, 1).text == interval(metrics["accuracy"])
    pictures = [s for slide in show.slides for s in slide.shapes if s.shape_type == 13]
    assert len(pictures) >= 6
    assert all(len(s._element.nvPicPr.cNvPr.get("descr")) > 20 for s in pictures)
    for slide in show.slides:
        for s in slide.shapes:
            assert s.top + s.height <= show.slide_height + 914400 * 0.3, (slide.shapes.title.text, s.name)
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", pdf)) > 8
    assert b"/Outlines" in pdf


def test_folds_against_folds(tmp_path):
    runs = [write_folds(tmp_path / "a", 0), write_folds(tmp_path / "b", 5)]
    shuffled = pd.read_csv(runs[1] / "predictions.csv").iloc[::-1]  # folds of another seed come in another order
    shuffled.to_csv(runs[1] / "predictions.csv", index=False)
    pooled = json.loads((runs[0] / "results.json").read_text())
    pooled["folds"][0]["metrics"]["roc_auc"] = {"value": None, "low": None, "high": None}  # one label is not in it
    (runs[0] / "results.json").write_text(json.dumps(pooled))
    write_report(runs, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.tables["Each fold"][1][3] == "undefined"
    assert [row[0] for row in page.tables["Each fold"][1:]] == ["0", "1"]
    assert len(page.tables["Paired differences"]) == 1 + 10  # not of the calibration error
    assert "own thresholds" in page.html
    assert "neither a checkpoint nor its figure" in page.text


def test_other_pictures_have_no_differences(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", n=40)]
    write_report([*runs, write_masks(tmp_path / "c")], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "no other of these runs was tested on: a, b, c." in page.text
    assert "Paired differences" not in page.text
    assert [row[0] for row in page.tables["Runs"][1:]] == ["a", "b", "c"]


def test_masks(tmp_path):
    runs = [write_masks(tmp_path / "a"), write_masks(tmp_path / "b", 1)]
    write_report(runs, tmp_path / "report.html", tmp_path / "report.pptx", tmp_path / "report.pdf")
    page = Page(tmp_path / "report.html")
    result = json.loads((runs[0] / "results.json").read_text())
    rows = {row[0]: row for row in page.tables["By source"][1:]}
    assert rows["<i>A</i>"][3] == interval(result["by_source"]["<i>A</i>"]["metrics"]["dice"])
    assert len(page.tables["Paired differences"]) == 1 + 5
    dots = next(p for p in page.plots if p["aria-label"].startswith("Dice by source"))
    assert len(page.figures[dots["id"]]["data"][0]["y"]) == 24


def test_several_labels_a_picture_and_many_labels(tmp_path):
    rng = np.random.default_rng(0)
    has = rng.random((60, 3)) < 0.4
    chances = np.clip(has * 0.5 + rng.random((60, 3)) * 0.5, 0.01, 0.99)
    names, groups = ["a", "b", "c"], [str(i // 2) for i in range(60)]
    result = {"dataset": "table", "task": "image-classification", "split": "test", "temperature": 1.1}
    result |= results_of_several(has, chances, groups, dict.fromkeys(names, 0.5))
    cells = ["|".join(name for name, yes in zip(names, row, strict=True) if yes) for row in has]
    table = pd.DataFrame({"image_id": [f"{i}" for i in range(60)], "label": cells, "group": groups})
    (tmp_path / "several").mkdir()
    table.assign(**{f"p_{name}": chances[:, k] for k, name in enumerate(names)}).to_csv(
        tmp_path / "several" / "predictions.csv", index=False
    )
    (tmp_path / "several" / "results.json").write_text(json.dumps(result))
    many = write_run(tmp_path / "many", labels=("one", "two", "three", "four"))
    write_report([tmp_path / "several", many], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert [row[0] for row in page.tables["Each label"][1:]] == names
    assert page.tables["Thresholds"][1][1] == "0.500"
    assert [row[0] for row in page.tables["ROC AUC of each label"][1:]] == ["one", "two", "three", "four"]
    assert page.tables["Confusion matrix"][0][1:] == ["one", "two", "three", "four"]


def test_a_real_run_with_its_pictures(finished, phantoms, tmp_path):
    folder = tmp_path / "finished"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.pt"))
    found = survey("brain-phantoms", phantoms)
    findings = audit(found)
    (folder / "audit.json").write_text(json.dumps(findings))
    printed = typed("report", folder, "--out", tmp_path / "r.html", "--data_dir", phantoms)
    assert f"{tmp_path / 'r.html'}: " in printed
    page = Page(tmp_path / "r.html")
    assert len(page.images) >= 6
    known = {*pd.read_csv(finished / "predictions.csv")["image_id"]}
    for image in page.images:
        assert image["alt"].split(":")[0] in known
        its = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert its.format == "JPEG"
        assert not its.getexif()
        assert max(its.size) <= 200
    result = json.loads((finished / "results.json").read_text())
    sets = {row[0]: row[1] for row in page.tables["Conformal sets and abstention"][1:]}
    assert sets["Abstained: no label, or several"] == interval(result["conformal"]["abstained"])
    assert page.tables["Outliers"][1][1] == interval(result["outliers"]["test"])
    assert any(plot["aria-label"].startswith("Validation ROC AUC") for plot in page.plots)
    assert [tuple(row) for row in page.tables["Data audit"][1:]] == verdicts(findings)
    assert str(phantoms) not in page.html
    assert str(tmp_path) not in page.html


def test_pictures_of_other_data_are_not_shown_and_it_is_said(finished, phantoms, tmp_path, caplog):
    other = shutil.copytree(phantoms, tmp_path / "secret-place")
    for path in sorted((other / "lesion").iterdir())[:3]:
        Image.new("L", (64, 64), 7).save(path)
    write_report([finished], tmp_path / "r.html", data_dir=[f"brain-phantoms={other}"])
    page = Page(tmp_path / "r.html")
    assert not page.images
    assert "are not those of this run" in page.text
    assert "secret-place" not in page.html
    assert "its pictures are not shown" in caplog.text


def test_outlines_of_a_real_run(chests, tmp_path):
    done = run(recipe_of_masks(chests, tmp_path / "run", num_train_epochs=1))
    write_report([done], tmp_path / "r.html", data_dir=[str(chests)])
    page = Page(tmp_path / "r.html")
    assert len(page.images) == 8
    dice = pd.read_csv(done / "predictions.csv")["dice"]
    shown = [float(re.search(r"Dice ([\d.]+)", image["alt"])[1]) for image in page.images]
    assert min(shown) == pytest.approx(dice.min(), abs=1e-3)
    assert max(shown) == pytest.approx(dice.max(), abs=1e-3)
    assert "(now" not in page.text  # predicted anew, the masks are those that were measured
    (done / "model.safetensors").unlink()
    write_report([done], tmp_path / "r.html", data_dir=[str(chests)])
    assert "No outlines" in Page(tmp_path / "r.html").text


def test_outlines_lie_on_the_edges_of_masks():
    true, predicted = np.zeros((2, 60, 80), np.uint8)
    true[10:40, 10:40], predicted[20:50, 45:75] = 1, 1
    canvas = np.asarray(outlined(Image.new("RGB", (80, 60)), (true, predicted)))
    for mask, colour in ((true, TRUE), (predicted, PREDICTED)):
        drawn = (canvas == colour).all(axis=2)
        edge = (mask > 0) & ~binary_erosion(mask > 0)
        assert drawn[edge].all()
        assert not drawn[mask == 0].any()
        assert drawn.sum() < mask.sum() / 2


def test_what_is_no_run_is_refused(tmp_path, three, monkeypatch):
    runs, _ = three
    out = tmp_path / "r.html"
    with pytest.raises(MedtlError, match="no finished run"):
        write_report([tmp_path], out)
    with pytest.raises(MedtlError, match=r"ends with \.pdf"):
        write_report(runs, out, pdf=tmp_path / "r.html")
    with pytest.raises(MedtlError, match="given twice"):
        write_report([runs[0], runs[0]], out)
    with pytest.raises(MedtlError, match="two places"):
        write_report(runs, out, data_dir=["a", "b"])
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MedtlError, match=r"hf_medtl\[report\]"):
        write_report(runs[:1], out)
    assert not out.exists()


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts_are_those_of_wcag_aa():
    css = (ROOT / "hf_medtl" / "report" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css[a:b]))
                   for a, b in ((0, css.index("@media")), (css.index("@media"), css.index("* {"))))  # fmt: skip
    for colours in (light, dark):
        for text in ("ink", "soft", "link", "right", "wrong"):
            assert contrast(colours[text], colours["paper"]) >= 4.5, text
            assert contrast(colours[text], colours["tint"]) >= 4.5, text
        assert contrast(colours["notice-ink"], colours["notice"]) >= 4.5
        for line in ("blue", "orange", "green", "purple", "sky", "yellow", "grey"):
            assert contrast(colours[line], colours["paper"]) >= 3, line


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_in_a_browser(three, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium is installed")
    _, place = three
    said, asked = [], []
    with playwright.sync_playwright() as its:
        browser = its.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((place / "report.html").as_uri())
        tab.wait_for_function("document.querySelectorAll('.plot:not(:has(svg.main-svg))').length === 0")
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [(place / "report.html").as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        clipped = tab.evaluate(
            """[...document.querySelectorAll('.plot')].flatMap((plot) => {
              const box = plot.getBoundingClientRect();
              const outside = (r) =>
                r.width && (r.left < box.left - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 1);
              const texts = [...plot.querySelectorAll('svg text')];
              return texts.filter((t) => outside(t.getBoundingClientRect())).map((t) => t.textContent);
            })"""
        )
        assert clipped == []
        legend = tab.evaluate("[...document.querySelectorAll('.legendtext')].map((text) => text.textContent)")
        assert any(LABELS[0] in words for words in legend)  # as it is, not in bold
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")
        axis = tab.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert axis == ("rgb(27, 36, 48)" if scheme == "light" else "rgb(232, 236, 240)")
        browser.close()
