"""The command `hf-medtl predict`; `hf_medtl.runs.batch_predict` writes its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_medtl.cli.options import MAP_METHODS, Device, Model, Revision, TrustRemoteCode, check_suffix, one_of
from hf_medtl.errors import MedtlError

if TYPE_CHECKING:
    from hf_medtl.predict import Prediction


def predict(
    model: Model,
    inputs: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Table to write: .csv, .jsonl or .parquet; printed if not given.",
            callback=check_suffix("--out", ".csv", ".jsonl", ".parquet"),
        ),
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder for the masks of a segmentation model.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for images overlaid with heatmaps; see --explain.")] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            help="Heatmap method: gradcam, gradcam++, eigencam, rollout, ...; uncertainty for a segmentation model.",
            callback=one_of("--explain", (*MAP_METHODS, "uncertainty")),
        ),
    ] = None,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom/--no_dicom", help="Write masks and heatmaps of DICOM files as DICOM, too; these name the patient."
        ),
    ] = False,
    tta: Annotated[
        int, typer.Option(min=0, help="Test-time augmentation: number of additional views of each image.")
    ] = 0,
    mc_dropout: Annotated[
        int, typer.Option("--mc_dropout", min=0, help="Number of additional passes with dropout active (MC dropout).")
    ] = 0,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Number of images in a batch.")] = 16,
    revision: Revision = None,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Predict probabilities and decisions for images, and say when to abstain.

    The decision is what counts: it applies the saved threshold, so it can differ from the most probable label. With
    --out an interrupted command resumes when it is repeated. Exit code 1 if an image could not be read.
    """
    from hf_medtl.common.console import make_console
    from hf_medtl.common.text import printable
    from hf_medtl.predict import Predictor
    from hf_medtl.publish.sentences import NOTICE
    from hf_medtl.runs.batch_predict import check_outputs, predict_files

    if out:
        check_outputs(out, masks, maps, explain)
    elif masks or maps or explain:
        raise MedtlError("--masks, --maps and --explain need a table. Give --out, too.")
    predictor = Predictor.from_pretrained(model, revision, device, trust_remote_code)
    if out:
        identity = f"{model}@{predictor.revision}"
        number, failed = predict_files(
            predictor, inputs, out, identity, masks, maps, batch_size, explain, tta, mc_dropout, dicom
        )
        print(f"{printable(out)}: {number} images{f', {failed} of them with an error' if failed else ''}")
        raise typer.Exit(int(failed > 0))
    console, failed, decided = make_console(), 0, dict[str, None]()
    for prediction in predictor.stream(inputs, batch_size, None, tta, mc_dropout):
        console.print(printable(_describe(prediction)), soft_wrap=True)
        failed += bool(prediction.error)
        decided |= dict.fromkeys((prediction.decision or "").split("|"))
    for label in decided.keys() & predictor.wording.keys():
        console.print(f"{label}: {predictor.wording[label]}", soft_wrap=True)
    console.print(NOTICE, soft_wrap=True)
    raise typer.Exit(int(failed > 0))


def _describe(prediction: "Prediction") -> str:
    if prediction.error:
        return f"error: {prediction.error}"
    values = prediction.area or prediction.probabilities
    line = f"{prediction.name}: {prediction.decision or ('segmented' if prediction.area else 'none of the labels')}"
    line += f" ({', '.join(f'{name} {value:.3f}' for name, value in values.items())})"
    if prediction.decision and prediction.label not in prediction.decision.split("|"):
        line += f"; most probable: {prediction.label}"
    if prediction.spread is not None:
        line += f" ± {prediction.spread:.3f}"
    return f"{line}; abstain: {', '.join(prediction.reasons)}" if prediction.abstain else line
