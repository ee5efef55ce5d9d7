"""Tests of reports: numbers equal those of the runs, labels are escaped, and no paths or metadata leak."""

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
from hf_medtl.data.audit_page import verdicts
from hf_medtl.data.specs import DATASETS
from hf_medtl.evaluation.evaluate import classification_results, multilabel_results, segmentation_results
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.publish.templates import format_interval
from hf_medtl.report.blocks import NOTICE
from hf_medtl.report.build import write_report
from hf_medtl.report.images import PREDICTED, TRUE, draw_outlines
from tests.support.commands import ROOT, run_cli
from tests.support.segmentation_runs import segmentation_recipe

LABELS = ("no <b>lesion</b>", "lesion $x_1$ & </script><script>alert(1)</script>")


def write_run(folder: Path, seed: int = 0, labels=LABELS, n: int = 60, train: int = 100, **overrides: object) -> Path:
    """Write a finished run with one label per image and two images per group, without weights and images."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) // 2 % len(labels)
    logits = np.eye(len(labels))[truth] * 1.5 + rng.normal(0, 1, (n, len(labels)))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = [f"g{i // 2:04d}" for i in range(n)]
    positive, cut = (labels[1], 0.4) if len(labels) == 2 else (None, None)
    result = {"dataset": "brain-tumor-mri", "task": "image-classification", "split": "test"}
    result |= classification_results(truth, probabilities, groups, labels, positive, cut)
    result |= {"temperature": 1.25, "train_seconds": 12.3, "threshold_rule": cut and "youden"} | overrides
    names = [f"{labels[k].split()[0]}/{i}.png" for i, k in enumerate(truth)]
    table = pd.DataFrame({"image_id": names, "label": np.array(labels)[truth], "group": groups})
    folder.mkdir(parents=True)
    table.assign(**{f"p_{name}": probabilities[:, k] for k, name in enumerate(labels)}).to_csv(
        folder / "predictions.csv", index=False
    )
    train_rows = pd.DataFrame({"image_id": [f"t{i}" for i in range(train)], "label": labels[0], "split": "train",
                         "group": [f"t{i}" for i in range(train)]})  # fmt: skip
    splits = pd.concat([table.assign(split="test"), train_rows]).assign(patient="", path="a.png", sha256="0")
    splits.to_csv(folder / "splits.csv", index=False)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": f"model-{seed % 2}"}))
    (folder / "results.json").write_text(json.dumps(result))
    return folder


def write_folds(folder: Path, seed: int) -> Path:
    """Write two folds and their pooled results."""
    singles = [write_run(folder / f"fold-{k}", seed + k) for k in (0, 1)]
    tables = []
    for k, single in enumerate(singles):
        table = pd.read_csv(single / "predictions.csv")
        tables.append(table.assign(image_id=[f"{k}-{name}" for name in table["image_id"]],
                                   group=[f"{k}-{name}" for name in table["group"]], fold=k))  # fmt: skip
    table = pd.concat(tables)
    table.to_csv(folder / "predictions.csv", index=False)
    splits = table[["image_id", "label", "group"]].assign(split="test", patient="", path="a.png", sha256="0")
    for single in singles:  # each fold's splits.csv has all images
        splits.to_csv(single / "splits.csv", index=False)
    fold_results = [json.loads((single / "results.json").read_text()) for single in singles]
    truth = table["label"].map(LABELS.index).to_numpy()
    probabilities = table[[f"p_{name}" for name in LABELS]].to_numpy()
    cuts = np.array([fold_result["threshold"] for fold_result in fold_results])[table["fold"]]
    pooled = classification_results(truth, probabilities, table["group"].tolist(), LABELS, LABELS[1], cuts)
    means = {
        name: {"value": metric["value"], "lowest": metric["value"], "highest": metric["value"]}
        for name, metric in fold_results[0]["metrics"].items()
    }
    keys = ("n", "n_groups", "threshold", "temperature", "metrics")
    pooled |= {
        "folds": [{"fold": k} | {key: fold_result[key] for key in keys} for k, fold_result in enumerate(fold_results)],
        "mean_over_folds": means,
        "dataset": "brain-tumor-mri",
        "task": "image-classification",
    }
    (folder / "results.json").write_text(json.dumps(pooled))
    return folder


def write_masks(folder: Path, seed: int = 0, surface: bool = True) -> Path:
    """Write a finished segmentation run, without weights and images; older ones have no surface Dice."""
    rng = np.random.default_rng(seed)
    n = 24
    table = pd.DataFrame({
        "image_id": [f"{i}.png" for i in range(n)], "label": "a", "source": np.where(np.arange(n) % 3, "<i>A</i>", "B"),
        "group": [f"g{i // 2}" for i in range(n)],
        **{name: rng.uniform(0.7, 1, n) for name in ("dice", "iou", "precision", "recall")},
        "hausdorff95": rng.uniform(1, 9, n), "both_empty": 0.0, "one_empty": 0.0,
    })  # fmt: skip
    if surface:
        table["surface_dice"], table["surface_tolerance"] = rng.uniform(0.7, 1, n), "3 pixels"
    folder.mkdir(parents=True)
    table.to_csv(folder / "predictions.csv", index=False)
    result = {"dataset": "lung-masks", "task": "image-segmentation", "split": "test"}
    result |= segmentation_results(table, ["background", "lungs"], {})
    (folder / "results.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """Parser for tables, headings, images and plots of a page."""

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
        attributes = dict(attrs)
        self.addresses += [attributes[key] for key in ("src", "href") if attributes.get(key)]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attributes)
        if attributes.get("class") == "plot":
            self.plots.append(attributes)
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
def three_runs(tmp_path_factory) -> tuple[list[Path], Path]:
    """Write three runs on the same test images, trained on different numbers of images, and their report."""
    folder = tmp_path_factory.mktemp("reports")
    sizes = (50, 100, 200)
    runs = [write_run(folder / f"run-{size}", seed, train=size) for seed, size in enumerate(sizes)]
    write_report(runs, folder / "report.html")
    return runs, folder


@pytest.mark.slow
def test_numbers_are_those_of_results_json(three_runs):
    runs, folder = three_runs
    page = Page(folder / "report.html")
    expected = json.loads((runs[0] / "results.json").read_text())["metrics"]
    reported = {row[0]: row[1] for row in page.tables["Metrics"][1:]}
    assert reported == {METRIC_NAMES[name]: format_interval(metric) for name, metric in expected.items()}
    head, *rows = page.tables["Side by side"]
    assert head == ["metric", "run-50", "run-100", "run-200"]
    for column, run_folder in enumerate(runs, 1):
        metrics = json.loads((run_folder / "results.json").read_text())["metrics"]
        assert {row[0]: row[column] for row in rows} == {
            METRIC_NAMES[name]: format_interval(metric) for name, metric in metrics.items()
        }
    metric_a, metric_b = (json.loads((path / "results.json").read_text())["metrics"]["roc_auc"] for path in runs[:2])
    difference = next(row[1] for row in page.tables["Paired differences"] if row[0] == "ROC AUC")
    assert difference.startswith(f"{metric_b['value'] - metric_a['value']:+.3f}")


def test_page_is_self_contained_and_accessible(three_runs):
    _, folder = three_runs
    page = Page(folder / "report.html")
    assert (folder / "report.html").stat().st_size < 8e6
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "default-src 'none'" in page.html
    assert str(folder) not in page.html
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
    assert all(re.search(r"\d+ (test |validation )?images", caption) for caption in captions)
    assert "location of the data was not given" in page.text


def test_labels_are_escaped(three_runs):
    _, folder = three_runs
    page = Page(folder / "report.html")
    assert "<script>alert" not in page.html
    assert "<b>lesion" not in page.html
    assert LABELS[1] in page.text
    named = [trace.get("name", "") for figure in page.figures.values() for trace in figure["data"]]
    assert any("&lt;/script&gt;" in name for name in named)
    assert not any("<" in name for name in named)


def test_plots_follow_the_schema_of_plotly(three_runs):
    import plotly.graph_objects as go

    _, folder = three_runs
    raw = json.dumps(Page(folder / "report.html").figures)
    for figure in json.loads(re.sub(r"var\(--[a-z-]+\)", "#0072b2", raw)).values():
        go.Figure(figure)  # raises for a key or value that is not of plotly's schema


def test_learning_curve_of_runs_with_different_training_sizes(three_runs):
    _, folder = three_runs
    page = Page(folder / "report.html")
    label = next(plot for plot in page.plots if plot["aria-label"].startswith("Learning curve"))
    points = [trace for trace in page.figures[label["id"]]["data"] if trace["mode"] == "markers"]
    assert {trace["name"]: trace["x"] for trace in points} == {"model-0": [50, 200], "model-1": [100]}


@pytest.mark.slow
def test_slides_and_pdf_have_the_same_content(three_runs, tmp_path):
    from pptx import Presentation

    runs = three_runs[0][:2]
    write_report(runs, tmp_path / "report.html", tmp_path / "report.pptx", tmp_path / "report.pdf")
    show = Presentation(tmp_path / "report.pptx")
    titles = [slide.shapes.title.text for slide in show.slides]
    assert {f"Run {folder.name}" for folder in runs} <= {*titles}
    assert titles[-1] == "Limits"
    for slide in show.slides:
        assert NOTICE in [s.text_frame.text for s in slide.shapes if s.has_text_frame]
    table = next(s.table for slide in show.slides for s in slide.shapes if s.has_table)
    metrics = json.loads((runs[0] / "results.json").read_text())["metrics"]
    assert table.cell(1, 1).text == format_interval(metrics["accuracy"])
    images = [s for slide in show.slides for s in slide.shapes if s.shape_type == 13]
    assert len(images) >= 6
    assert all(len(s._element.nvPicPr.cNvPr.get("descr")) > 20 for s in images)
    for slide in show.slides:
        for s in slide.shapes:
            assert s.top + s.height <= show.slide_height + 914400 * 0.3, (slide.shapes.title.text, s.name)
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", pdf)) > 8
    assert b"/Outlines" in pdf


@pytest.mark.slow
def test_compares_cross_validations(tmp_path):
    runs = [write_folds(tmp_path / "a", 0), write_folds(tmp_path / "b", 5)]
    shuffled = pd.read_csv(runs[1] / "predictions.csv").iloc[::-1]  # folds of another seed have another order
    shuffled.to_csv(runs[1] / "predictions.csv", index=False)
    pooled = json.loads((runs[0] / "results.json").read_text())
    pooled["folds"][0]["metrics"]["roc_auc"] = {"value": None, "low": None, "high": None}  # without one label
    (runs[0] / "results.json").write_text(json.dumps(pooled))
    write_report(runs, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.tables["Each fold"][1][3] == "undefined"
    assert [row[0] for row in page.tables["Each fold"][1:]] == ["0", "1"]
    assert len(page.tables["Paired differences"]) == 1 + 10  # all but the calibration error
    assert "own thresholds" in page.html
    assert "neither a checkpoint nor its figure" in page.text


def test_runs_with_other_test_images_are_not_compared(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", n=40)]
    write_report([*runs, write_masks(tmp_path / "c", surface=False)], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "no other of these runs was tested on: a, b, c." in page.text
    assert "Paired differences" not in page.text
    assert [row[0] for row in page.tables["Runs"][1:]] == ["a", "b", "c"]


@pytest.mark.slow
def test_segmentation_runs_have_mask_metrics(tmp_path):
    runs = [write_masks(tmp_path / "a"), write_masks(tmp_path / "b", 1)]
    write_report(runs, tmp_path / "report.html", tmp_path / "report.pptx", tmp_path / "report.pdf")
    page = Page(tmp_path / "report.html")
    result = json.loads((runs[0] / "results.json").read_text())
    rows = {row[0]: row for row in page.tables["By source"][1:]}
    assert rows["<i>A</i>"][3] == format_interval(result["by_source"]["<i>A</i>"]["metrics"]["dice"])
    assert len(page.tables["Paired differences"]) == 1 + 6
    assert "both outlines within 3 pixels of the other" in page.text
    dots = next(p for p in page.plots if p["aria-label"].startswith("Dice by source"))
    assert len(page.figures[dots["id"]]["data"][0]["y"]) == 24


@pytest.mark.slow
def test_multilabel_and_multiclass_runs_have_label_tables(tmp_path):
    rng = np.random.default_rng(0)
    has = rng.random((60, 3)) < 0.4
    probabilities = np.clip(has * 0.5 + rng.random((60, 3)) * 0.5, 0.01, 0.99)
    names, groups = ["a", "b", "c"], [str(i // 2) for i in range(60)]
    result = {"dataset": "table", "task": "image-classification", "split": "test", "temperature": 1.1}
    result |= multilabel_results(has, probabilities, groups, dict.fromkeys(names, 0.5))
    cells = ["|".join(name for name, yes in zip(names, row, strict=True) if yes) for row in has]
    table = pd.DataFrame({"image_id": [f"{i}" for i in range(60)], "label": cells, "group": groups})
    (tmp_path / "multilabel").mkdir()
    table.assign(**{f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}).to_csv(
        tmp_path / "multilabel" / "predictions.csv", index=False
    )
    (tmp_path / "multilabel" / "results.json").write_text(json.dumps(result))
    multiclass = write_run(tmp_path / "many", labels=("one", "two", "three", "four"))
    write_report([tmp_path / "multilabel", multiclass], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert [row[0] for row in page.tables["Each label"][1:]] == names
    assert page.tables["Thresholds"][1][1] == "0.500"
    assert [row[0] for row in page.tables["ROC AUC of each label"][1:]] == ["one", "two", "three", "four"]
    assert page.tables["Confusion matrix"][0][1:] == ["one", "two", "three", "four"]


def test_report_shows_verdict_on_heatmaps_intended_use_licence_and_title(tmp_path):
    folder = write_run(tmp_path / "run")
    write_report([folder], tmp_path / "bare.html")
    bare = Page(tmp_path / "bare.html")
    assert "heatmaps were not examined" in bare.text
    assert "states neither the intended use nor the limits" in bare.text
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n# run\n\n## Intended use\n\nTeaching **only**.\n\n- Not for <b>patients</b>.\n\n"
        "## Limits\n\nOne hospital.\n\n## Other\n\nHidden.\n",
        encoding="utf-8",
    )
    summary = "The heatmaps of gradcam pass all 5 checks. Warning: 52% lies at the border."
    verdict = {"checks": {name: {} for name in "abcde"}, "failed": ["a"], "summary": summary}
    (folder / "explanations.json").write_text(
        json.dumps({"method": "gradcam", "n": 9, "verdict": {LABELS[1]: verdict}})
    )
    (folder / "explanations").mkdir()
    for name in ("mean_maps", "least_certain"):
        Image.new("RGB", (3000, 1500)).save(folder / "explanations" / f"{name}.png")
    write_report([folder], tmp_path / "r.html", title="Thesis <1>")
    page = Page(tmp_path / "r.html")
    assert [tuple(row) for row in page.tables["Verdict on the heatmaps"][1:]] == [(LABELS[1], "4 of 5", summary)]
    assert len(page.images) == 1  # single images only with --data_dir
    assert "No images with heatmaps" in page.text
    assert "Teaching only." in page.text
    assert "Not for <b>patients</b>." in page.text
    assert "One hospital." in page.text
    assert "Hidden." not in page.text
    assert dict(page.tables["Licences"][1:]) == {"data": DATASETS["brain-tumor-mri"].licence, "this model": "mit"}
    assert "Thesis <1>" in page.text


@pytest.mark.slow
def test_report_shows_test_images_without_metadata(finished_run, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_medtl.data.shortcuts.TREES", 5)
    folder = tmp_path / "finished"
    shutil.copytree(finished_run, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.pt"))
    findings = audit(survey("brain-phantoms", phantoms))
    (folder / "audit.json").write_text(json.dumps(findings))
    printed = run_cli("report", folder, "--out", tmp_path / "r.html", "--data_dir", phantoms)
    assert f"{tmp_path / 'r.html'}: " in printed
    page = Page(tmp_path / "r.html")
    assert len(page.images) >= 6
    image_ids = {*pd.read_csv(finished_run / "predictions.csv")["image_id"]}
    for image in page.images:
        assert image["alt"].split(":")[0] in image_ids
        decoded = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert decoded.format == "JPEG"
        assert not decoded.getexif()
        assert max(decoded.size) <= 200
    result = json.loads((finished_run / "results.json").read_text())
    sets = {row[0]: row[1] for row in page.tables["Conformal sets and abstention"][1:]}
    assert sets["Abstained: no label, or more than one"] == format_interval(result["conformal"]["abstained"])
    assert page.tables["Out-of-distribution images"][1][1] == format_interval(result["outliers"]["test"])
    assert any(plot["aria-label"].startswith("Validation ROC AUC") for plot in page.plots)
    assert [tuple(row) for row in page.tables["Data audit"][1:]] == verdicts(findings)
    assert str(phantoms) not in page.html
    assert str(tmp_path) not in page.html


def test_images_of_other_data_are_not_shown(finished_run, phantoms, tmp_path, caplog):
    other_data = shutil.copytree(phantoms, tmp_path / "secret-folder")
    for path in sorted((other_data / "lesion").iterdir())[:3]:
        Image.new("L", (64, 64), 7).save(path)
    write_report([finished_run], tmp_path / "r.html", data_dir=[f"brain-phantoms={other_data}"])
    page = Page(tmp_path / "r.html")
    assert not page.images
    assert "are not those of this run" in page.text
    assert "secret-folder" not in page.html
    assert "its images are not shown" in caplog.text


@pytest.mark.slow
def test_report_outlines_masks_of_a_trained_run(chest_phantoms, tmp_path):
    folder = run(segmentation_recipe(chest_phantoms, tmp_path / "run", num_train_epochs=1))
    write_report([folder], tmp_path / "r.html", data_dir=[str(chest_phantoms)])
    page = Page(tmp_path / "r.html")
    assert len(page.images) == 8
    dice = pd.read_csv(folder / "predictions.csv")["dice"]
    scores = [float(re.search(r"Dice ([\d.]+)", image["alt"])[1]) for image in page.images]
    assert min(scores) == pytest.approx(dice.min(), abs=1e-3)
    assert max(scores) == pytest.approx(dice.max(), abs=1e-3)
    assert "(now" not in page.text  # the new predictions are the ones that were measured
    (folder / "model.safetensors").unlink()
    write_report([folder], tmp_path / "r.html", data_dir=[str(chest_phantoms)])
    assert "No outlines" in Page(tmp_path / "r.html").text


def test_outlines_lie_on_the_edges_of_masks():
    true, predicted = np.zeros((2, 60, 80), np.uint8)
    true[10:40, 10:40], predicted[20:50, 45:75] = 1, 1
    canvas = np.asarray(draw_outlines(Image.new("RGB", (80, 60)), (true, predicted)))
    for mask, colour in ((true, TRUE), (predicted, PREDICTED)):
        outline = (canvas == colour).all(axis=2)
        edge = (mask > 0) & ~binary_erosion(mask > 0)
        assert outline[edge].all()
        assert not outline[mask == 0].any()
        assert outline.sum() < mask.sum() / 2


def test_rejects_unfinished_runs_suffixes_and_duplicates(tmp_path, three_runs, monkeypatch):
    runs, _ = three_runs
    out = tmp_path / "r.html"
    with pytest.raises(MedtlError, match="not a finished run"):
        write_report([tmp_path], out)
    with pytest.raises(MedtlError, match=r"ends with \.pdf"):
        write_report(runs, out, pdf=tmp_path / "r.html")
    with pytest.raises(MedtlError, match="given twice"):
        write_report([runs[0], runs[0]], out)
    with pytest.raises(MedtlError, match="two folders"):
        write_report(runs, out, data_dir=["a", "b"])
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MedtlError, match=r"hf_medtl\[report\]"):
        write_report(runs[:1], out)
    assert not out.exists()


def luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(
        np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


def contrast(foreground: str, background: str) -> float:
    low, high = sorted((luminance(foreground), luminance(background)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts_meet_wcag_aa():
    css = (ROOT / "hf_medtl" / "report" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css[a:b]))
                   for a, b in ((0, css.index("@media")), (css.index("@media"), css.index("* {"))))  # fmt: skip
    for colours in (light, dark):
        for text in ("ink", "soft", "link", "correct", "wrong"):
            assert contrast(colours[text], colours["paper"]) >= 4.5, text
            assert contrast(colours[text], colours["tint"]) >= 4.5, text
        assert contrast(colours["notice-ink"], colours["notice"]) >= 4.5
        for line in ("blue", "orange", "green", "purple", "sky", "yellow", "grey"):
            assert contrast(colours[line], colours["paper"]) >= 3, line


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_page_works_in_a_browser(three_runs, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium is installed")
    _, folder = three_runs
    messages, requests = [], []
    with playwright.sync_playwright() as playwright_context:
        browser = playwright_context.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("dialog", lambda dialog: messages.append(dialog.message))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((folder / "report.html").as_uri())
        tab.wait_for_function("document.querySelectorAll('.plot:not(:has(svg.main-svg))').length === 0")
        assert messages == []
        assert [url for url in requests if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
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
        assert any(LABELS[0] in text for text in legend)  # not rendered as bold
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")
        axis = tab.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert axis == ("rgb(27, 36, 48)" if scheme == "light" else "rgb(232, 236, 240)")
        browser.close()
