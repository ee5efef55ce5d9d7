"""What the page shows, without a browser: sliders, sentences, examples."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from hf_medtl.space import examples, views
from hf_medtl.space import window_controls as hand
from hf_medtl.space.uploads import Depth

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
def test_sliders_reach_every_window(ends):
    """Also those beyond the values of the picture, which are usual in DICOM."""
    windows = {"bone": (-500.0, 1300.0), "all": ends, "brain": (0.0, 80.0)} if ends[1] > 1000 else {"all": ends}
    depth = Depth(*ends, ends, "", windows)
    low, high, step = hand.reach(depth)
    widest = np.ceil((high - low) / step) * step
    for window in windows.values():
        level, width = hand.middle(depth, window)
        assert low <= level <= high
        assert step <= width <= widest
        assert abs(level - sum(window) / 2) <= step
        assert abs(width - (window[1] - window[0])) <= step


def test_no_sentence_of_a_finding_where_the_model_can_not_say():
    sure, unsure = views.show("classify", FACTS, None), views.show("classify", UNSURE, None)
    assert "Compatible with a lesion" in sure and "can’t be ruled out" in sure
    assert "Compatible with a lesion" not in unsure and "can’t be ruled out" not in unsure
    assert "I can’t say." in unsure and "Unlike &lt;others&gt;." in unsure


def test_a_set_is_told_once_and_only_if_it_holds_a_label():
    """Why the model can not say tells of the set already; an empty one holds the true label in no picture."""
    assert "in at least 90 % of pictures" in views.show("classify", FACTS, None)
    for candidates in ([], ["no_lesion", "lesion"]):
        unsure = FACTS | {"abstain": True, "candidates": candidates, "reasons": ["Because."]}
        assert "can’t be ruled out" not in views.show("classify", unsure, None)


def test_a_decision_against_the_more_probable_label_is_explained():
    against = FACTS | {"threshold": 0.8, "decision": "no_lesion"}
    shown = views.show("classify", against, None)
    assert "lesion is the more probable label, but this model decides for lesion from 80.0 % on" in shown
    assert "more probable" not in views.show("classify", FACTS, None)


def test_a_row_of_a_batch_says_that_the_model_can_not():
    row = {"path": "a_b", "label": "no_lesion", "decision": "no_lesion", "abstain": True, "reason": "r", "error": ""}
    bad = dict.fromkeys(row) | {"path": "c", "error": "Text."}
    shown = views.show("batch", [row, row | {"abstain": False}, bad], list(row), 3, 1, None)
    assert shown.count("<td>can’t say (no lesion)</td>") == 1
    assert shown.count("<td>no lesion</td>") == 3
    assert "a_b" in shown  # names are as they are
    assert '<td colspan="4"><span>Text.</span></td>' in shown and ">error</th>" not in shown
    assert "Stopped" not in shown and "the CSV all" not in shown
    shown = views.show("batch", [row], list(row), 3, 1, "data:", True)
    assert "Stopped: 3 pictures, 1 with an error. The table shows the first 1, the CSV all." in shown


@pytest.mark.parametrize(
    ("one", "other", "agree", "sentence", "doubt"),
    [
        (FACTS, FACTS, True, "They agree: m says lesion, n lesion.", False),
        (FACTS, FACTS | {"decision": "no_lesion"}, False, "They disagree: m says lesion, n no lesion.", True),
        (FACTS, UNSURE, True, "Only one can say: m says lesion. By its threshold alone n would say lesion.", True),
        (UNSURE, UNSURE, True, "Neither can say.", True),
    ],
)
def test_two_models_agree_only_if_both_can_say(one, other, agree, sentence, doubt):
    found = {"models": [one, other | {"model": "n"}], "agree": agree, "difference": {"lesion": 0.1}, "only_one": []}
    shown = views.show("compare", found)
    assert f'data-announce="{sentence}' in shown
    assert ("decision unsure" in shown) == doubt


def test_many_labels_stand_by_probability():
    few, many = {"a": 0.1, "b": 0.9}, {f"l{number}": number / 20 for number in range(14)}
    assert views.ordered(few) == [("a", 0.1), ("b", 0.9)]
    assert [label for label, _ in views.ordered(many)] == [f"l{number}" for number in reversed(range(14))]
    shown = views.show("bars", FACTS | {"probabilities": many, "thresholds": dict.fromkeys(many, 0.5)})
    assert shown.count('<small class="unseen">threshold 50.0 %</small>') == 14


def test_the_drawn_dicom_holds_the_drawn_greys():
    """TRAP: 16 bits are too few for grey * 1640."""
    its = examples.drawn()[-1]
    pixels = dcmread(io.BytesIO(its.content)).pixel_array
    grey = np.asarray(Image.fromarray(its.picture).convert("L"))
    assert np.array_equal(pixels, 600 + grey.astype(int) * 1640 // 255)
