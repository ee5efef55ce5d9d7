"""The author's prose on a model card: templates, plain Markdown, and what is left to fill in."""

import pytest

from hf_medtl import MedtlError
from hf_medtl.publish.card_fields import AUTHOR_FIELDS, PROSE_FIELDS, missing_fields
from hf_medtl.publish.prose import read_prose, render_prose
from hf_medtl.publish.sentences import split_prose
from tests.support.commands import ROOT, run_cli

COUNTS = {split: {"glioma": 3, "meningioma": 4, "no_tumor": 5} for split in ("train", "validation", "test")}
FACTS = {
    "name": "ours",
    "counts": COUNTS,
    "results": {"n": 12, "positive_label": None, "by_source": {"here": {}}},
}


@pytest.mark.parametrize(
    "text",
    [
        r"Loss $\frac{{a}}{b}$ over {{patients}} patients, {% 5 %} of them {# twice",
        "A heading {#with-an-anchor} and {{ 'results' }}",
        "100 {% of the images, and {{ no end",
    ],
)
def test_text_that_names_no_fact_is_plain_markdown(text):
    assert render_prose(text, FACTS).startswith(text)


def test_text_that_names_a_fact_is_a_template():
    text = "{{ name }}: {{ 100 * counts.test['glioma'] // results.n }} % gliomas {% raw %}{{a}}{% endraw %}"
    assert render_prose(text, FACTS).startswith("ours: 25 % gliomas {{a}}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ results.n }} of {{ patients }}", "'patients' is undefined"),
        ("{{ results.m }}", "no attribute 'm'"),
        ("\n{% if results.n %}", r"line 2: Unexpected end"),
        ("{{ counts.test[results.positive_label] }}", "no element None.*some exist only for some runs"),
        ("{{ results.n / 0 }}", "division by zero"),
        ("{{ results.n + name }}", "unsupported operand"),
    ],
)
def test_template_that_does_not_fit_is_one_error(text, message):
    with pytest.raises(MedtlError, match=message) as caught:
        render_prose(text, FACTS)
    assert "(counts, name, results)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "results.n.__class__.__base__.__subclasses__()",
        "cycler.__init__.__globals__.os.mkdir(folder)",
        "lipsum.__globals__['os'].mkdir(folder)",
        "'{0.__class__}'.format(results)",
        "range(200000) | list",  # a memory bomb
    ],
)
def test_template_runs_no_code(code, tmp_path):
    folder = tmp_path / "made"
    with pytest.raises(MedtlError, match=r"can't be filled in"):
        render_prose(f"{{{{ results.n }}}} {{{{ {code} }}}}", FACTS | {"folder": str(folder)})
    assert not folder.exists()


@pytest.mark.parametrize("card", sorted((ROOT / "model_cards").glob("*.md")), ids=lambda path: path.stem)
def test_cards_of_presets_render_with_any_number_of_labels(card):
    findings, prose = read_prose(card)
    two = FACTS | {"counts": {split: {"a": 1, "b": 2} for split in COUNTS}}
    for facts in (FACTS, two | {"results": FACTS["results"] | {"positive_label": "a", "n": 3}}):
        text = render_prose(prose, facts)
        assert "{" not in text
        assert "None" not in text
        assert not missing_fields(text, {}, PROSE_FIELDS)
        assert ("33 %" in text) == (facts is not FACTS and "positive_label" in prose)
    assert all(findings.values())


def test_files_that_can_not_be_read_are_one_error(tmp_path):
    card = tmp_path / "card.md"
    card.write_bytes("## Limits\n\nBücher".encode("latin-1"))
    with pytest.raises(MedtlError, match=r"card.md can't be read as text .* saved as UTF-8"):
        read_prose(card)
    with pytest.raises(MedtlError, match="can't be read"):
        read_prose(tmp_path / "absent.md")
    card.write_bytes(b"\xef\xbb\xbf---\r\nfindings:\r\n  no: nothing\r\n  1: something\r\n---\r\nText")
    assert read_prose(card) == ({"no": "nothing", "1": "something"}, "Text")
    for front in ("findings: {tumor: }", "findings: [tumor]", "findings: tumor", "limits: {a: b}"):
        with pytest.raises(MedtlError, match="each label with its phrase"):
            split_prose(f"---\n{front}\n---\n")


def test_new_card_takes_its_fields_one_by_one(tmp_path):
    file = tmp_path / "cards" / "mine.md"
    assert "hf-medtl card check" in run_cli("card", "new", file)
    with pytest.raises(MedtlError, match="exists"):
        run_cli("card", "new", file)
    findings, text = read_prose(file)
    assert findings == {}
    assert [*missing_fields(text, {}, AUTHOR_FIELDS)] == [*AUTHOR_FIELDS]
    assert [*missing_fields(render_prose("", FACTS), {}, AUTHOR_FIELDS)] == [*AUTHOR_FIELDS]

    text = text.replace("The author has not stated the intended use.", "Teaching.")
    text = text.replace("Users: The author has not stated the users.", "Users: students.")
    assert [*missing_fields(text, {}, AUTHOR_FIELDS)] == [*AUTHOR_FIELDS][1:]
    text = text.replace("Population: The author has not stated whose images these are.", "Population: TODO")
    text = text.replace("The author has not stated limits, biases and known shortcuts.", "- Few images.")
    assert {*AUTHOR_FIELDS} - missing_fields(text, {}, AUTHOR_FIELDS).keys() == {"intended_use", "limits"}
    rendered = render_prose(text, FACTS)
    assert "- The author has not stated: how the reference standard was established" in rendered
    assert missing_fields(rendered, {}, AUTHOR_FIELDS).keys() == missing_fields(text, {}, AUTHOR_FIELDS).keys()


def test_empty_sections_and_labels_do_not_count_as_given():
    empty = ("Intended use", "Limits", "Where the data come from")
    text = (
        "".join(f"## {title}\n\n<!-- Teaching -->\n\n" for title in empty) + "Population:\n\nUsers:\n\nOut of scope:\n"
    )
    assert {*PROSE_FIELDS} == missing_fields(text, {}, PROSE_FIELDS).keys()


def test_check_of_a_text_says_what_is_missing(tmp_path):
    from typer.testing import CliRunner

    from hf_medtl.cli.app import app

    file = tmp_path / "mine.md"
    run_cli("card", "new", file)
    result = CliRunner().invoke(app, ["card", "check", str(file)])
    assert result.exit_code == 1
    assert "MISSING  population: population: whose images" in result.output
    assert "not yet  support" in result.output
    assert "given    limits" in run_cli("card", "check", ROOT / "model_cards" / "brain.md")
