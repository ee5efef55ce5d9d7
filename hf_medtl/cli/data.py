"""The commands `hf-medtl data list`, `fetch`, `audit`, `preview` and `push`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import (
    AllowWord,
    Columns,
    DataDir,
    DatasetName,
    DryRun,
    Private,
    PublishNames,
    Seed,
    make_group,
    one_of,
)
from hf_medtl.training.options import CHOICES

app = make_group("Datasets: list, fetch, audit, preview, push.")


@app.command("list")
def list_() -> None:
    """List the datasets that have a name."""
    from hf_medtl.common.console import make_console, with_bold
    from hf_medtl.data.specs import DATASETS

    console = make_console()
    for spec in DATASETS.values():
        size = f"{spec.size:,} images: " if spec.size else ""
        labels = ", ".join(spec.labels) or "labels as in the data"
        console.print(with_bold("", spec.name, f"  {size}{labels}"), soft_wrap=True)
        url = spec.url or ("generated" if spec.phantom else f"--data_dir: {spec.example}")
        console.print(f"    {spec.title}. Licence: {spec.licence}. {url}", soft_wrap=True)
    print("Any image dataset on the Hub works, too, by its id, such as owner/name.")


@app.command()
def fetch(name: DatasetName) -> None:
    """Download (or generate) a dataset and print its folder."""
    from hf_medtl.data.loading import locate_dataset

    print(locate_dataset(name, None)[1])


@app.command()
def audit(
    name: DatasetName,
    data_dir: DataDir = None,
    columns: Columns = "",
    out: Annotated[Path | None, typer.Option(help="Folder for audit.html and audit.json.")] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(help="Dataset to search for the same images, as NAME or NAME=DIR; can be repeated."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Check a dataset for duplicates, leaks between splits, shortcuts and overlap with other datasets."""
    from hf_medtl.common.console import make_console, with_bold
    from hf_medtl.data.audit import audit
    from hf_medtl.data.audit_page import summary, write_audit
    from hf_medtl.data.columns import parse_columns
    from hf_medtl.data.loading import survey

    surveyed = survey(name, data_dir, columns=parse_columns(columns))
    others = [survey(label, folder or None) for label, _, folder in (text.partition("=") for text in other or ())]
    findings = audit(surveyed, others, seed)
    console = make_console()
    counted = f": {findings['n']} images in {surveyed.root}"
    console.print(with_bold("", surveyed.spec.title, counted), soft_wrap=True)
    for note in surveyed.spec.notes:
        console.print(f"- {note}", soft_wrap=True)
    for sentence in summary(findings):
        console.print(f"- {sentence}", soft_wrap=True)
    if out:
        print(f"\nSee {write_audit(surveyed, findings, out)}")
    else:
        print("\nGive --out DIR for a page with images and tables.")


@app.command()
def preview(
    name: DatasetName,
    data_dir: DataDir = None,
    columns: Columns = "",
    augmentation: Annotated[
        str,
        typer.Option(
            help="Name of an augmentation, or none.", callback=one_of("--augmentation", CHOICES["augmentation"])
        ),
    ] = "light",
    preprocessing: Annotated[str, typer.Option(help="Medical preprocessing steps, such as brain_crop,clahe.")] = "",
    lung_model: Annotated[
        str | None, typer.Option("--lung_model", help="Model that lung_crop needs: Hub id or run folder.")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="squash, or pad to keep the aspect ratio.", callback=one_of("--fit", CHOICES["fit"]))
    ] = "squash",
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 224,
    images: Annotated[int, typer.Option("--images", "--pictures", help="Number of images of each label.")] = 2,
    samples: Annotated[int, typer.Option(help="Number of augmented samples of each image.")] = 6,
    out: Annotated[Path, typer.Option(help="Image file to write.")] = Path("preview.png"),
    seed: Seed = 0,
) -> None:
    """Draw images as the model receives them: preprocessed and augmented."""
    from hf_medtl.common.text import split_commas
    from hf_medtl.data.augmentation import save_preview
    from hf_medtl.data.columns import parse_columns
    from hf_medtl.data.images import read_image
    from hf_medtl.data.loading import survey
    from hf_medtl.data.specs import split_labels
    from hf_medtl.models.preprocessing import check_steps, medical_processor, to_uint8

    steps = list(split_commas(preprocessing))
    check_steps(steps, fit, lung_model)
    surveyed = survey(name, data_dir, columns=parse_columns(columns))
    labelled = surveyed.table.assign(label=surveyed.table["label"].map(split_labels)).explode("label")
    rows = labelled.groupby("label", group_keys=False).sample(images, random_state=seed, replace=True)
    rows = rows.drop_duplicates("path")
    processor = medical_processor({"size": {"height": size, "width": size}}, steps, fit, lung_model)
    pixels = to_uint8(processor, [read_image(surveyed.root / path) for path in rows["path"]])
    captions = [f"{label}: {Path(path).name}" for label, path in zip(rows["label"], rows["path"], strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    save_preview(list(pixels), captions, augmentation, out, samples, seed)
    print(out)


@app.command()
def push(
    name: DatasetName,
    repo: Annotated[str, typer.Argument(help="Target dataset repository on the Hub: owner/name.")],
    data_dir: DataDir = None,
    columns: Columns = "",
    private: Private = False,
    rights_held: Annotated[
        bool, typer.Option("--rights_held", help="I hold the right to publish these images.")
    ] = False,
    outside: Annotated[
        list[Path] | None,
        typer.Option(help="Folder outside the data whose images or masks may be published, too. Can be repeated."),
    ] = None,
    publish_names: PublishNames = False,
    allow_word: AllowWord = None,
    dry_run: DryRun = False,
    out: Annotated[Path | None, typer.Option(help="Keep the files in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the split, if the dataset has none.")] = 42,
) -> None:
    """Publish a dataset as Parquet with a card, leak-free splits and the audit."""
    from hf_medtl.common.csv_cells import to_csv
    from hf_medtl.common.files import write_atomic
    from hf_medtl.data.audit import audit
    from hf_medtl.data.audit_page import summary, write_audit
    from hf_medtl.data.columns import parse_columns
    from hf_medtl.data.identifiers import IDENTIFIERS, list_identifiers, number_images
    from hf_medtl.data.loading import load, survey
    from hf_medtl.data.publish import (
        check_licence,
        check_places,
        check_published_names,
        folder_size_mb,
        hide_names,
        upload_dataset,
        write_parquet,
    )
    from hf_medtl.publish.private_names import allowed_words
    from hf_medtl.runs.output_folder import check_new, filling

    if out:
        check_new(out)
    loaded = load(name, data_dir, seed=seed, columns=parse_columns(columns))
    check_licence(loaded, rights_held)
    with filling(out, "writes a dataset") if out else tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        surveyed = survey(name, data_dir, columns=parse_columns(columns))
        check_places(surveyed, outside or ())
        findings = audit(surveyed)
        if publish_names or surveyed.spec.public:
            write_parquet(loaded, folder, summary(findings), repo)
            write_audit(surveyed, findings, folder / "audit")
        else:
            identifiers = number_images(surveyed.table["image_id"].tolist())
            write_parquet(hide_names(loaded, identifiers), folder, summary(findings), repo)
            names = dict(zip(surveyed.table["path"], surveyed.table["image_id"].map(identifiers), strict=True))
            write_audit(surveyed, findings, folder / "audit", names)
            check_published_names(folder, surveyed, allowed_words(allow_word))
            if out:
                write_atomic(folder / IDENTIFIERS, to_csv(list_identifiers(surveyed.table, surveyed.root, identifiers)))
        print(f"{len(loaded.table)} images, {folder_size_mb(folder):.1f} MB")
        if dry_run:
            print(f"Dry run: nothing was uploaded to {repo}.")
        else:
            print(upload_dataset(folder, repo, private=private))
