"""Flags of a run: name, type, default and help of each option, without the seconds of importing transformers."""

import ast
import dataclasses
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from hf_medtl.common.text import nearest
from hf_medtl.errors import MedtlError
from hf_medtl.training.options import CHOICES, LISTS, Options

MORE_CHOICES = {"optim": ("adam",)}  # see `Recipe`
TRUE, FALSE = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")

# First field of `Options` in a row -> heading in --help of these fields.
HEADINGS = {
    "config": "Run",
    "dataset": "Data",
    "official_split": "Split",
    "external_dataset": "External test set",
    "split_seed": "Split",
    "model_name_or_path": "Model",
    "augmentation": "Images",
    "largest_components": "Decisions",
    "mixup": "Training",
    "threshold": "Decisions",
    "mixed_precision": "Training",
    "model_card": "Publishing",
    "output_dir": "Run",
    "num_train_epochs": "Training",
    "hub_strategy": "Publishing",
    "report_to": "Run",
    "restore_callback_states_from_checkpoint": "",
}
# Heading -> options of TrainingArguments, without another default here, that most people need.
INHERITED = {
    "Training": ("gradient_accumulation_steps", "max_steps", "use_cpu", "dataloader_num_workers"),
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option: a flag of the command line and a key of YAML files.

    Attributes:
        name: without dashes.
        types: names of the types of its values, such as {"float", "None"}.
        default: its value if it is not given.
        help: what it does.
        choices: all values, if they are few.
        bare: the value of a flag without one, or None if it needs one.
    """

    name: str
    types: frozenset[str]
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    bare: Any = None

    @property
    def kind(self) -> str:
        """What its values are: bool, int, float, list or text."""
        types = self.types - {"None"}
        if len(types) == 1 and types <= {"bool", "int", "float"}:
            return min(types)
        return "list" if types and all(name.startswith("list") for name in types) else "text"

    def convert(self, value: Any) -> Any:
        """Return a value of the command line, of YAML or of Python in the type of this option.

        Raises:
            MedtlError: it has another type, or is not one of the choices.
        """
        if value is None and ("None" in self.types or self.default is None):
            return None
        if self.kind == "text":
            return self._convert_text(value)
        if self.kind == "list":
            return list(value) if isinstance(value, list | tuple) else [str(value)]
        if self.kind == "bool" and str(value).lower() in (*TRUE, *FALSE):
            return str(value).lower() in TRUE
        try:
            if self.kind != "bool" and type(value) in (int, float, str):
                number = float(value)
                if self.kind == "float":
                    return number
                if number == int(number):
                    return int(number)
        except (ValueError, OverflowError):
            pass
        words = {"bool": "true or false", "int": "a whole number", "float": "a number"}
        raise MedtlError(f"--{self.name} must be {words[self.kind]}, but is {value!r}.")

    def _convert_text(self, value: Any) -> Any:
        allowed = {name.partition("[")[0] for name in self.types}
        if isinstance(value, dict) and "dict" not in allowed:
            raise MedtlError(f"--{self.name} must be text, but is {json.dumps(value, default=str)}.")
        if isinstance(value, list | tuple) and "list" not in allowed:
            value = ",".join(map(str, value))  # a list in YAML is what commas are on the command line
        if isinstance(value, dict | list | tuple) or value is True or (value is False and not self.choices):
            return value
        text = "no" if value is False else str(value)
        for part in text.split(",") if self.name in LISTS else [text]:
            if self.choices and part.strip() not in (*self.choices, *([""] if self.name in LISTS else [])):
                raise MedtlError(
                    f"--{self.name} must be {', '.join(self.choices[:-1])} or {self.choices[-1]}, but is {part!r}."
                    f"{nearest(part, self.choices)}"
                )
        return text


@cache
def all_flags() -> dict[str, Flag]:
    """Return all options by name: those of `Options`, then the other ones of `transformers.TrainingArguments`."""
    inherited = _inherited()
    own = {}
    for f in dataclasses.fields(Options):
        base = inherited.get(f.name)
        own[f.name] = Flag(
            f.name,
            base.types if base else _types(f.type if isinstance(f.type, str) else getattr(f.type, "__name__", f.type)),
            f.default,
            f.metadata.get("help") or (base.help if base else ""),
            CHOICES.get(f.name) or LISTS.get(f.name) or (base.choices if base else ()) + MORE_CHOICES.get(f.name, ()),
            base.bare if base else None,
        )
    return own | {name: flag for name, flag in inherited.items() if name not in own}


def groups() -> dict[str, list[Flag]]:
    """Return the options that --help shows, by heading."""
    flags, members, heading = all_flags(), dict[str, list[Flag]](), ""
    for f in dataclasses.fields(Options):
        heading = HEADINGS.get(f.name, heading)
        members.setdefault(heading, []).append(flags[f.name])
    members.pop("")
    for heading, names in INHERITED.items():
        members[heading] += [flags[name] for name in names]
    return members


def _types(annotation: Any) -> frozenset[str]:
    return frozenset(part.strip() for part in str(annotation).split("|"))


def _inherited() -> dict[str, Flag]:
    """Read the fields of TrainingArguments from its source, because importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    folder = Path(str(spec and spec.origin)).parent
    sources = [(folder / name).read_text(encoding="utf-8") for name in ("training_args.py", "trainer_utils.py")]
    classes = {node.name: node for text in sources for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    flags = {}
    for node in classes["TrainingArguments"].body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        arguments = {word.arg: word.value for word in node.value.keywords} if isinstance(node.value, ast.Call) else {}
        pairs = arguments.get("metadata")
        metadata = (
            {_literal(key): _literal(value) for key, value in zip(pairs.keys, pairs.values, strict=True)}
            if isinstance(pairs, ast.Dict)
            else {}
        )
        types = _types(ast.unparse(node.annotation))
        choices = [_values(classes[name]) for name in types if name in classes]
        flags[node.target.id] = Flag(
            node.target.id,
            types,
            [] if "default_factory" in arguments else _literal(arguments.get("default")),
            str(metadata.get("help", "")).replace("%%", "%"),
            tuple(metadata.get("choices") or ()) or (choices[0] if choices else ()),
            metadata.get("const"),
        )
    return flags


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None


def _values(enumeration: ast.ClassDef) -> tuple[str, ...]:
    """Return the values of an enumeration whose values are strings."""
    values = (_literal(node.value) for node in enumeration.body if isinstance(node, ast.Assign))
    return tuple(value for value in values if isinstance(value, str))
