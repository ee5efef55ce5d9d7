"""Positive label of a binary task: specified, defined by the dataset, or chosen by the names of the two labels."""

import difflib
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from hf_medtl.data.specs import DatasetSpec
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

# How the positive label was chosen, as `DatasetSpec.positive_source` and results.json name it -> for a sentence.
SOURCES = {
    "dataset": "as the dataset defines it",
    "option": "as --positive_label says",
    "model": "as saved with the model",
    "names": "because the other name means its absence",
    "order": "only because it is the last of the two in alphabetical order: their names do not tell which one is the "
    "finding. Sensitivity, specificity and threshold are about this one; --positive_label sets it",
}

# Names are compared as `_words` writes them. Names that by themselves mean that a finding is absent:
ABSENT = re.compile(
    r"no|non|not|without|nil|none|n[eé]g(ati[vf]\w*)?s?( .*)?|absent( .*)?|absence|false( .*)?|nothing|clear|clean"
    r"|n|0+|-|-\d+|\D+ ?0+|.+ -|normal\S*( .*)?|healthy( .*)?|controls?( .*)?|wild ?type( .*)?"
    r"|wt|cn|hc|nc|nor|norm|td|typical(ly developing)?|well|intact|un(affected|remarkable|involved)|asymptomatic"
    r"|background|alive|surviv(ed|ors?)|ned"
    r"|.* (no|false|negative|neg|free|absent|normal|healthy|controls?|none|wild ?type|wt)|\S{3,}less"
    # In German, French, Spanish, Portuguese, Italian, Slavic languages, Turkish, Chinese, Japanese and Korean:
    r"|(gesund|unauff[aä]llig|negativ|saud[aá]ve|zdrav|zdrow|норма|здоров|отрицат|sağlıklı)\w*|sain[es]*|san[oa]s?"
    r"|(kein\w*|ohne|sans|senza|bez|без|нет)( .*)?|(sin|sem) .+|nein|não|nao|hayır"
    r"|[正健阴陰][常康性].*|[无無没沒未否].*|정상|음성"
)
# Those that mean it only beside a name of something worse: benign beside malignant, but not beside normal.
MILDER = re.compile(
    r"benign( .*)?|low( .*)?|others?|rest|stable|healed|viable|united|union|safe|responsive|resectable|controlled"
    r"|differentiated|favou?rable( .*)?|good( .*)?|usable|gradable"
    r"|benign[aeo]s?|bénin\w*|gutartig\w*|доброкач\w*|良性.*|양성"
)
PRESENT = re.compile(
    r"yes|true|pos(itive)?s?( .*)?|presen(t|ce)|abnormal(ity)?|malignan(t|cy)|cancer(ous)?|sick|ill|diseased?|patients?"
    r"|oui|ja|sí|sì|sim|da|tak|evet|да|[是有].*|krank|hasta|malad[eoi]\w*|enferm[oa]|bolest\w*|bolesn\w*|malign\w*|malin\w*"
    r"|bösartig\w*|恶性|惡性|阳性|陽性|cases?|affected|infected|\+|.+ (\+|pos|positive|present)|mutant|mutated"
)
NEGATIONS = ("no", "non", "not", "un", "without", "w o", "absence of", "free of")
# What a name such as notumor negates although the other label, such as glioma, is called otherwise.
FINDINGS = re.compile(
    r"finding|tumou?r|cancer|carcinoma|malign|lesion|mass|nodul|glioma|metasta|fractur|ha?emorrh|bleed|infect|pneumo"
    r"|covid|sars|tubercul|tb$|malaria|parasit|diseas|dement|alzheim|parkinson|autis|epilep|seizure|glaucom|cataract"
    r"|drusen|retinopath|d[rm]e?$|amd$|cnv$|melanom|polyp|ulcer|stroke|ischa?em|infarct|ich$|pe$|o?edema|effusion|opaci"
    r"|consolid|cardiomegal|stenos|aneurysm|calcif|plaque|symptom|patholog|defect|abnormal|anomal|arthrit|scolio|hernia"
    r"|cyst|stone"
)


def choose_positive(spec: DatasetSpec, labels: Sequence[str], positive: str | None = None) -> DatasetSpec:
    """Return the spec with the positive one of two labels, and how it was chosen.

    Args:
        spec: The dataset.
        labels: Its labels that have images.
        positive: The label that the user specified, if any.

    Raises:
        MedtlError: `positive` is not one of two labels of single-label data.
    """
    if positive is not None:
        check_positive(spec, positive, labels)
        return replace(spec, positive=positive, positive_source="option")
    if spec.positive in labels or len(labels) != 2 or spec.multilabel or spec.is_segmentation:
        return spec
    label, source = guess_positive(labels)
    return replace(spec, positive=label, positive_source=source)


def describe_positive(positive: str, source: str) -> str:
    """Return the positive label and how it was chosen, for the plan, the card and pages.

    Args:
        positive: The label.
        source: Key of `SOURCES`.
    """
    return f"{positive}, {SOURCES[source]}"


def warn_of_guess(title: str, positive: str, source: str, labels: Sequence[str]) -> None:
    """Log a warning if the positive label was chosen although the names of the two labels do not tell.

    Args:
        title: Name of the dataset or model.
        positive: The label.
        source: Key of `SOURCES`.
        labels: Both labels.
    """
    if source == "order":
        flags = " or ".join(f"--positive_label {label}" for label in labels)
        logger.warning("%s: the positive label is %s: %s.", title, describe_positive(positive, source), flags)


def check_positive(spec: DatasetSpec, positive: str, labels: Sequence[str] = ()) -> None:
    """Raise MedtlError if a label can't be the positive one of two labels that exclude each other.

    Args:
        spec: The dataset.
        positive: The label that the user specified.
        labels: The labels that have images; if they are not known yet, those of the spec are checked, if it has any.
    """
    names = ", ".join(labels or spec.labels)
    if not isinstance(positive, str):
        raise MedtlError(
            f"--positive_label must be text, but is {positive!r}. YAML reads yes, no and numbers as something else: "
            'write them as positive_label: "yes".'
        )
    if spec.multilabel:
        raise MedtlError(
            f"A positive label is one of two mutually exclusive labels, found {positive!r} for multilabel data with "
            f"{names}. Each label has its own threshold: remove --positive_label."
        )
    if names and positive not in (labels or spec.labels):
        raise MedtlError(
            f"--positive_label must be one of the labels, found {positive!r} for {names}. "
            f"Did you mean {_closest(positive, labels or spec.labels)!r}?"
        )
    if labels and len(labels) != 2:
        raise MedtlError(
            f"--positive_label is for two labels, found {positive!r} for {names}. Remove it: each label has its own "
            "sensitivity and specificity."
        )


def guess_positive(labels: Sequence[str]) -> tuple[str, str]:
    """Choose the positive one of two labels by their names.

    A label is negative if its name says so (normal, no_tumor, wt, 0, ...), or if it is the other one with a negating
    prefix (unfractured beside fracture).

    Args:
        labels: Two labels.

    Returns:
        The positive label and the key of `SOURCES`: "names", or "order" if the names do not tell.

    Example:
        >>> guess_positive(["Parasitized", "Uninfected"])
        ('Parasitized', 'names')
        >>> guess_positive(["cat", "dog"])
        ('dog', 'order')
    """
    names = [_words(label) for label in labels]
    for is_negative in (
        lambda name, other: _means_absence(name) or _negates(name, other),
        lambda name, _: bool(MILDER.fullmatch(name)),
        lambda _, other: bool(PRESENT.fullmatch(other)),
    ):
        negative = [is_negative(*pair) for pair in (names, names[::-1])]
        if negative[0] != negative[1]:
            return labels[negative.index(False)], "names"
    return sorted(labels)[-1], "order"


def is_absence(label: str) -> bool:
    """Return True if a label by itself means that a finding is absent, such as normal or no_tumor."""
    return _means_absence(_words(label)) or bool(MILDER.fullmatch(_words(label)))


def _closest(word: str, labels: Sequence[str]) -> str:
    """Return the label that is spelt most like a word, whatever its case."""
    return max(labels, key=lambda label: difflib.SequenceMatcher(None, label.casefold(), word.casefold()).ratio())


def _words(label: str) -> str:
    """Return a label as words in lower case, without a number in front: 0_NonDemented is "non demented"."""
    label = unicodedata.normalize("NFC", label.strip())
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[a-zA-Z0-9])(?=[-+]+$)", " ", label)
    spaced = re.sub(r"(?<=\w)-(?=\w)|[^\w+-]|_", " ", spaced)
    return re.sub(r"^\d+ (?=\D)", "", " ".join(spaced.casefold().split()))


def _negated(name: str) -> list[tuple[str, bool]]:
    """Return what a name may negate, such as tumor in notumor, and whether the negation is a word of its own."""
    rests = [(name.removeprefix(word), name.startswith(f"{word} ")) for word in NEGATIONS if name.startswith(word)]
    return [(rest.strip(), is_word) for rest, is_word in rests if len(rest.strip()) > (0 if is_word else 1)]


def _means_absence(name: str) -> bool:
    """True if a name by itself means that a finding is absent."""
    negated = _negated(name)
    if any(_means_absence(rest) or MILDER.fullmatch(rest) for rest, _ in negated):  # not normal, unhealthy, unstable
        return False
    return bool(ABSENT.fullmatch(name)) or any(is_word or FINDINGS.match(rest) for rest, is_word in negated)


def _negates(name: str, other: str) -> bool:
    """True if a name is the other one, or has its stem, with a negation in front: unfractured beside fracture."""
    if _means_absence(other) or MILDER.fullmatch(other):
        return False
    other = other.replace(" ", "")
    for rest in (rest.replace(" ", "") for rest, _ in _negated(name)):
        shorter = min(len(rest), len(other))
        stem = max(min(shorter, 4), shorter - 3)
        if stem and rest[:stem] == other[:stem]:
            return True
    return False
