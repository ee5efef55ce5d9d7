"""Integrity of run folders: files that are missing, damaged or changed since the run was finished."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors import SafetensorError, safe_open

from hf_medtl.common.checksums import CHECKSUMS, find_changed_files, listed_files, sha256_of_file, write_checksums
from hf_medtl.common.files import read_json
from hf_medtl.common.run_folder import RunFolder, read_table
from hf_medtl.errors import MedtlError
from hf_medtl.publish.check import weight_files
from hf_medtl.runs.folder import SEARCH_DB
from hf_medtl.training.checkpoints import CHECKSUMS as CHECKPOINT_CHECKSUMS
from hf_medtl.training.checkpoints import find_damage

REQUIRED = ("README.md", "results.json", "predictions.csv", "recipe.yaml")  # of a finished run


@dataclass
class Verification:
    """What was found in a run folder and the runs in it.

    Attributes:
        problems: A sentence for each file that is missing, damaged or changed.
        notes: What could not be checked, and why.
        files: Number of files that were checked.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0


def verify(folder: Path, accept: bool = False) -> Verification:
    """Check the files of a run, of a cross-validation, of a study, of a search or of an ensemble, and of checkpoints.

    Each file is compared with its checksum in checksums.json, or SHA256SUMS of a checkpoint, and read. Runs of version
    0.1.0 have no checksums.json; of these files are only read.

    Args:
        folder: The folder.
        accept: First take the files of finished runs for right as they are now, and write their checksums.

    Raises:
        MedtlError: The folder holds no run.
    """
    runs = [RunFolder(path) for path in (folder, *sorted(folder.glob("fold-*")), *sorted(folder.glob("cells/*/")))]
    runs = [run for run in runs if any((run.path / name).is_file() for name in (*REQUIRED, "config.json"))]
    checkpoints = [
        path for path in (folder, *(run.path for run in runs)) for path in sorted(path.glob("checkpoint-*/"))
    ]
    if not runs and not checkpoints:
        raise MedtlError(f"{folder} holds no run: it has none of {', '.join((*REQUIRED, 'config.json'))}.")
    result = Verification()
    for run in runs:
        if accept and not run.is_marked:
            write_checksums(run.path)
        _verify_run(run, result)
    for checkpoint in dict.fromkeys(checkpoints):
        result.files += sum(path.is_file() for path in checkpoint.iterdir())
        if damage := find_damage(checkpoint):
            result.problems.append(f"{checkpoint}: {damage}")
        elif not (checkpoint / CHECKPOINT_CHECKSUMS).is_file():
            result.notes.append(
                f"{checkpoint} has no {CHECKPOINT_CHECKSUMS}: its files were only checked for being whole."
            )
    return result


def _verify_run(run: RunFolder, result: Verification) -> None:
    files = listed_files(run.path)
    result.files += len(files)
    if run.is_marked:
        result.notes.append(f"{run.path} is not finished: its files have no checksums yet and were only read.")
    elif not (run.path / CHECKSUMS).is_file():
        result.notes.append(
            f"{run.path} has no {CHECKSUMS} (runs of 0.1.0 have none): its files were only read, so a change that "
            f"leaves a file readable is not seen. To record them as they are: hf-medtl verify {run.path} --accept"
        )
    changed = find_changed_files(run.path)
    result.problems += changed
    reported = " ".join(changed)
    missing = [path for path in _required_files(run) if not path.is_file() and str(path) not in reported]
    result.problems += [f"{path} is missing" for path in missing]
    result.problems += [
        problem for path in files.values() if str(path) not in reported for problem in _find_damage(path)
    ]
    results = run.path / "results.json"
    if results.is_file() and not changed and not any(str(results) in problem for problem in result.problems):
        recorded, splits = run.results.get("splits_sha256"), run.path / "splits.csv"
        if recorded and splits.is_file() and sha256_of_file(splits) != recorded:
            result.problems.append(
                f"{splits} is not the split that the run was tested on (splits_sha256 in results.json)"
            )


def _required_files(run: RunFolder) -> Iterator[Path]:
    """Yield the files that a run needs, beyond those that its checksums name."""
    others = any((run.path / name).exists() for name in ("study.json", SEARCH_DB))
    trained = (run.path / "config.json").is_file() or (run.path / "splits.csv").is_file()
    with contextlib.suppress(MedtlError):  # a damaged file, which is found by reading it
        trained = trained and not run.only_measures
    if trained and not run.is_marked and not others:
        yield run.path / "config.json"
        with contextlib.suppress(MedtlError):  # a damaged index, which is found by reading it
            yield from weight_files(run.path)
    if (run.path / "recipe.yaml").is_file() and not run.is_marked and not others:
        yield from (run.path / name for name in REQUIRED)


def _find_damage(path: Path) -> Iterator[str]:
    """Yield why a file can't be read, or that weights are not finite."""
    try:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".yaml":
            yaml.safe_load(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            read_table(path)
        elif path.suffix in (".md", ".py"):
            if not path.read_text(encoding="utf-8").strip():
                yield f"{path} is empty"
        elif path.suffix == ".png":
            Image.open(path).verify()
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as stream:
                names = [*stream.keys()]
                broken = [name for name in names if not torch.isfinite(stream.get_tensor(name)).all()]
            if broken:
                yield f"{path} has NaN or infinity in {broken[0]}"
    except MedtlError as error:
        yield str(error)
    except (OSError, ValueError, SyntaxError, SafetensorError, yaml.YAMLError) as error:  # SyntaxError: of Pillow
        yield f"{path} is damaged ({type(error).__name__})"
