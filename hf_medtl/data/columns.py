"""Columns of tables: which has the file names, labels, patients, sources, masks and splits, by their usual names."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from hf_medtl.common.text import abbreviate, suggest
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.split_names import parse_split
from hf_medtl.errors import MedtlError

FIELDS = ("file_name", "label", "patient", "source", "mask", "split")

# Field -> names of its column in English and, last, in German, best first, as `plain_name` spells them.
ALIASES: dict[str, tuple[str, ...]] = {
    "file_name": (
        *("filename", "filepath", "file", "path", "imagepath", "imagefile", "imagefilename", "imagename", "imageindex"),
        *("image", "images", "img", "imgpath", "imgname", "imgfile", "imageid", "imgid", "idcode", "isicid", "fname"),
        *("dicom", "dicompath", "dicomfile", "dicomid", "dcm", "dcmpath", "sopinstanceuid"),
        *("dateiname", "datei", "dateipfad", "pfad", "bilddatei", "bildname", "bild"),
    ),
    "label": (
        *("label", "labels", "class", "classname", "classlabel", "diagnosis", "diagnoses", "dx", "finding", "findings"),
        *("findinglabels", "findinglabel", "target", "category", "pathology", "disease", "groundtruth"),
        *("diagnose", "befund", "klasse"),
    ),
    "patient": (
        *("patient", "patientid", "patientidentifier", "patientnumber", "patientno", "patientcode", "patientkey"),
        *(
            "patientindex",
            "patients",
            "pid",
            "patid",
            "ptid",
            "subject",
            "subjects",
            "subjectno",
            "subjectid",
            "subjectcode",
            "subjectnumber",
            "subj",
            "subjid",
        ),
        *("participant", "participantid", "person", "personid", "mrn", "case", "caseid", "casenumber", "lesionid"),
        *("patientenid", "patientennummer", "patientennr", "patientnr", "patnr", "patientin"),
        *("study", "studyid", "studyinstanceuid", "examid", "accessionnumber"),
    ),
    "source": (
        *("source", "site", "hospital", "institution", "institute", "center", "centre", "clinic", "facility"),
        *("klinik", "krankenhaus", "standort", "zentrum"),
    ),
    "mask": (
        *("mask", "masks", "maskpath", "maskfile", "maskfilename", "maskname", "segmentation", "segmentationpath"),
        *("segmentationfile", "segmentationmask", "segpath", "seg"),
    ),
    "split": (
        *("split", "splits", "datasplit", "splitname", "set", "subset", "partition", "phase", "usage", "traintest"),
        *("trainvaltest", "traintestsplit", "datasettype", "dataset", "fold"),
    ),
}
OWN_NAMES = {**{name: (name.replace("_", ""),) for name in FIELDS}, "label": ("label",)}  # spelled as ours in any case
# What else a column with such a name may be; it isn't used without being named.
HINTS = {
    "patient": r"patient|subject|participant|person|\bcases?\b|\bmrn\b|\bpid\b|\bpat\b|individual|proband|volunteer"
    r"|donor|animal|\bmouse\b|\brat\b|pa[czt]ij?en|pazient|bolesni|sujet|пациент|患者|病人|환자|hasta",
    "label": r"label|diagnos|finding|\bclass|target|category|patholog|disease",
    "split": r"split|fold\b|\bset\b|subset|partition|^(is |in |for )?(train|test|val|validation)(ing)?( data| set)?$",
    "mask": r"mask|segment",
}
# A column with such a word may be the patient if its values repeat.
IDENTIFIER = (
    r"\b(e?id|uid|guid|n[or]|num|number|nummer|code|key|name|study|exam|visit|series|accession|record|hospital)\b"
)


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    Attributes:
        rules: Field of FIELDS -> format string over the columns, such as `images/{filename}`, or for labels the names
            of columns of 0 and 1, joined by +.
        notes: What is used and what is not, as sentences.
        warnings: Columns that may have been meant, as sentences.
    """

    rules: dict[str, str]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parse_columns(text: str | None, option: str = "--columns") -> dict[str, str]:
    """Parse `--columns`: pairs such as `file_name=Path,label=Finding`.

    A value is the name of a column, several of 0 and 1 for the labels, joined by + (`label=Edema+Mass`), or a format
    string (`file_name=images/{id}.png`).

    Args:
        text: What the option says; None and "" give an empty dict.
        option: The option, for the error.

    Raises:
        MedtlError: Not such pairs, or an unknown field.
    """
    columns: dict[str, str] = {}
    if not isinstance(text, str | None):
        raise MedtlError(f"{option} takes pairs such as file_name=Path,label=Finding, found {text!r}.")
    for pair in filter(None, (text or "").split(",")):
        name, sign, value = (part.strip() for part in pair.partition("="))
        if not (sign and name and value):
            raise MedtlError(f"{option} takes pairs such as file_name=Path,label=Finding, found {pair.strip()!r}.")
        if name not in FIELDS:
            raise MedtlError(
                f"{option}: expected one of {', '.join(FIELDS)} before the sign =, found {name!r}. "
                f"{suggest(name, list(FIELDS)).removesuffix(' See --help.')}"
            )
        if name in columns:
            raise MedtlError(f"{option} gives {name} twice. Remove one of them.")
        columns[name] = value
    return columns


def choose_columns(
    frame: pd.DataFrame,
    stated: Mapping[str, str],
    has_file: Callable[[str], bool],
    table: str,
    guess: Iterable[str] = FIELDS,
) -> Columns:
    """Choose the column of each field: those stated, else those with a usual name whose content fits.

    Args:
        frame: The table as text.
        stated: Field -> column or format string, from the dataset or from `--columns`.
        has_file: True for a cell that names an existing file.
        table: The table, for messages.
        guess: Fields whose column may have another name than the field.

    Raises:
        MedtlError: A stated column does not exist; two columns may be the label; unknown splits.
    """
    names, guessed = column_names(frame), set(guess)
    rules = {name: _to_rule(names, name, value, table) for name, value in stated.items()}
    taken = {column for rule in rules.values() for column in columns_of(rule)}
    warnings: list[str] = []
    for name in ("file_name", "split", "mask", "source", "patient", "label"):
        if name in rules or (name == "label" and len(columns_of(rules.get("label", ""))) > 1):
            continue
        aliases = ALIASES[name] if name in guessed else OWN_NAMES[name]
        shared = columns_of(rules.get("file_name", "")) if name == "patient" else []  # files named after patients
        named = sorted((c for c in names if plain_name(c) in aliases and (c not in taken or c in shared)),
                       key=lambda c: (c != name, aliases.index(plain_name(c))))  # fmt: skip
        fitting = [column for column in named if _fits(name, column, frame[column], has_file)]
        if name == "file_name" and not fitting and name in guessed:
            fitting = named  # so that missing files are said to be missing
        if name == "label" and fitting:
            _check_one_label(frame, fitting, table)
        if fitting:
            rules[name] = f"{{{fitting[0]}}}"
            taken.add(fitting[0])
    unused = [column for column in names if column not in taken]
    if (patient := rules.get("patient", "").strip("{}")) and re.match(
        "study|exam|accession|lesion", plain_name(patient)
    ):
        warnings.append(
            f"{table}: images with the same {patient} stay together, but one patient with more than one {patient} can "
            "be in different splits. If there is a column of patients, name it: --columns patient=..."
        )
    for name in ("patient", "label", "split", "mask"):
        if name in rules or not guessed:  # the columns of a public dataset are known
            continue
        similar = [column for column in unused if _may_be(name, column, frame[column])]
        if similar:
            use = f"To use one: --columns {name}={similar[0]}"
            if name == "split" and not _fits(name, similar[0], frame[similar[0]], has_file):
                use = "To use one, write train, validation or test in each of its cells and call it split."
            warnings.append(
                f"{table}: the column{'s' * (len(similar) > 1)} {abbreviate(similar, 4)} may be the {name} but "
                f"{'are' if len(similar) > 1 else 'is'} not used. {use}"
            )
    return Columns(rules, [_describe(rules, unused, table)], warnings)


def check_header(names: list[str], has_file: Callable[[str], bool], table: str) -> None:
    """Refuse a table whose first row does not name its columns.

    Args:
        names: What the first row says.
        has_file: True for a cell that names an existing file.
        table: The table, for the error.

    Raises:
        MedtlError: The first row names a file, or is one cell with several words.
    """
    if files := [name for name in names if name.lower().endswith(EXTENSIONS) and has_file(name)]:
        raise MedtlError(
            f"{table}: the first row names the file {files[0]} instead of the columns. Add a row above it, such as "
            "file_name,label."
        )
    if len(names) == 1 and re.search(r"[\s:/]", names[0]):
        raise MedtlError(
            f"{table}: expected columns separated by comma, semicolon, tab or |, found only one, {names[0]!r}. Save "
            "the table as CSV."
        )


def columns_of(rule: str) -> list[str]:
    """Return the columns that a rule needs."""
    return re.findall(r"{([^{}]+)}", rule) if "{" in rule else [part for part in rule.split("+") if part]


def apply_rule(frame: pd.DataFrame, rule: str) -> list[str]:
    """Fill a format string with the cells of each row."""
    parts = re.split(r"{([^{}]+)}", rule)
    columns = [frame[part].tolist() if i % 2 else [part] * len(frame) for i, part in enumerate(parts)]
    return ["".join(cells).strip() for cells in zip(*columns, strict=True)]


def find_column(name: str, columns: Iterable[str]) -> str | None:
    """Return the column of a name, or the only one that differs in case, spaces and punctuation alone."""
    names = list(columns)
    similar = [column for column in names if plain_name(column) == plain_name(name)]
    return name if name in names else similar[0] if len(similar) == 1 else None


def column_names(frame: pd.DataFrame) -> list[str]:
    """Return the names of a table's columns."""
    return [str(name) for name in frame.columns]


def plain_name(column: str) -> str:
    """Return a column's name in lower case without spaces and punctuation."""
    return re.sub(r"[\W_]+", "", column).lower()


def _to_rule(names: list[str], name: str, value: str, table: str) -> str:
    """Return the rule for a stated column, with the columns as the table spells them; see `parse_columns`."""
    whole = find_column(value, names)
    if "{" not in value and whole is not None:
        return f"{{{whole}}}"
    if "{" not in value and "+" in value and name != "label":
        raise MedtlError(f"--columns {name}={value}: only labels can be spread over several columns, joined by +.")
    actual = {column: find_column(column, names) for column in columns_of(value)}
    for column in [column for column, match in actual.items() if match is None][:1]:
        close = difflib.get_close_matches(column, names, n=1, cutoff=0.4)
        hint = f"The most similar one is {close[0]!r}. " if close else ""
        raise MedtlError(f"{table} has no column {column!r} for {name}. {hint}Its columns are {abbreviate(names, 20)}.")
    if "{" in value:
        return re.sub(r"{([^{}]+)}", lambda match: f"{{{actual[match[1]]}}}", value)
    return "+".join(str(column) for column in actual.values())


def _fits(name: str, column: str, cells: pd.Series, has_file: Callable[[str], bool]) -> bool:
    """True if the content of a column can be that of a field; a column with the field's own name always does."""
    if name not in ("file_name", "mask", "split") and not cells.any():
        return False
    if plain_name(column) in OWN_NAMES[name] and name != "file_name":
        return True
    if name in ("file_name", "mask"):
        return any(map(has_file, sample_cells(cells)))
    if name == "patient" and plain_name(column) in ("case", "study"):  # not case and control, or a few projects
        return bool(cells.nunique() > max(2, len(cells) / 20))
    if name == "split":
        return all(parse_split(cell) for cell in set(cells) - {""}) and bool(cells.any())
    return True


def _may_be(name: str, column: str, cells: pd.Series) -> bool:
    """True if an unused column may be that of a field, by its name; of patients also by values that repeat."""
    repeats = 2 < cells[cells != ""].nunique() < (cells != "").sum()
    is_identifier = name == "patient" and repeats and re.search(IDENTIFIER, _words(column))
    return bool(is_identifier or re.search(HINTS[name], _words(column)))


def sample_cells(cells: pd.Series) -> list[str]:
    """Return at most 50 different cells that are not empty, from the whole column."""
    distinct = list(dict.fromkeys(filter(None, cells)))
    return distinct[:: -(-len(distinct) // 50) or 1]


def _check_one_label(frame: pd.DataFrame, columns: list[str], table: str) -> None:
    """Raise MedtlError if columns may all be the label and do not say the same."""
    first, *others = columns
    if first == "label":
        return
    different = [
        other for other in others
        if len(frame[[first, other]].drop_duplicates()) > min(frame[first].nunique(), frame[other].nunique())
    ]  # fmt: skip
    if different:
        raise MedtlError(
            f"{table}: the columns {', '.join([first, *different])} may all be the label. Choose one, such as "
            f"--columns label={first}."
        )


def _words(column: str) -> str:
    """Return a column's name as words in lower case: PatientID is patient id."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)).lower().strip()


def _describe(rules: Mapping[str, str], unused: list[str], table: str) -> str:
    """Return a sentence about the columns that are used and those that are not."""
    used = [
        f"{name} from {' + '.join(columns_of(rule))}" if columns_of(rule) != [name] else name
        for name in FIELDS
        if (rule := rules.get(name))
    ]
    rest = f"; not used: {abbreviate(unused, 12)}" if unused else ""
    return f"{table}: {', '.join(used)}{rest}."
