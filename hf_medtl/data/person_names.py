"""Names of persons in the paths and headers of a data set's files: what must not be published."""

import contextlib
import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import ExifTags, Image

from hf_medtl.data.fingerprints import map_threads
from hf_medtl.data.images import EXTENSIONS, is_dicom

PACKAGE = Path(__file__).parents[1]
IN_PATH = "a file or folder name of the data"
IN_DICOM = "a DICOM header of the data"
IN_TEXT = "EXIF, XMP or other text in an image of the data"
DICOM_KEYWORDS = (
    *("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName"),
    *("PatientMotherBirthName", "ResponsiblePerson", "PatientAddress", "AccessionNumber"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "RequestingPhysician", "OperatorsName"),
    *("NameOfPhysiciansReadingStudy", "PhysiciansOfRecord"),
)
# Fields of EXIF, PNG and XMP in which a person may be named; others name cameras and programs.
_EXIF_TAGS = (
    *("Artist", "CameraOwnerName", "ImageDescription", "UserComment"),
    *("XPAuthor", "XPComment", "XPKeywords", "XPSubject", "XPTitle"),
)
_TEXT_KEYS = {"author", "comment", "creator", "description", "id", "name", "patient", "subject", "title"}
_XMP = re.compile(r"<(?:dc:(?:creator|title|description|subject)|[\w]+:(?:OwnerName|Author\w*|Person\w*))\b.*?</", re.S)
WORD = re.compile(r"[^\W\d_]+")
LETTERS = 4  # that a word has at least; shorter ones are found in any text
LONG_NUMBER, LONGEST_VALUE = 7, 64  # digits of a number without letters; characters of an identifier


def fold(text: str) -> str:
    """Return text in which letters are equal that differ in case or in how they are encoded."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def squeeze(text: str) -> str:
    """Return the folded letters and digits of a text."""
    text = fold(text)
    return text if text.isalnum() else "".join(filter(str.isalnum, text))


def split_words(text: str) -> list[str]:
    """Return the folded words of a text, and the parts of those such as ErikaMuster."""
    words = []
    for word in WORD.findall(text if text.isascii() else unicodedata.normalize("NFKC", text)):
        if word.islower() or word.isupper():
            words.append(word)
            continue
        parts = re.findall(r"[^\W\d_a-z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])", word)
        words += [word, *(parts if len(parts) > 1 else [])]
    return [fold(word) for word in words]


def is_long(word: str) -> bool:
    """Return True if a word is long enough to be a name: four letters, or two of a script with a sign a syllable."""
    return len(word) >= (2 if min(word, default="a") >= "\u3040" else LETTERS)


def is_name(word: str) -> bool:
    """Return True if a folded word may be a name: it is long enough, and this package does not write it itself."""
    return is_long(word) and word not in vocabulary()


def names_in_paths(paths: Iterable[str], public: Iterable[str] = ()) -> dict[str, str]:
    """Return words, and whole names of files and folders, that may name a person, with IN_PATH.

    Args:
        paths: POSIX paths below the data folder.
        public: Labels and other texts that are published; their words name nobody.
    """
    components = {part for path in paths for part in PurePosixPath(path).parts}
    names: dict[str, str] = {}
    own = {word for text in public for word in (squeeze(text), *split_words(text))}
    for component in components:
        end = next((end for end in EXTENSIONS if component.lower().endswith(end)), "")
        stem = component[: len(component) - len(end)]
        words = [word for word in split_words(stem) if is_name(word) and word not in own]
        if words and squeeze(stem) not in own:
            names |= dict.fromkeys([*words, squeeze(stem)], IN_PATH)
    return names


def names_in_headers(files: Sequence[Path]) -> dict[str, str]:
    """Return words of DICOM headers and of texts in images that may name a person, with IN_DICOM or IN_TEXT.

    Args:
        files: The images; missing and unreadable ones are left out.
    """
    names: dict[str, str] = {}
    for names_of_file in map_threads(_read_names, files, "Reading headers", "file"):
        names |= names_of_file
    return names


def _read_names(path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    with contextlib.suppress(Exception):  # readers raise whatever a damaged header makes them
        with path.open("rb") as stream:
            dicom = is_dicom(stream, path.suffix.lower())
        for value in _dicom_values(path) if dicom else []:
            names |= dict.fromkeys(_name_keys(value), IN_DICOM)
        if not dicom:
            with Image.open(path) as image:
                for value in image_texts(image):
                    names |= dict.fromkeys(_name_keys(value), IN_TEXT)
    return names


def _name_keys(text: str) -> list[str]:
    """Return the words of a value in a header, and its letters and digits, also with two words the other way round."""
    words, whole = list(filter(is_long, split_words(text))), squeeze(text)
    keys = [word for word in words if is_name(word)]
    if len(words) == 2:
        keys += ["".join(words), "".join(words[::-1])]
    digits = sum(map(str.isdigit, whole))
    if digits >= (LONG_NUMBER if digits == len(whole) else LETTERS) and len(whole) <= LONGEST_VALUE:
        keys.append(whole)
    return keys


def _dicom_values(path: Path) -> list[str]:
    from pydicom import dcmread

    header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(DICOM_KEYWORDS))
    values: list[str] = []
    for keyword in DICOM_KEYWORDS:
        value = header.get(keyword)
        values += map(str, value) if isinstance(value, list | tuple) or hasattr(value, "append") else [str(value or "")]
    return values


def image_texts(image: Image.Image) -> list[str]:
    """Return the texts in an image's EXIF, XMP and PNG fields in which a person may be named."""
    texts = []
    exif = image.getexif()
    for fields in (exif, exif.get_ifd(ExifTags.IFD.Exif)):
        named = {ExifTags.TAGS.get(tag, ""): value for tag, value in fields.items()}
        texts += [_decode(named[name], name) for name in _EXIF_TAGS if name in named]
    info: Mapping[Any, Any] = image.info
    for key, value in info.items():
        if not isinstance(value, str | bytes) or key in ("exif", "icc_profile"):
            continue
        if "xmp" in str(key).lower() or "xml" in str(key).lower():
            texts += [re.sub(r"<[^>]*>", " ", part) for part in _XMP.findall(_decode(value))]
        elif _TEXT_KEYS & {*split_words(str(key))}:
            texts.append(_decode(value))
    return texts


def _decode(value: Any, name: str = "") -> str:
    if not isinstance(value, bytes):
        return str(value)
    if name.startswith("XP") or value.startswith(b"UNICODE\0"):  # in the byte order of the file
        value = value.removeprefix(b"UNICODE\0")
        return f"{value.decode('utf-16-le', 'ignore')} {value.decode('utf-16-be', 'ignore')}"
    return value.decode("utf-8", "ignore")


@functools.cache
def vocabulary() -> frozenset[str]:
    """Return the words that this package writes in lower case: a card has these without naming anybody."""
    files = (path for suffix in ("py", "jinja", "md") for path in PACKAGE.rglob(f"*.{suffix}"))
    return frozenset(
        word for path in files for word in re.findall(r"(?<![^\W\d])[a-z]{4,}(?![^\W\d_])", path.read_text("utf-8"))
    )
