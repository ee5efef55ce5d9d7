"""Contents of the page without a browser: sliders, sentences, examples."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from hf_medtl.space import examples, views
from hf_medtl.space.windowing import Windowing

FACTS = {
    "model": "m", "revision": None, "width": 9, "height": 9, "seconds": 0.1, "calibrated": True, "coverage": 0.9,
    "probabilities": {"no_lesion": 0.3, "lesion": 0.7}, "label": "lesion", "decision": "lesion", "threshold": 0.5,
    "thresholds": None, "positive_label": "lesion", "candidates": ["lesion"], "abstain": False, "reasons": [],
    "outlier": 0.5, "wording": {"lesion": "Compatible with a lesion."},
}  # fmt: skip
UNSURE = FACTS | {"abstain": True, "reasons": ["Unlike <others>."], "outlier": 1.5}


@pytest.mark.parametrize(
    "ends", [(0, 1), (-1000.5, 3000.25), (0, 0), (0, 65535), (-0.35, 0.4), (0, 100.6), (0.1, 0.3), (1e-5, 2e-5)]
)
def test_sliders_cover_every_window(ends):
    """Windows beyond the pixel values of the image are common in DICOM."""
    windows = {"bone": (-500.0, 1300.0), "all": ends, "brain": (0.0, 80.0)} if ends[1] > 1000 else {"all": ends}
    windowing = Windowing(*ends, ends, "", windows)
    low, high, step = windowing.slider_range()
    widest = np.ceil((high - low) / step) * step
    for window in windows.values():
        level, width = windowing.level_and_width(window)
        assert low <= level <= high
        assert step <= width <= widest
        assert abs(level - sum(window) / 2) <= step
        assert abs(width - (window[1] - window[0])) <= step


def test_abstention_hides_finding_sentence():
    sure, unsure = views.render("classify", FACTS, None), views.render("classify", UNSURE, None)
    assert "Compatible with a lesion" in sure and "can’t be ruled out" in sure
    assert "Compatible with a lesion" not in unsure and "can’t be ruled out" not in unsure
    assert "I can’t say." in unsure and "Unlike &lt;others&gt;." in unsure


def test_prediction_set_is_shown_once_and_only_if_not_empty():
    """The reasons for abstention already mention the set; an empty set never contains the true label."""
    assert "in at least 90 % of images" in views.render("classify", FACTS, None)
    for candidates in ([], ["no_lesion", "lesion"]):
        unsure = FACTS | {"abstain": True, "candidates": candidates, "reasons": ["Because."]}
        assert "can’t be ruled out" not in views.render("classify", unsure, None)


def test_decision_against_more_probable_label_is_explained():
    against = FACTS | {"threshold": 0.8, "decision": "no_lesion"}
    shown = views.render("classify", against, None)
    assert (
        "lesion is the more probable label, but this model chooses lesion if its probability is at least 80.0 %"
        in shown
    )
    assert "more probable" not in views.render("classify", FACTS, None)


def test_batch_row_shows_abstention():
    row = {"path": "a_b", "label": "no_lesion", "decision": "no_lesion", "abstain": True, "reason": "r", "error": ""}
    bad = dict.fromkeys(row) | {"path": "c", "error": "Text."}
    shown = views.render("batch", [row, row | {"abstain": False}, bad], list(row), 3, 1, None)
    assert shown.count("<td>can’t say (no lesion)</td>") == 1
    assert shown.count("<td>no lesion</td>") == 3
    assert "a_b" in shown  # file names are not changed
    assert '<td colspan="4"><span>Text.</span></td>' in shown and ">error</th>" not in shown
    assert "Stopped" not in shown and "the CSV has all" not in shown
    shown = views.render("batch", [row], list(row), 3, 1, "data:", True)
    assert "Stopped: 3 images, 1 with an error. The table shows the first 1, the CSV has all." in shown


@pytest.mark.parametrize(
    ("one", "other", "agree", "sentence", "doubt"),
    [
        (FACTS, FACTS, True, "They agree: m says lesion, n lesion.", False),
        (FACTS, FACTS | {"decision": "no_lesion"}, False, "They disagree: m says lesion, n no lesion.", True),
        (FACTS, UNSURE, True, "Only one can say: m says lesion. By its threshold alone n would say lesion.", True),
        (UNSURE, UNSURE, True, "Neither can say.", True),
    ],
)
def test_models_agree_only_if_neither_abstains(one, other, agree, sentence, doubt):
    result = {"models": [one, other | {"model": "n"}], "agree": agree, "difference": {"lesion": 0.1}, "only_one": []}
    shown = views.render("compare", result)
    assert f'data-announce="{sentence}' in shown
    assert ("decision unsure" in shown) == doubt


def test_many_labels_are_sorted_by_probability():
    few, many = {"a": 0.1, "b": 0.9}, {f"l{number}": number / 20 for number in range(14)}
    assert views.order_labels(few) == [("a", 0.1), ("b", 0.9)]
    assert [label for label, _ in views.order_labels(many)] == [f"l{number}" for number in reversed(range(14))]
    shown = views.render("bars", FACTS | {"probabilities": many, "thresholds": dict.fromkeys(many, 0.5)})
    assert shown.count('<small class="unseen">threshold 50.0 %</small>') == 14


def test_example_dicom_has_exact_grey_values():
    """TRAP: 16 bits are too few for grey * 1640."""
    example = examples.generate_examples()[-1]
    pixels = dcmread(io.BytesIO(example.content)).pixel_array
    grey = np.asarray(Image.fromarray(example.pixels).convert("L"))
    assert np.array_equal(pixels, 600 + grey.astype(int) * 1640 // 255)
