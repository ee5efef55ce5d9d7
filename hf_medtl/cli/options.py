"""Options that several commands share, and the rule for their spelling."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_medtl.common.model_place import check_folder, nearest_folder
from hf_medtl.common.text import nearest, printable
from hf_medtl.data.specs import check_dataset_name
from hf_medtl.errors import MedtlError

# For the whole app, in click's terms: --data-dir is --data_dir, as recipes spell it. Help shows the latter alone.
CONTEXT: dict[str, Any] = {"token_normalize_func": lambda token: token.replace("-", "_")}


EXPORT_FORMATS = ("onnx", "openvino")
MAP_METHODS = ("gradcam", "gradcam++", "eigencam", "scorecam", "rollout", "integrated_gradients")


def check_model(name: str) -> str:
    """Return the name of a model; raise MedtlError if it can only be a folder, which does not exist."""
    check_folder(name)
    return name


def check_models(names: Sequence[str] | None) -> Sequence[str] | None:
    """Return names of models; raise MedtlError as `check_model`."""
    for name in names or ():
        check_folder(name)
    return names


def check_exists(value: Any) -> Any:
    """Return a path, a list of them or None; raise MedtlError if one does not exist."""
    for path in value if isinstance(value, list | tuple) else [value] if value else []:
        if not path.exists():
            raise MedtlError(f"{printable(path)} does not exist.{nearest_folder(path)} Check the path.")
    return value


def check_runs(paths: Sequence[Path]) -> Sequence[Path]:
    """Return folders of runs; raise MedtlError if one does not exist or holds no finished run."""
    check_exists(paths)
    from hf_medtl.common.run_folder import RunFolder  # imports pandas

    for path in paths:
        RunFolder(path).check_finished()
    return paths


def check_figures(value: str) -> str:
    """Return formats of figures; raise MedtlError if one is unknown."""
    from hf_medtl.evaluation.matplotlib_backend import parse_formats

    if value != "png":
        parse_formats(value)
    return value


def one_of(option: str, names: Sequence[str]) -> Callable[[str | None], str | None]:
    """Return a check that the value of an option is one of these names, or None; before heavy imports."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise MedtlError(f"{option} is one of {', '.join(names)}, but found {value!r}.{nearest(value, names)}")
        return value

    return check


def check_suffix(option: str, *suffixes: str) -> Callable[[Path | None], Path | None]:
    """Return a check that the name of a file ends with one of these suffixes."""

    def check(path: Path | None) -> Path | None:
        if path and path.suffix.lower() not in suffixes:
            raise MedtlError(f"{option} is a file that ends with {' or '.join(suffixes)}, but found {path}.")
        return path

    return check


def check_known_dataset(name: str | None) -> str | None:
    """Return the name of a dataset; raise MedtlError if there is none of this name."""
    if name is not None:
        check_dataset_name(name)
    return name


Model = Annotated[str, typer.Argument(help="Run folder, or id of a model on the Hub.", callback=check_model)]
DatasetName = Annotated[
    str,
    typer.Argument(
        help="Name from `hf-medtl data list`, or id of a dataset on the Hub, such as owner/name.",
        callback=check_known_dataset,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data_dir", help="Folder or file with the data; downloaded if not given.", callback=check_exists),
]
Columns = Annotated[
    str, typer.Option(help="Columns of a table by other names, such as file_name=Path,label=Finding,patient=PatientID.")
]
UpdateCard = Annotated[
    bool, typer.Option("--update_card", help="With --out, too, save the results in the run's folder and on its card.")
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; an accelerator if there is one by default.")]
Figures = Annotated[
    str,
    typer.Option(
        help="Formats of figures, separated by commas: png (always written, 300 dpi), pdf, svg.", callback=check_figures
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", help="Run code from the model's repository; hf_medtl's models need none.")
]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository, if it does not exist yet.")]
PublishNames = Annotated[
    bool, typer.Option("--publish_names", help="Name images by their files, which may hold names, not by numbers.")
]
AllowWord = Annotated[
    list[str] | None,
    typer.Option(
        "--allow_word", help="Word that names no patient, though files of the data are called so. Can be repeated."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry_run", help="Check everything and list the files; upload nothing.")]
ModelLicense = Annotated[
    str | None, typer.Option("--model_license", help="License of the weights, as the Hub names it.")
]
LicenseWaiver = Annotated[
    str | None,
    typer.Option(
        "--license_waiver",
        help="Sentence for the card: who permits a license that allows more than those of data and base model.",
    ),
]
Waive = Annotated[
    list[str] | None,
    typer.Option(help="FIELD=REASON: why the card lacks a required field; written on the card. Can be repeated."),
]


def parse_waivers(waive: Sequence[str] | None) -> dict[str, str]:
    """Parse FIELD=REASON into a dict; `plan_upload` checks both."""
    return {name: reason for name, _, reason in (text.partition("=") for text in waive or ())}


def print_files(files: Mapping[str, Path]) -> None:
    """Print the size and name of each file."""
    for name, path in files.items():
        print(f"{path.stat().st_size / 1e6:9.2f} MB  {name}")


def make_group(text: str) -> typer.Typer:
    """Return a group of commands that shows its help if none is given."""
    group = typer.Typer(help=text, invoke_without_command=True)

    @group.callback()
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    return group
