"""Tests of figures: formats, resolution, intervals of curves and percentages of confusion matrices."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.delong import auc_interval
from hf_medtl.evaluation.marks import Band, Line
from hf_medtl.evaluation.matplotlib_backend import figure_formats, parse_formats, write_figure
from hf_medtl.evaluation.probability_charts import Scores, roc_plot
from tests.support.draft_figures import DEFAULTS

MATRIX = [[8, 2], [1, 3]]
NAMES = ["_normal", "$x$ [high]"]  # neither hidden nor parsed as mathematics


def test_figures_have_300_dpi_and_no_other_format_by_default(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(write_figure, "__defaults__", DEFAULTS)
    plots.confusion_matrix(MATRIX, NAMES, tmp_path / "matrix.png")
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.png"]
    assert Image.open(tmp_path / "matrix.png").info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_figure_formats_write_vector_files_with_text_beside_the_png(tmp_path: Path) -> None:
    with figure_formats("pdf, SVG"):
        plots.confusion_matrix(MATRIX, NAMES, tmp_path / "matrix.png")
    plots.confusion_matrix(MATRIX, NAMES, tmp_path / "later.png")
    assert {path.name for path in tmp_path.iterdir()} == {"matrix.png", "matrix.pdf", "matrix.svg", "later.png"}
    assert (tmp_path / "matrix.pdf").read_bytes().startswith(b"%PDF")
    assert "$x$ [high]" in (tmp_path / "matrix.svg").read_text(encoding="utf-8")


def test_unknown_figure_format_names_the_nearest() -> None:
    assert parse_formats("pdf,png,pdf") == ("png", "pdf")
    with pytest.raises(MedtlError, match=r"png, pdf, svg, but found 'pfd'\. Did you mean 'pdf'"):
        parse_formats("png,pfd")


def test_confusion_matrix_shows_counts_and_percentages_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def save(figure: Figure, file: Path, **_: object) -> None:
        texts.extend(text.get_text() for text in figure.axes[0].texts)
        file.touch()

    monkeypatch.setattr(Figure, "savefig", save)
    plots.confusion_matrix([[8, 2, 0], [1, 3, 0], [0, 0, 0]], ["a", "b", "c"], tmp_path / "matrix.png")
    assert texts == ["8\n80 %", "2\n20 %", "0\n0 %", "1\n25 %", "3\n75 %", "0\n0 %", "0", "0", "0"]


def test_roc_curve_has_a_band_and_the_delong_interval_of_its_area() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(60) % 2 == 0
    score = positive + rng.normal(size=60)
    groups = [f"patient {i // 2}" for i in range(60)]
    area = auc_interval(positive, score, groups)
    marks = roc_plot([Scores("tumor", positive, score, groups)]).marks
    assert any(isinstance(mark, Band) for mark in marks)
    lines = [mark.name for mark in marks if isinstance(mark, Line) and mark.name]
    assert lines == [f"tumor (AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}])"]
    marks = roc_plot([Scores("tumor", positive, score)]).marks
    assert not any(isinstance(mark, Band) for mark in marks)
    assert [mark.name for mark in marks if isinstance(mark, Line) and mark.name] == [f"tumor (AUC {area.value:.3f})"]
