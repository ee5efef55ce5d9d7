"""The command `hf-medtl`."""

import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_medtl.cli import publish as publish_command
from hf_medtl.cli.evaluate import evaluate
from hf_medtl.cli.export import export
from hf_medtl.cli.report import report
from hf_medtl.cli.space import app as space
from hf_medtl.errors import MedtlError

if TYPE_CHECKING:
    from hf_medtl.data.loading import Survey
    from hf_medtl.predict import Prediction

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Transfer learning on medical images. For research and education: not a medical device.",
)
data = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch, audit, preview, push.")
app.add_typer(data, name="data")
app.add_typer(publish_command.card, name="card")
app.add_typer(space, name="space")
app.add_typer(publish_command.metric, name="metric")
app.command()(evaluate)
app.command()(publish_command.push)
app.command()(report)
app.command()(export)

Name = Annotated[str, typer.Argument(help="A name of `hf-medtl data list`, or an id on the Hub, such as owner/name.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data_dir", "--data-dir", help="Folder or file with the data; downloaded if not given."),
]
Seed = Annotated[int, typer.Option(help="Of all draws.")]


def main() -> None:
    """Entry point: errors that the user can mend are printed without a traceback, with exit code 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_medtl").setLevel(logging.INFO)
    try:
        app()
    except MedtlError as error:
        sys.exit(f"Error: {error}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Run folder, or id of a model on the Hub.")],
    places: Annotated[list[Path], typer.Argument(help="Pictures, and folders of pictures.")],
    out: Annotated[Path | None, typer.Option(help="Table to write: .csv, .jsonl or .parquet; else printed.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder for the masks of a segmentation model.")] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Folder for the pictures with maps over them; see --explain.")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(help="What the maps are: gradcam, gradcam++, eigencam, rollout ...; of masks uncertainty."),
    ] = None,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom/--no_dicom",
            " /--no-dicom",
            help="Masks and maps of DICOM files as DICOM, too; these name the patient.",
        ),
    ] = True,
    tta: Annotated[int, typer.Option(help="Test-time augmentation: so many changed copies of each picture, too.")] = 0,
    mc_dropout: Annotated[
        int, typer.Option("--mc_dropout", "--mc-dropout", help="So many passes with dropout switched on, too.")
    ] = 0,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", help="Pictures at a time.")] = 16,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; an accelerator where there is one.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="Run code of the model's repository.")
    ] = False,
) -> None:
    """What a model says of pictures: probabilities, decision, and when it should not decide.

    With --out the same command goes on where it was stopped. Exit code 1 if any picture could not be read.
    """
    from rich.console import Console

    from hf_medtl.cli.predict import predict_files
    from hf_medtl.data.inputs import image_files
    from hf_medtl.predict import Predictor
    from hf_medtl.publish.sentences import NOTICE

    predictor = Predictor.from_pretrained(model, revision, device, trust_remote_code)
    if out:
        identity = f"{model}@{predictor.revision}"
        number, failed = predict_files(
            predictor, places, out, identity, masks, maps, batch_size, explain, tta, mc_dropout, dicom
        )
        print(f"{out}: {number} pictures{f', {failed} of them with an error' if failed else ''}")
        raise typer.Exit(int(failed > 0))
    if masks or maps or explain:
        raise MedtlError("--masks and --maps go with a table. Give --out, too.")
    console, failed, seen = Console(highlight=False, soft_wrap=True), 0, dict[str, None]()
    for prediction in predictor.stream(
        (path for place in places for path in image_files(place)), batch_size, None, tta, mc_dropout
    ):
        console.print(describe(prediction), markup=False)
        failed += bool(prediction.error)
        seen |= dict.fromkeys((prediction.decision or "").split("|"))
    for label in seen.keys() & predictor.wording.keys():
        console.print(f"{label}: {predictor.wording[label]}", markup=False)
    console.print(NOTICE)
    raise typer.Exit(int(failed > 0))


def describe(prediction: "Prediction") -> str:
    """One line for people."""
    if prediction.error:
        return f"error: {prediction.error}"
    its = prediction.area or prediction.probabilities
    line = f"{prediction.name}: {prediction.decision or ('outlined' if prediction.area else 'none of the labels')}"
    line += f" ({', '.join(f'{name} {value:.3f}' for name, value in its.items())})"
    if prediction.spread is not None:
        line += f" ± {prediction.spread:.3f}"
    return f"{line}; abstain: {', '.join(prediction.reasons)}" if prediction.abstain else line


@app.command()
def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or of all folds.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", "--output-dir", help="New folder for the ensemble.")],
    soup: Annotated[bool, typer.Option("--soup", help="Average the weights, not the probabilities.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data_dir", "--data-dir", help="The runs' data, to calibrate and test a soup of one split."),
    ] = None,
) -> None:
    """Put runs together: one model that gives the mean of their calibrated probabilities."""
    from hf_medtl.runs.console import show_results
    from hf_medtl.runs.ensemble import ensemble

    result = ensemble(runs, output_dir, soup, data_dir)
    if "metrics" in result:
        show_results(output_dir, result)
    print(f"{output_dir}: weights and README.md, which says what is known of it.")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or of all folds; two or more.")],
    out: Annotated[Path, typer.Option(help="Folder for README.md, comparison.json and figures/.")] = Path("comparison"),
    metric: Annotated[
        list[str] | None, typer.Option(help="To test, may be repeated; the first ranks. ROC AUC and accuracy, or Dice.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Run that the others are compared with, or best; the first if not given.")
    ] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="Where the time for one picture is measured: cpu, cuda, ...")] = "cpu",
    no_latency: Annotated[
        bool, typer.Option("--no_latency", "--no-latency", help="Do not measure the time for one picture.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Runs side by side: metrics, paired differences with corrected p-values, costs, and where they disagree."""
    from hf_medtl.runs.compare import compare_runs, measure_costs
    from hf_medtl.runs.compare_page import check_out, show_comparison, write_comparison

    check_out(out)
    comparison = compare_runs(runs, metric or (), reference, seed)
    costs = measure_costs(comparison.runs, None if no_latency else device)
    show_comparison(comparison, costs, out, write_comparison(comparison, costs, out, data_dir))


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="Folder of a run, or id of a published one.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures and explanations.json; MODEL/explanations if not given.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A name of `hf-medtl data list`; that of the run if not given.")
    ] = None,
    data_dir: DataDir = None,
    method: Annotated[
        str, typer.Option(help="gradcam, gradcam++, eigencam, scorecam (slow), rollout or integrated_gradients.")
    ] = "gradcam",
    layer: Annotated[str | None, typer.Option(help="Name of a module; found if not given.")] = None,
    split: Annotated[str, typer.Option(help="Of the run: test, validation or train.")] = "test",
    number: Annotated[int, typer.Option(help="Of pictures on a page, at most.")] = 12,
    sample: Annotated[int, typer.Option(help="Of pictures for the verdict on each label, at most.")] = 12,
    masks: Annotated[
        bool, typer.Option("--masks", help="Measure how much of the maps lies inside the data set's own masks.")
    ] = False,
    lung_model: Annotated[
        str | None,
        typer.Option("--lung_model", "--lung-model", help="The same for the lungs, by a model: id or run folder."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Show what a classifier looks at, and whether such maps are to be believed.

    A run's folder keeps the verdict on its test split, explanations.json, and its card says it.
    """
    import torch
    import yaml
    from rich.console import Console
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.utils import cached_file

    from hf_medtl.cli.explain import dataset_masks, lung_masks
    from hf_medtl.data.images import read_image
    from hf_medtl.data.loading import load
    from hf_medtl.explain.report import check_supported, write_report
    from hf_medtl.publish.card import put_explanations

    if masks and lung_model:
        raise MedtlError("Maps are compared with one region. Give --masks or --lung_model.")
    own = Path(model).is_dir()
    if out is None and not own:
        raise MedtlError("--out says where the pages go. Only the folder of a run has a place of its own for them.")
    out = out or Path(model) / "explanations"
    try:
        loaded = AutoModelForImageClassification.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
        processor = AutoImageProcessor.from_pretrained(model)
        beside = {
            name: cached_file(model, name, _raise_exceptions_for_missing_entries=False)
            for name in ("recipe.yaml", "splits.csv")
        }
    except (OSError, ValueError) as error:
        raise MedtlError(
            f"{model} is no classifier that can be loaded ({str(error).strip().splitlines()[0]}). Give the folder of a "
            "finished run, or the id of a published one."
        ) from error
    check_supported(loaded)
    if not beside["splits.csv"]:
        raise MedtlError(
            f"{model} has no splits.csv, so nobody knows which pictures it has learnt from. Give a run of hf_medtl."
        )
    recipe = yaml.safe_load(Path(beside["recipe.yaml"]).read_text("utf-8")) if beside["recipe.yaml"] else {}
    name = dataset or recipe.get("dataset", "brain-tumor-mri")  # what is as by default is not in recipe.yaml
    found = load(name, data_dir, splits=beside["splits.csv"])
    rows = found.table[found.table["split"] == split]
    if rows.empty:
        raise MedtlError(f"The split {split!r} has no pictures. Give --split test, validation or train.")
    paths = [found.root / path for path in rows["path"]]
    labels, groups = list(rows["label"]), list(rows["group"])
    region = dataset_masks(found) if masks else lung_masks(lung_model) if lung_model else None
    result = write_report(
        loaded, processor, paths, labels, read_image, out, method, layer, number, sample,
        seed=seed, region=region, groups=groups,
    )  # fmt: skip
    if own and split == "test" and (Path(model) / "README.md").is_file():
        put_explanations(Path(model), result, split)
    console = Console(highlight=False, soft_wrap=True)
    for label, verdict in result["verdict"].items():
        console.print(f"[bold]{label}[/bold]: {verdict['summary']}")
    for label, facts in result.get("energy", {"by_label": {}})["by_label"].items():
        console.print(f"[bold]{label}[/bold]: {facts['summary']}")
    print(f"\nLook at {out}: pages of pictures, and every number in explanations.json.")


@data.command("list")
def list_() -> None:
    """The data sets that are known by name."""
    from rich.console import Console

    from hf_medtl.data.specs import DATASETS

    console = Console(highlight=False, soft_wrap=True)
    for spec in DATASETS.values():
        number = f"{sum(spec.counts.values()):,} pictures: " if spec.counts else ""
        console.print(f"[bold]{spec.name}[/bold]  {number}{', '.join(spec.labels) or 'labels as found'}")
        origin = spec.url or ("generated" if spec.phantom else f"--data_dir: {spec.example}")
        console.print(f"    {spec.title}. Licence: {spec.licence}. {origin}", markup=False)
    print("And any data set of pictures on the Hub, by its id, such as owner/name.")


@data.command()
def fetch(name: Name) -> None:
    """Download (or generate) a data set and say where it lies."""
    from hf_medtl.data.loading import locate_dataset

    print(locate_dataset(name, None)[1])


@data.command()
def audit(
    name: Name,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.html and audit.json.")] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(help="Data set whose pictures are looked for, as NAME or NAME=DIR; can be given again."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """What is wrong with a data set: copies, leaks between splits, shortcuts, overlap with others."""
    from rich.console import Console

    from hf_medtl.data.audit import audit, summary, write_audit
    from hf_medtl.data.loading import survey

    found = survey(name, data_dir)
    findings = audit(found, others(found, other or []), seed)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{found.spec.title}[/bold]: {findings['n']} pictures in {found.root}")
    for sentence in summary(findings):
        console.print(f"- {sentence}", markup=False)
    if out:
        print(f"\nLook at {write_audit(found, findings, out)}")
    else:
        print("\nPictures, tables and a page to read: give --out DIR.")


def others(found: "Survey", wishes: list[str]) -> list["Survey"]:
    """Surveys of the data sets named by the user as NAME or NAME=DIR."""
    from hf_medtl.data.loading import survey

    pairs = [wish.partition("=")[::2] for wish in wishes]
    return [survey(name, place or None) for name, place in pairs]


@data.command()
def preview(
    name: Name,
    data_dir: DataDir = None,
    augmentation: Annotated[str, typer.Option(help="Name of an augmentation, or none.")] = "light",
    preprocessing: Annotated[str, typer.Option(help="Medical steps, such as brain_crop,clahe.")] = "",
    lung_model: Annotated[
        str | None, typer.Option("--lung_model", "--lung-model", help="Model that lung_crop needs: id or folder.")
    ] = None,
    fit: Annotated[str, typer.Option(help="squash, or pad to keep the aspect.")] = "squash",
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 224,
    pictures: Annotated[int, typer.Option(help="Of each label.")] = 2,
    samples: Annotated[int, typer.Option(help="Augmented samples of each picture.")] = 6,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("preview.png"),
    seed: Seed = 0,
) -> None:
    """Draw pictures as a model gets them: prepared, and augmented."""
    from hf_medtl.data.augmentation import save_preview
    from hf_medtl.data.images import read_image
    from hf_medtl.data.loading import survey
    from hf_medtl.data.specs import split_labels
    from hf_medtl.models.preprocessing import check_steps, medical_processor, to_uint8

    steps = [step.strip() for step in preprocessing.split(",") if step.strip()]
    check_steps(steps, fit, lung_model)
    found = survey(name, data_dir)
    each = found.table.assign(label=found.table["label"].map(split_labels)).explode("label")
    rows = each.groupby("label", group_keys=False).sample(pictures, random_state=seed, replace=True)
    rows = rows.drop_duplicates("path")
    processor = medical_processor({"size": {"height": size, "width": size}}, steps, fit, lung_model)
    images = [read_image(found.root / path) for path in rows["path"]]
    captions = [f"{label}: {Path(path).name}" for label, path in zip(rows["label"], rows["path"], strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    save_preview(list(to_uint8(processor, images)), captions, augmentation, out, samples, seed)
    print(out)


@data.command()
def push(
    name: Name,
    repo: Annotated[str, typer.Argument(help="Where to: owner/name on the Hub.")],
    data_dir: DataDir = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repo private.")] = False,
    rights_held: Annotated[
        bool,
        typer.Option("--rights_held", "--rights-held", help="I hold the right to publish these pictures."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", "--dry-run", help="Write the files and say what would go; upload nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the files in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, where the set has none.")] = 42,
) -> None:
    """Publish a data set as Parquet with a card, splits without leaks and the audit."""
    from hf_medtl.data.audit import audit, summary, write_audit
    from hf_medtl.data.loading import load, survey
    from hf_medtl.data.publish import check_licence, folder_size_mb, upload_dataset, write_parquet

    loaded = load(name, data_dir, seed=seed)
    check_licence(loaded, rights_held)
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        if folder.exists() and any(folder.iterdir()):
            raise MedtlError(f"{folder} is not empty. Give an --out that is new or empty.")
        found = survey(name, data_dir)
        findings = audit(found)
        write_parquet(loaded, folder, summary(findings), repo)
        write_audit(found, findings, folder / "audit")
        print(f"{len(loaded.table)} pictures, {folder_size_mb(folder):.1f} MB")
        if dry_run:
            print(f"Dry run: nothing was uploaded to {repo}.")
        else:
            print(upload_dataset(folder, repo, private=private))
