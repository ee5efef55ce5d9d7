"""Names of splits in folders and tables."""

import re
from collections.abc import Collection

# A name is one of these words, alone or with words that say nothing: training_set, Test Data, images_val, imagesTr.
WORDS = {
    "train": r"train(?:ing)?|trn|tr",
    "validation": r"valid(?:at(?:ion|e|ing))?|val|dev(?:elopment)?|tuning",
    "test": r"test(?:s|ing)?|tst|ts|te|hold[ _-]?out",
}
OTHER_WORDS = r"(?:(?:data)?sets?|data|images?|imgs?|files?|folders?|splits?|subsets?|samples?|cases?|scans?|x-?rays?)"


def parse_split(name: str) -> str | None:
    """Return the split that a folder or a cell of a table names: train, validation, test; None if unknown.

    Case, digits, spaces and other signs between the words are ignored.
    """
    letters = re.sub(r"[\W\d_]+", "", name.lower())
    matches = (
        split for split, word in WORDS.items() if re.fullmatch(f"{OTHER_WORDS}*(?:{word}){OTHER_WORDS}*", letters)
    )
    return next(matches, None)


def split_word(name: str) -> tuple[str | None, str]:
    """Return the only split that the words of a name stand for, and the other words: (test, benign) for benign_Test."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", name).lower().split()
    splits = {split for word in words if (split := parse_split(word))}
    if len(splits) != 1:
        return None, name
    return splits.pop(), " ".join(word for word in words if not parse_split(word))


def find_splits(names: Collection[str]) -> dict[str, str]:
    """Return folder -> split for folders beside one another; empty if they are no splits.

    They are if one is called train, all are names of different splits, or they differ in the name of the split alone.
    """
    named = {name: split for name in names if (split := parse_split(name))}
    if "train" in named.values() or (len(named) == len(names) and len(set(named.values())) > 1):
        return named
    words = {name: split_word(name) for name in names}
    named = {name: split for name, (split, _) in words.items() if split}
    return named if len(set(named.values())) > 1 and len({words[name][1] for name in named}) == 1 else {}
