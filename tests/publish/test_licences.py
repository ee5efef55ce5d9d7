"""Licence chain: what a model inherits from data and base model, what is refused, and what the card says."""

import json
import re

import pytest
from huggingface_hub import HfApi, ModelCard

from hf_medtl import MedtlError, Recipe, load
from hf_medtl.common.licences import (
    HUB_NAMES,
    LICENCES,
    UNKNOWN,
    Source,
    card_metadata,
    inherit,
    normalise,
    read_licence,
)
from hf_medtl.data.download import licence_on_hub
from hf_medtl.data.publish import render_card
from hf_medtl.data.specs import DATASETS
from hf_medtl.publish.base_model import BaseModel, find_base_model
from hf_medtl.publish.hub import plan_upload
from hf_medtl.publish.licences import choose_licence, find_problem, list_sources, member_sources
from hf_medtl.runs import preflight
from hf_medtl.runs.ensemble import ensemble
from hf_medtl.runs.model_card import rewrite_card
from hf_medtl.space.publish import write_space
from tests.support.commands import WAIVED, options, run_cli
from tests.support.image_files import write_noise_image
from tests.support.tiny_models import save_tiny


def make_sources(data: str, base: str | None = None, link: str = "") -> list[Source]:
    return [Source("the data (Brains)", data), *([Source("the base model b", base, link)] if base is not None else [])]


@pytest.mark.parametrize(
    ("data", "base", "licence"),
    [
        ("cc0-1.0", None, "apache-2.0"),
        ("cc-by-4.0", "mit", "apache-2.0"),
        ("cc0-1.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "apache-2.0", "cc-by-nc-4.0"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("cc0-1.0", "msrla", "msrla"),
        ("cc0-1.0", "dinov3-license", "dinov3-license"),
        ("cc0-1.0", "health-ai-developer-foundations", "health-ai-developer-foundations"),
        ("odc-by", "gemma", "gemma"),
        ("cc0-1.0", "CC BY-NC-ND 4.0", "cc-by-nc-nd-4.0"),
        ("cc-by-nc-4.0", "cc-by-sa-4.0", UNKNOWN),  # no licence keeps both
        ("cc-by-nc-4.0", "gemma", UNKNOWN),
        ("unknown", "mit", UNKNOWN),
        ("cc0-1.0", "", UNKNOWN),
        ("cc0-1.0", "my-own-terms", UNKNOWN),
    ],
)
def test_a_model_inherits_the_strictest_licence(data, base, licence):
    sources = make_sources(data, base)
    assert inherit(sources) == inherit(sources[::-1]) == licence


@pytest.mark.parametrize(
    ("data", "base", "asked", "waiver", "problem"),
    [
        ("cc0-1.0", "cc-by-nc-4.0", "apache-2.0", None, "allows more than that of the base model b"),
        ("cc-by-nc-4.0", "mit", "mit", None, r"allows more than that of the data \(Brains\)"),
        ("cc0-1.0", "cc-by-sa-4.0", "cc-by-4.0", None, "The model can have cc-by-sa-4.0"),
        ("cc0-1.0", "msrla", "cc-by-nc-4.0", None, "allows more"),
        ("cc0-1.0", "cc-by-nc-4.0", "other", None, "allows more"),
        ("cc0-1.0", "cc-by-nc-4.0", "apache-2.0", "b's owner agreed.", ""),
        ("cc0-1.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", None, ""),
        ("cc0-1.0", "mit", "cc-by-nc-4.0", None, ""),
        ("unknown", "mit", UNKNOWN, None, r"the data \(Brains\) \(unknown\) allows is not known.*--model_license"),
        ("unknown", "", UNKNOWN, None, r"Brains\) \(unknown\) and of the base model b \(unknown\)"),
        ("unknown", "mit", "apache-2.0", None, ""),
        ("unknown", "cc-by-nc-4.0", "apache-2.0", None, "allows more than that of the base model b"),
        ("cc-by-nc-4.0", "gemma", UNKNOWN, None, "No licence keeps the terms.*--license_waiver"),
        ("cc0-1.0", "cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0", "They agreed.", "allows no derivatives"),
        ("physionet-credentialed", "mit", "apache-2.0", None, "allows no redistribution.*--license_waiver"),
        ("physionet-credentialed", "mit", "apache-2.0", "They agreed.", ""),
    ],
)
def test_laxer_unclear_and_forbidden_licences_are_refused(data, base, asked, waiver, problem):

    text = find_problem(make_sources(data, base), asked, waiver)
    assert re.search(problem, text) if problem else text == ""


def test_a_card_never_states_a_laxer_licence_without_a_waiver():
    sources = make_sources("cc0-1.0", "cc-by-nc-4.0")
    assert choose_licence(sources, "mit") == "cc-by-nc-4.0"
    assert choose_licence(sources, "mit", "The owner agreed.") == "mit"
    assert choose_licence(make_sources("cc0-1.0", "msrla"), "other") == "msrla"


def test_licences_without_an_identifier_of_the_hub_have_name_and_link():
    link = "https://huggingface.co/google/medsiglip-448/blob/main/TERMS"
    named = {"license": "other", "license_name": "health-ai-developer-foundations"}
    sources = make_sources("cc0-1.0", "Health-AI-Developer-Foundations", link)
    assert card_metadata("health-ai-developer-foundations", sources) == named | {"license_link": link}
    assert card_metadata("msrla")["license_link"] == LICENCES["msrla"].link
    assert card_metadata("gemma") == {"license": "gemma"}
    own = make_sources("cc0-1.0", "my-terms", "https://example.org/terms")
    assert card_metadata("other", own) == {
        "license": "other", "license_name": "my-terms", "license_link": "https://example.org/terms"
    }  # fmt: skip
    assert card_metadata("other") == {"license": "other"}


def test_every_licence_has_a_page_and_known_names_of_the_hub_are_in_the_table():
    assert all(terms.link.startswith("https://") for terms in LICENCES.values())
    assert {
        name for name in HUB_NAMES if name.startswith(("cc-", "bsd", "llama", "openrail", "gpl"))
    } <= LICENCES.keys()
    assert all(normalise(key) == key for key in LICENCES)
    assert not LICENCES["cc-by-nc-sa-4.0"].commercial
    assert LICENCES["cc-by-nc-sa-4.0"].share_alike
    assert not LICENCES["cc-by-nd-4.0"].derivatives


def test_licence_of_a_folder_is_that_of_its_card(tmp_path):
    folder = save_tiny("vit", tmp_path / "rad", "other\nlicense_name: msrla\nlicense_link: LICENSE")
    base = find_base_model(str(folder))
    assert (base.licence, base.licence_link) == ("msrla", "")  # a link to a file beside it means nothing elsewhere
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n", encoding="utf-8")
    assert read_licence(folder / "README.md") == ("", "")
    assert find_base_model(str(folder)).licence is None


@pytest.fixture
def plan(phantoms, tmp_path):
    """Return a function that checks a recipe for a base model of a licence."""

    def check(licence: str, **values: object):
        base = save_tiny("vit", tmp_path / "base", licence)
        return preflight.check(Recipe(**options(phantoms, base, tmp_path / "run", **values)))

    return check


def test_training_for_the_hub_ends_before_it_begins(plan, tmp_path):
    card = {"model_card": str(tmp_path / "card.md"), "push_to_hub": True, "hub_model_id": "ci-user/licences"}
    run_cli("card", "new", tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text("utf-8").replace("The author has not stated", "This is stated:")
    (tmp_path / "card.md").write_text(text, encoding="utf-8")
    with pytest.raises(MedtlError, match=r"apache-2.0 allows more.*The model can have cc-by-nc-4.0.*Nothing"):
        plan("cc-by-nc-4.0", model_license="apache-2.0", **card)
    with pytest.raises(MedtlError, match="allows no derivatives"):
        plan("cc-by-nc-nd-4.0", **card)
    with pytest.raises(MedtlError, match=r"not known.*--model_license"):
        plan("unknown", **card)
    assert plan("cc-by-nc-4.0", **card).card["license"] == "cc-by-nc-4.0"
    waived = plan("cc-by-nc-4.0", model_license="mit", license_waiver="The owner agreed.", **card).card
    assert (waived["license"], waived["license_waiver"]) == ("mit", "The owner agreed.")
    with pytest.raises(MedtlError, match="--license_waiver is empty"):
        plan("mit", license_waiver=" ")


def test_training_at_home_only_warns_and_the_card_states_what_is_inherited(plan, caplog):
    assert plan("cc-by-nc-4.0", model_license="apache-2.0").card["license"] == "cc-by-nc-4.0"
    assert "allows more than that of the base model base" in caplog.text
    caplog.clear()
    assert plan("mit").card["license"] == "apache-2.0"
    assert "licence" not in caplog.text


def set_base_licence(run, licence: str, link: str = "") -> None:
    facts = json.loads((run / "card.json").read_text(encoding="utf-8"))
    facts["base_model"] |= {"licence": licence, "licence_link": link}
    (run / "card.json").write_text(json.dumps(facts), encoding="utf-8")


def test_push_refuses_a_laxer_licence_until_it_is_mended_or_waived(publishable_run):
    set_base_licence(publishable_run, "cc-by-nc-4.0")  # as in runs of versions that did not look
    with pytest.raises(MedtlError, match=r"allows more.*hf-medtl card write .*Nothing was uploaded"):
        plan_upload(publishable_run, WAIVED)
    with pytest.raises(MedtlError, match="allows more"):
        run_cli("card", "check", publishable_run)
    with pytest.raises(MedtlError, match=r"allows more.*The card was not written"):
        run_cli("card", "write", publishable_run, "--model_license", "mit")
    run_cli("card", "write", publishable_run)
    card = ModelCard.load(publishable_run / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert "- This model: cc-by-nc-4.0 (no commercial use; <https://creativecommons.org/" in card.text
    plan_upload(publishable_run, WAIVED)
    words = ("--model_license", "mit", "--license_waiver", "Jane Doe | owner of base agreed.")
    waived = [f"--waive={name}={reason}" for name, reason in WAIVED.items()]
    with pytest.raises(MedtlError, match=r"allows more.*The card was not written"):
        run_cli("push", publishable_run, "ci-user/named", "--dry_run", *words[:2], *waived)
    run_cli("push", publishable_run, "ci-user/named", "--dry_run", *words, *waived)
    card = ModelCard.load(publishable_run / "README.md")
    assert card.data.license == "mit"
    assert r"(`--license_waiver`): Jane Doe \| owner of base agreed." in card.text
    plan_upload(publishable_run, WAIVED)


def test_card_names_and_links_licences_of_their_own(publishable_run):
    link = "https://huggingface.co/microsoft/rad-dino/blob/main/LICENSE"
    set_base_licence(publishable_run, "msrla", link)
    rewrite_card(publishable_run)
    data = ModelCard.load(publishable_run / "README.md").data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "msrla", link)
    plan_upload(publishable_run, WAIVED)
    set_base_licence(publishable_run, "cc-by-nd-4.0")
    with pytest.raises(MedtlError, match="allows no derivatives"):
        plan_upload(publishable_run, WAIVED)


def test_ensembles_and_spaces_inherit_the_licences_of_their_models(finished_run, publishable_run, tmp_path):
    set_base_licence(publishable_run, "cc-by-nc-sa-4.0")
    rewrite_card(publishable_run)
    runs = [finished_run, publishable_run]
    with pytest.raises(MedtlError, match=r"allows more than that of the run ready.*No ensemble was made"):
        ensemble(runs, tmp_path / "both", model_license="apache-2.0")
    ensemble(runs, tmp_path / "both", soup=True)
    card = ModelCard.load(tmp_path / "both" / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert "- the run ready: cc-by-nc-sa-4.0 (no commercial use, derivatives keep its terms;" in card.text
    assert [source.licence for source in member_sources(finished_run)] == ["apache-2.0", "cc0-1.0", "apache-2.0"]
    write_space(tmp_path / "space", [str(publishable_run)], waive=WAIVED)
    assert "\nlicense: cc-by-nc-sa-4.0\n" in (tmp_path / "space" / "README.md").read_text(encoding="utf-8")
    set_base_licence(publishable_run, "cc-by-nc-nd-4.0")
    with pytest.raises(MedtlError, match="allows no derivatives"):
        write_space(tmp_path / "refused", [str(publishable_run)], waive=WAIVED)


def test_data_state_their_licence_on_their_card_and_are_passed_on_under_it(tmp_path):
    for label in ("a", "b"):
        for number in range(6):
            write_noise_image(tmp_path / "in" / label / f"{number}.png", number + 100 * (label == "b"))
    (tmp_path / "in" / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n", encoding="utf-8")
    with pytest.raises(MedtlError, match=r"cc-by-nd-4\.0: it is not known to allow redistribution"):
        run_cli("data", "push", "imagefolder", "ci/refused", "--data_dir", tmp_path / "in", "--dry_run")
    (tmp_path / "in" / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n", encoding="utf-8")
    loaded = load("imagefolder", tmp_path / "in")
    assert loaded.spec.licence == "cc-by-nc-sa-4.0"
    assert "license: cc-by-nc-sa-4.0" in render_card(loaded, [], "ci/data", "")


def test_the_lung_model_is_a_source_too():
    lungs = BaseModel("lungs", True, None, {}, "cc-by-nc-4.0", ())
    sources = list_sources({"spec": DATASETS["brain-phantoms"], "base_model": None, "lung_model": lungs})
    assert [source.title for source in sources][1:] == ["the lung model lungs"]
    assert inherit(sources) == "cc-by-nc-4.0"


def test_licence_of_a_data_set_on_the_hub_is_that_of_its_card(hub):
    HfApi().create_repo("ci-user/licensed", repo_type="dataset", exist_ok=True)
    card = b"---\nlicense: other\nlicense_name: msrla\n---\n"
    HfApi().upload_file(repo_id="ci-user/licensed", repo_type="dataset", path_or_fileobj=card, path_in_repo="README.md")
    assert licence_on_hub("ci-user/licensed") == "msrla"
    assert licence_on_hub("ci-user/no-such-data") == "unknown"


def test_damaged_facts_of_a_card_are_one_sentence(publishable_run):
    (publishable_run / "card.json").write_text('{"spec": 3}', encoding="utf-8")
    with pytest.raises(MedtlError, match=r"card\.json does not name the data"):
        plan_upload(publishable_run, WAIVED)
