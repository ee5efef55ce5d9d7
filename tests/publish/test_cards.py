"""Model cards: facts of the run, valid Hub metadata, and explicit unknowns."""

import json
import re
import shlex
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_session
from markdown_it import MarkdownIt
from safetensors.torch import load_file

from hf_medtl import Recipe, load, run
from hf_medtl.common.text import escape_cell
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.publish.base_model import BIBTEX, find_base_model
from hf_medtl.publish.card import render_card
from hf_medtl.publish.card_fields import AUTHOR_FIELDS, CARD_FIELDS, missing_fields
from hf_medtl.publish.templates import escape_bibtex, format_interval
from hf_medtl.runs.model_card import describe_data_checks
from hf_medtl.tasks import TASKS
from tests.support.commands import ROOT, options, run_cli
from tests.support.multilabel_tables import write_table
from tests.support.tiny_models import save_segformer, save_tiny

BASE_CARD = """---
license: cc-by-nc-4.0
---
# Base

```bibtex
@article{base,
  title = {A base},
}
```

```python
print("no entry")
```
"""


def run_and_card_facts(patch, recipe):
    """Run a recipe; return the run folder and the facts that its card was rendered from."""
    card_facts = {}

    def record(facts, prose):
        card_facts.update(facts)
        return render_card(facts, prose)

    patch.setattr("hf_medtl.runs.model_card.render_card", record)
    return run(recipe), card_facts


@pytest.fixture(scope="module")
def trained(phantoms, tiny_checkpoint, tmp_path_factory):
    """Return a function: kind of run -> run folder and card facts, trained at the first call."""
    root, cache = tmp_path_factory.mktemp("cards"), {}

    def recipe(kind: str) -> Recipe:
        output = root / kind
        prose = {"model_card": str(ROOT / "model_cards" / "phantoms.md")}
        if kind == "labels":
            return Recipe(**options(phantoms, tiny_checkpoint("vit"), output, **prose))
        if kind == "multilabel":
            data, external = write_table(root / "marks"), write_table(root / "other", 24, 5000)
            overrides = {"dataset": "table", "external_dataset": "table", "external_data_dir": str(external)}
            return Recipe(**options(data, tiny_checkpoint("cnn"), output, **prose, **overrides))
        chests = write_phantoms(root / "chest", "chest", patients=12, images=1, size=72)
        overrides = {"dataset": "chest-phantoms", "task": "image-segmentation", "num_train_epochs": 1}
        return Recipe(**options(chests, save_segformer(root / "tiny-segformer"), output, **prose, **overrides))

    def make(kind: str):
        if kind not in cache:
            with pytest.MonkeyPatch.context() as patch:
                cache[kind] = run_and_card_facts(patch, recipe(kind))
        return cache[kind]

    return make


ALL_KINDS = pytest.mark.parametrize("kind", ["labels", "multilabel", "masks"])


@pytest.mark.slow
@ALL_KINDS
def test_metadata_match_results_and_pass_hub_validation(kind, trained, hub):
    folder, _ = trained(kind)
    results = json.loads((folder / "results.json").read_text())
    read = ModelCard.load(folder / "README.md")
    read.validate()
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert ModelCardData(**front).to_dict() == front == read.data.to_dict()
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == results["task"]
    assert "base_model" not in front  # a local folder is not a Hub id
    assert "datasets" not in front  # the dataset is not on the Hub
    assert front["metrics"] == [name for name, measured in results["metrics"].items() if measured["value"] is not None]
    (index,) = front["model-index"]
    assert index["name"] == folder.name
    tested = [results, *([results["external"]] if "external" in results else [])]
    assert len(index["results"]) == len(tested)
    for entry, measured in zip(index["results"], tested, strict=True):
        assert entry["dataset"]["split"] == measured["split"]
        values = {name: m["value"] for name, m in measured["metrics"].items() if m["value"] is not None}
        assert {m["type"]: m["value"] for m in entry["metrics"]} == pytest.approx(values, abs=5e-5)
        assert len(entry["metrics"]) == len(values)
    assert index["results"][0]["dataset"]["revision"] == results["splits_sha256"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("license: apache-2.0", "license: Apache 2"),
        ("library_name:", "base_model: a folder/of/mine\nlibrary_name:"),
        ("library_name:", "datasets:\n- pictures of mine\nlibrary_name:"),
        ("    - type: accuracy\n", "    - kind: accuracy\n"),
    ],
)
def test_loopback_hub_rejects_invalid_metadata(old, new, trained, hub):
    text = (trained("labels")[0] / "README.md").read_text()
    assert old in text
    status_codes = [
        get_session().post(f"{hub}/api/validate-yaml", json={"content": content, "repoType": "model"}).status_code
        for content in (text, text.replace(old, new, 1))
    ]
    assert status_codes == [200, 400]


@ALL_KINDS
def test_tables_have_equal_row_widths_and_figures_exist(kind, trained):
    folder, _ = trained(kind)
    text = (folder / "README.md").read_text()
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(figures) >= 3
    assert all((folder / figure).is_file() for figure in figures)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 3
    for rows in tables:
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in rows.splitlines()}
        assert len(widths) == 1, rows
        assert widths.pop() <= 10
    assert "\n\n\n" not in text
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "None" not in prose.replace("None yet", "").replace("None are listed", "")
    assert "-0.000," not in text


@ALL_KINDS
def test_card_of_a_run_misses_only_fields_of_other_commands(kind, trained):
    folder, _ = trained(kind)
    text, results = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())
    later = {"support", "exports", "external", "explanations", "robustness", "subgroups"}
    reported = {"external"} if kind == "multilabel" else set()
    if len(results.get("by_source", ())) > 1:
        reported = {"subgroups"}
    assert set(missing_fields(text, results)) <= later - reported
    assert {"support", "exports", "explanations", "robustness"} <= set(missing_fields(text, results))
    without = text.partition("## Intended use")[0] + "## Data and split" + text.partition("## Data and split")[2]
    assert set(missing_fields(without, results)) >= set(AUTHOR_FIELDS) - {"support"}
    headings = {"failures": "### Where it fails", "licences": "## Licences", "citation": "```bibtex"}
    headings |= {"split": "\nSplit: ", "selection": "- The weights are", "environment": "Energy:"}
    for name, heading in headings.items():
        assert name in CARD_FIELDS
        assert name in missing_fields(text.replace(heading, ""), results)


@ALL_KINDS
def test_card_gives_splits_seeds_packages_checksum_and_energy(kind, trained):
    folder, facts = trained(kind)
    text, results = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())
    splits = pd.read_csv(folder / "splits.csv", keep_default_na=False)
    for split, rows in splits.groupby("split"):
        ends = f" {rows['group'].nunique()} | {rows['patient'].nunique()} |"
        assert re.search(rf"^\| {split} \|.*{re.escape(ends)}$", text, flags=re.MULTILINE)
    assert "Split: 15 % for validation, 20 % for testing; sampled by group" in text
    assert "Seeds: 1 for training, 1 for the split." in text
    for package, version in results["environment"]["packages"].items():
        assert f"{package} {version}" in text
    assert "Energy: not recorded." in text
    (checksum,) = facts["base_model"].sha256.values()
    assert f"SHA-256 of model.safetensors `{checksum}`" in text
    assert "- Weights before training: apache-2.0 (commercial use allowed; <https://spdx.org/" in text
    energy = render_card(facts | {"results": results | {"energy_kwh": 0.01234}})
    assert "Energy: 0.0123 kWh, by codecarbon." in energy


def test_worst_images_are_the_surest_wrong_decisions(trained):
    folder, _ = trained("labels")
    result = json.loads((folder / "results.json").read_text())
    table = pd.DataFrame(
        {
            "image_id": ["a", "b|c", "d", "e"],
            "label": ["lesion", "no_lesion", "lesion", "lesion"],
            "p_lesion": [0.2, 0.9, 0.05, 0.8],
            "p_no_lesion": [0.8, 0.1, 0.95, 0.2],
        }
    )
    rows = TASKS["classification"].worst_images(table, result | {"threshold": 0.5}, 2)
    assert [row["image"] for row in rows] == ["d", "b|c"]
    assert rows[0] == {
        "image": "d", "true": "lesion", "decided": "no_lesion", "probability of the true label": "0.050"
    }  # fmt: skip
    assert TASKS["classification"].worst_images(table, result | {"threshold": 0.0}, 9)[0]["image"] == "b|c"
    assert escape_cell("b|c\n") == r"b\|c"
    multilabel = pd.DataFrame(
        {"image_id": ["a", "b"], "label": ["bar|disc", ""], "p_bar": [0.4, 0.7], "p_disc": [0.9, 0.1]}
    )
    multilabel_results = {"per_label": {"bar": {"threshold": 0.5}, "disc": {"threshold": 0.5}}}
    worst = TASKS["multilabel"].worst_images(multilabel, multilabel_results, 5)
    assert [(row["image"], row["label"], row["true"]) for row in worst] == [
        ("b", "bar", "absent"),
        ("a", "bar", "present"),
    ]
    masks = pd.DataFrame({"image_id": ["a", "b", "c"], "source": "here", "dice": [0.9, 0.2, 0.5]})
    assert [row["image"] for row in TASKS["segmentation"].worst_images(masks, {}, 2)] == ["b", "c"]


def test_card_reports_no_wrong_decision(trained):
    _, facts = trained("labels")
    assert "There was no wrong decision on a test image." in render_card(facts | {"worst": []})


def test_commands_of_the_card_quote_the_name_of_the_folder(trained):
    _, facts = trained("labels")
    card = render_card(facts | {"name": "run [a] 1"})
    assert "pip install -r 'run [a] 1/requirements.txt' starlette" in card
    assert "python 'run [a] 1/handler.py' --port" in card


@pytest.mark.slow
def test_card_names_last_step_weights_and_its_command_reproduces_them(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    overrides = {"load_best_model_at_end": False, "early_stopping_patience": 0, "num_train_epochs": 1, "ema_decay": 0.9}
    folder = run(
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", folds=4, fold=2, mixup=0.2, **overrides))
    )
    text = (folder / "README.md").read_text()
    assert "The weights are those of the last step; validation did not select them." in text
    assert "an exponential moving average (decay 0.9)" in text
    assert "stop early" not in text
    assert "Split: fold 2 of 0 to 3 for testing, 15 % for validation; " in text
    assert "light, mixup 0.2." in text
    command = re.search(r"```bash\n(hf-medtl train .*)\n```\n", text).group(1)
    assert "- DATA: the folder or file of the data.\n" in text
    assert "- BASE_MODEL: the folder of the weights before training (tiny-vit).\n" in text
    monkeypatch.chdir(folder)  # where the command is to be given
    given = {"DATA": phantoms, "BASE_MODEL": tiny_checkpoint("vit")}
    run_cli(*(given.get(word, word) for word in shlex.split(command)[1:]))
    again = folder / "runs" / "again"
    before, after = (load_file(run_folder / "model.safetensors") for run_folder in (folder, again))
    assert all((before[name] == after[name]).all() for name in before)
    assert "Split: as in the splits.csv of another run." in (again / "README.md").read_text()


@pytest.mark.slow
def test_card_links_base_model_with_commit_licence_and_citation(hub, phantoms, tmp_path, monkeypatch):
    api, base_folder = HfApi(), save_tiny("vit", tmp_path / "base")
    (base_folder / "README.md").write_text(BASE_CARD)
    api.create_repo("ci-user/base")
    commit = api.upload_folder(repo_id="ci-user/base", folder_path=base_folder).oid
    recipe = Recipe(**options(phantoms, "ci-user/base", tmp_path / "run", num_train_epochs=1))
    folder, facts = run_and_card_facts(monkeypatch, recipe)
    read = ModelCard.load(folder / "README.md")
    assert read.data.base_model == "ci-user/base"
    assert read.data.base_model_relation == "finetune"
    assert f"[ci-user/base](https://huggingface.co/ci-user/base), commit `{commit}`." in read.text
    assert "- Weights before training: cc-by-nc-4.0 (no commercial use; <https://creativecommons.org/" in read.text
    assert read.data.license == "cc-by-nc-4.0"
    assert "@article{base," in read.text
    assert "no entry" not in read.text
    read.validate()
    assert find_base_model(str(base_folder)).licence == "cc-by-nc-4.0"
    # An unknown revision must not end the run.
    assert find_base_model("ci-user/base", "no-such-revision").licence is None
    newer = api.upload_file(repo_id="ci-user/base", path_or_fileobj=b"more", path_in_repo="more.txt").oid
    assert newer != find_base_model("ci-user/base").revision == facts["base_model"].revision == commit


def test_base_model_of_published_encoders(tmp_path):
    values = {"dataset": "chest-phantoms", "task": "image-segmentation", "num_train_epochs": 1}

    def base(**overrides):
        return TASKS["segmentation"].base_model(
            Recipe(**options(tmp_path, "unet", tmp_path / "run", **values, **overrides))
        )

    name, commit = base()
    assert name == "smp-hub/resnet34.imagenet"
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert base(encoder="tu-resnet18") == ("timm/resnet18.a1_in1k", None)
    assert base(encoder="resnet34", encoder_weights="none") is None
    assert base(encoder_weights=str(tmp_path)) == (str(tmp_path), None)


def test_hub_dataset_is_linked_and_cited(trained):
    _, facts = trained("labels")
    spec = replace(facts["spec"], name="owner/pictures", title="Pictures & more", problems=())
    text = render_card(facts | {"spec": spec})
    assert "[Pictures & more](https://huggingface.co/datasets/owner/pictures)" in text
    assert ModelCard(text).data.datasets == ["owner/pictures"]
    assert "@misc{owner-pictures," in text
    assert r"title = {Pictures \& more}," in text
    assert "- None are listed, which does not mean that there are none" in text


HOSTILE = "a|b [x](http://evil.example) <img src=x> `c` *d*\n# e"


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_labels_sources_and_titles_are_text_on_a_card(kind, trained):
    _, facts = trained(kind)
    label = facts["results"]["labels"][1]

    def rename(value):
        return json.loads(json.dumps(value).replace(json.dumps(label)[1:-1], json.dumps(HOSTILE)[1:-1]))

    spec = replace(facts["spec"], title=HOSTILE, name="owner/data")
    changes = {
        "counts": rename(facts["counts"]),
        "excluded": {HOSTILE: 2},
        "found": [HOSTILE],
        "wording": {HOSTILE: HOSTILE},
    }
    worst = [{"image": HOSTILE, "true": HOSTILE}]
    card = render_card(facts | {"results": rename(facts["results"]), "spec": spec, "worst": worst} | changes)
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    inline = [child for token in tokens for child in token.children or ()]
    assert not any("evil" in token.attrs.get("href", "") for token in inline)
    assert not any("img" in token.content for token in [*tokens, *inline] if "html" in token.type)
    assert not any(token.content == "c" for token in inline if token.type == "code_inline")
    assert not any(token.type == "em_open" for token in inline)
    for rows in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows.splitlines()}) == 1, rows
    assert r"[a\|b \[x\]\(http://evil.example) \<img" in card  # the title, as a link


def test_formats_intervals_and_escapes_bibtex():
    assert escape_bibtex("50 % of a_b & c") == r"50 \% of a\_b \& c"
    assert BIBTEX.findall("```\n@misc{a,\n}\n```\n```bash\n@no\n```\n") == ["@misc{a,\n}\n"]
    assert format_interval({"value": -0.0001, "low": -0.0004, "high": None}) == "0.000 [0.000, ?]"


def test_describes_duplicates_patients_and_sources(tmp_path):
    data = write_phantoms(tmp_path / "brain", "brain", patients=8, images=2, size=48)
    file = next((data / "lesion").iterdir())
    (data / "lesion" / "brain-0099_0.png").write_bytes(file.read_bytes())
    assert describe_data_checks(load("brain-phantoms", data)) == [
        "17 of 17 images are in a group with another image; 2 are the same file as another."
    ]
    rows = pd.DataFrame({"file_name": [str(p.relative_to(data)) for p in sorted(data.glob("*lesion/*.png"))]})
    rows["label"], rows["source"] = rows["file_name"].str.split("/").str[0], ["here", "there"] * 8 + ["there"]
    rows.to_csv(data / "table.csv", index=False)
    lines = describe_data_checks(load("table", data / "table.csv"))
    assert lines[1] == "The patient is unknown for 17 of 17 images."
    assert lines[2] == "Sources: there (9 images), here (8 images)."
