"""Run folders -> files: page, slides, PDF."""

from collections.abc import Sequence
from pathlib import Path

from hf_medtl.errors import MedtlError
from hf_medtl.report.build import build
from hf_medtl.report.page import page


def write_report(
    runs: Sequence[Path], out: Path, slides: Path | None = None, pdf: Path | None = None, data_dir: Sequence[str] = ()
) -> list[Path]:
    """Write a page and, if wanted, slides and a PDF; return their paths.

    Args:
        runs: folders of finished runs, or of all folds.
        out, slides, pdf: files; those that are there are replaced.
        data_dir: where data lie, each DIR for all runs or DATASET=DIR; without it the report has no pictures.

    Raises:
        MedtlError: a folder holds no finished run, a file has another suffix, or plotly, python-pptx or reportlab is
            not installed.
    """
    for path, suffix in ((out, ".html"), (slides, ".pptx"), (pdf, ".pdf")):
        if path and path.suffix.lower() != suffix:
            raise MedtlError(f"Expected a file that ends with {suffix}, found {path}.")
    report = build(runs, places(data_dir))
    contents: dict[Path, bytes] = {out: page(report).encode()}
    if slides:
        from hf_medtl.report.slides import presentation

        contents[slides] = presentation(report)
    if pdf:
        from hf_medtl.report.pdf import document

        contents[pdf] = document(report)
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(contents)


def places(wishes: Sequence[str]) -> dict[str, Path]:
    """Data set -> its place, of DIR ("") and DATASET=DIR.

    Raises:
        MedtlError: two for one data set.
    """
    found: dict[str, Path] = {}
    for wish in wishes:
        name, equals, place = wish.partition("=")
        key = name if equals else ""
        if key in found:
            raise MedtlError(f"--data_dir gives two places for {key or 'all runs'}. Name the data sets: DATASET=DIR.")
        found[key] = Path(place if equals else name)
    return found
