"""Sentences about findings, and sections of a card."""

import json
from pathlib import Path

import pytest

from hf_medtl import MedtlError, Predictor
from hf_medtl.publish.sentences import NOTICE, finding_sentences, split_prose
from hf_medtl.publish.templates import replace_section
from tests.support.commands import ROOT


def test_finding_sentence_gives_recall_with_interval():
    recall = {"ill": {"value": 0.9, "low": 0.712, "high": 0.97}, "well": {"value": None, "low": 0.0, "high": 1.0}}
    sentences = finding_sentences({"ill": "findings compatible with illness"}, {"recall": recall, "n": 51}, "Scans")
    assert sentences["ill"].startswith(
        "Findings compatible with illness; of the images that had it, 90 % [71, 97] were labelled so, among 51 test "
        "images of Scans."
    )
    assert sentences["well"].startswith("Labelled well; no test image of Scans had it")
    assert all(text.endswith(NOTICE) for text in sentences.values())
    assert finding_sentences({}, {"n": 5, "metrics": {}}, "Masks") == {}


def test_findings_are_read_from_front_matter():
    assert split_prose("---\nfindings:\n  a: words for a\n---\n## Text") == ({"a": "words for a"}, "## Text")
    assert split_prose("## Text") == ({}, "## Text")
    for invalid in ("---\nfinding:\n  a: b\n---\n", "---\nfindings: none\n---\n", "---\n: :\n---\n"):
        with pytest.raises(MedtlError, match="each label with its phrase"):
            split_prose(invalid)


@pytest.mark.parametrize("path", sorted((ROOT / "model_cards").glob("*.md")), ids=lambda path: path.stem)
def test_findings_of_model_cards_are_valid(path):
    findings, prose = split_prose(path.read_text())
    assert prose.startswith("## Intended use")
    assert findings or path.stem == "lungs"


def test_predictor_and_card_explain_each_label(finished_run, phantoms):
    results = json.loads((finished_run / "results.json").read_text())
    sentences = Predictor.from_pretrained(finished_run).wording
    assert set(sentences) == set(results["labels"])
    for label, sentence in sentences.items():
        assert f"{100 * results['recall'][label]['value']:.0f} % [" in sentence
        assert f"- {label}: {sentence}" in (finished_run / "README.md").read_text()
    assert results["recall"][results["positive_label"]]["value"] == results["metrics"]["sensitivity"]["value"]


def test_card_section_is_replaced_or_appended(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text("# A\n\n<!-- x -->\nold\n<!-- /x -->\n\nB\n")
    replace_section(card, "x", "new")
    replace_section(card, "x", "newer\n")
    assert card.read_text() == "# A\n\n<!-- x -->\nnewer\n<!-- /x -->\n\nB\n"
    replace_section(card, "y", "more")
    assert card.read_text().endswith("B\n\n<!-- y -->\nmore\n<!-- /y -->\n")
