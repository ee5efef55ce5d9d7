"""Model folders that a stranger could publish to run code, read other files, call a network or fill the memory.

Each kind is made from a folder of a finished run by `write_hostile`. What it must not touch is in a folder of its own:
`Bait.pickle` writes `Bait.canary` when it is unpickled, `Bait.weights` are weights that a model would accept.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays

Changes = dict[str, Any]
RUN_FILES = (
    "README.md", "card.json", "config.json", "model.safetensors", "outliers.safetensors", "predictions.csv",
    "preprocessor_config.json", "recipe.yaml", "results.json", "splits.csv",
)  # fmt: skip
HUGE = 10**9
CODE = "from pathlib import Path\nPath({canary!r}).write_text('code ran')\n"


class _Payload:
    """Object whose pickle runs code."""

    def __init__(self, canary: Path) -> None:
        self.code = CODE.format(canary=str(canary))

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


@dataclass(frozen=True)
class Bait:
    """Files beside the model folders that no model may touch.

    Attributes:
        folder: where they are.
        canary: exists as soon as code of a model has run.
        pickle: file that runs code when it is unpickled.
        weights: safetensors of the finished run.
        model: folder of a whole model.
    """

    folder: Path

    @property
    def canary(self) -> Path:
        return self.folder / "canary.txt"

    @property
    def pickle(self) -> Path:
        return self.folder / "weights.pth"

    @property
    def weights(self) -> Path:
        return self.folder / "model" / "model.safetensors"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @classmethod
    def write(cls, folder: Path, run: Path) -> "Bait":
        """Write the files, with the weights of a finished run."""
        bait = cls(folder)
        bait.model.mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            shutil.copyfile(run / name, bait.model / name)
        torch.save({"state_dict": _Payload(bait.canary)}, bait.pickle)
        return bait


def _edit(path: Path, changes: Changes) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def _config(folder: Path, **changes: Any) -> None:
    _edit(folder / "config.json", changes)


def _processor(folder: Path, **changes: Any) -> None:
    _edit(folder / "preprocessor_config.json", changes)


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def _model_args(**arguments: Any) -> Callable[[Path, Bait], None]:
    """Return a kind whose config.json hands arguments on; "PICKLE" stands for the path of the pickle."""

    def write(folder: Path, bait: Bait) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(arguments).replace("PICKLE", bait.pickle.as_posix())
        _config(folder, model_args=(config.get("model_args") or {}) | json.loads(text))

    return write


def _configured(**changes: Any) -> Callable[[Path, Bait], None]:
    """Return a kind with other values in config.json; MODEL and PICKLE in them stand for paths of the bait."""

    def write(folder: Path, bait: Bait) -> None:
        text = json.dumps(changes).replace("PICKLE", bait.pickle.as_posix()).replace("MODEL", bait.model.as_posix())
        _config(folder, **json.loads(text))

    return write


def _processed(**changes: Any) -> Callable[[Path, Bait], None]:
    """Return a kind with other values in preprocessor_config.json."""
    return lambda folder, bait: _processor(folder, **changes)


def _medical(**changes: Any) -> Callable[[Path, Bait], None]:
    """Return a kind whose images go through our own processor with these settings."""
    settings = {"image_processor_type": "MedicalImageProcessor", "steps": ["grayscale"], "fit": "squash"}
    return _processed(**settings | changes)


def _member(**changes: Any) -> Callable[[Path, Bait], None]:
    """Return a kind of ensemble with other values in the configuration of its first member."""

    def write(folder: Path, bait: Bait) -> None:
        members = json.loads((folder / "config.json").read_text(encoding="utf-8"))["members"]
        text = json.dumps(changes).replace("PICKLE", bait.pickle.as_posix())
        members[0]["config"] |= json.loads(text)
        _config(folder, members=members)

    return write


def _code_in(*files: str) -> Callable[[Path, Bait], None]:
    """Return a kind with auto_map in JSON files, and code that leaves the canary."""

    def write(folder: Path, bait: Bait) -> None:
        code = CODE.format(canary=str(bait.canary))
        (folder / "evil.py").write_text(code, encoding="utf-8")
        classes = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor", "AutoProcessor")
        for name in files:
            _edit(folder / name, {"auto_map": dict.fromkeys(classes, "evil.Evil")})

    return write


def _unknown_with_code(folder: Path, bait: Bait) -> None:
    _code_in("config.json", "preprocessor_config.json")(folder, bait)
    _config(folder, model_type="evil")
    _processor(folder, image_processor_type="EvilImageProcessor")


def _code_elsewhere(folder: Path, bait: Bait) -> None:
    _config(folder, model_type="evil", auto_map={"AutoConfig": "stranger/code--evil.Evil"})


def _loose_code(folder: Path, bait: Bait) -> None:
    for name in ("handler.py", "__init__.py", "conftest.py", "sitecustomize.py", "setup.py", "modeling_vit.py"):
        (folder / name).write_text(CODE.format(canary=str(bait.canary)), encoding="utf-8")
    (folder / "requirements.txt").write_text("stranger-package\n", encoding="utf-8")


def _pickles(folder: Path, bait: Bait) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        shutil.copyfile(bait.pickle, folder / name)


def _pickle_only(folder: Path, bait: Bait) -> None:
    (folder / "model.safetensors").unlink()
    _pickles(folder, bait)


def _adapter(folder: Path, bait: Bait) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    _edit(folder / "adapter_config.json", {"base_model_name_or_path": str(bait.model), "peft_type": "LORA"})


def _adapter_beside(folder: Path, bait: Bait) -> None:
    shutil.copyfile(bait.pickle, folder / "adapter_model.bin")
    auto = {"base_model_class": "Evil", "parent_library": "evil"}
    settings = {"base_model_name_or_path": "stranger/model", "peft_type": "LORA", "auto_mapping": auto}
    _edit(folder / "adapter_config.json", settings | {"target_modules": ["query"], "r": 2})


def _index(target: str) -> Callable[[Path, Bait], None]:
    """Return a kind whose shards are elsewhere; "ABSOLUTE" stands for the path of the weights."""

    def write(folder: Path, bait: Bait) -> None:
        (folder / "model.safetensors").unlink()
        from safetensors import safe_open

        relative = os.path.relpath(bait.weights, folder)
        path = {"absolute": str(bait.weights), "relative": relative}[target]
        with safe_open(bait.weights, "pt") as stream:
            weight_map = dict.fromkeys(stream.keys(), path)
        _edit(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})

    return write


def _link(name: str, to: str) -> Callable[[Path, Bait], None]:
    """Return a kind in which a file is a link to one of the bait."""

    def write(folder: Path, bait: Bait) -> None:
        (folder / name).unlink(missing_ok=True)
        target = bait.folder / to
        if not target.exists():
            target.write_text("# A secret\n", encoding="utf-8")
        (folder / name).symlink_to(target)

    return write


def _header(size: int, claimed: int | None = None) -> Callable[[Path, Bait], None]:
    """Return a kind whose safetensors header has (or claims) a number of bytes."""

    def write(folder: Path, bait: Bait) -> None:
        entries, length, i = ["{"], 1, 0
        while length < size:
            entry = f'"t{i:06x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},'
            entries.append(entry)
            length, i = length + len(entry), i + 1
        header = "".join(entries).rstrip(",").encode() + b"}"
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", claimed or len(header)) + header)

    return write


def _lying_header(tensor: Changes) -> Callable[[Path, Bait], None]:
    """Return a kind whose weights have a tensor that does not fit the eight bytes that follow."""

    def write(folder: Path, bait: Bait) -> None:
        header = json.dumps({"classifier.weight": tensor}).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    return write


def _outliers(**arrays: Any) -> Callable[[Path, Bait], None]:
    """Return a kind with other arrays in outliers.safetensors; None removes one."""

    def write(folder: Path, bait: Bait) -> None:
        from safetensors.numpy import load_file

        values = load_file(folder / "outliers.safetensors")
        kept = {name: x for name, x in (values | arrays).items() if x is not None}
        save_arrays(kept, folder / "outliers.safetensors")

    return write


def _text(name: str, content: str) -> Callable[[Path, Bait], None]:
    """Return a kind with another text in a file; CANARY stands for the path of the canary."""

    def write(folder: Path, bait: Bait) -> None:
        (folder / name).write_text(content.replace("CANARY", str(bait.canary)), encoding="utf-8")

    return write


def _labels(number: int) -> Callable[[Path, Bait], None]:
    return _configured(id2label={str(i): f"label {i}" for i in range(number)}, label2id=None)


def _lung_model_elsewhere(folder: Path, bait: Bait) -> None:
    _medical()(folder, bait)
    _processor(folder, steps=["lung_crop"], lung_model=str(bait.model))


def _lung_model_hostile(folder: Path, bait: Bait) -> None:
    """Put a hostile segmentation model where the processor finds the one of lung_crop."""
    _medical()(folder, bait)
    _processor(folder, steps=["lung_crop"])
    (folder / "lung_model").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copyfile(folder.parent / "families" / "smp" / name, folder / "lung_model" / name)
    _model_args(checkpoint_path="PICKLE")(folder / "lung_model", bait)


def _template(folder: Path, bait: Bait) -> None:
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(evil, encoding="utf-8")
    _edit(folder / "processor_config.json", {"chat_template": evil})
    card = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(f"{card}\n{evil}\n", encoding="utf-8")


NAN, INF = float("nan"), float("inf")
WIDE = {"image_size": 32, "patch_size": 8, "hidden_size": 200_000, "intermediate_size": 200_000}

# Name -> family of the model, and the function that makes its folder hostile.
KINDS: dict[str, tuple[str, Callable[[Path, Bait], None]]] = {
    "smp_checkpoint_path": ("smp", _model_args(checkpoint_path="PICKLE")),
    "smp_pretrained": ("smp", _model_args(pretrained=True)),
    "smp_pretrained_file": ("smp", _model_args(pretrained_cfg={"file": "PICKLE"}, pretrained_cfg_overlay={})),
    "smp_pretrained_url": ("smp", _model_args(pretrained_cfg_overlay={"url": "http://127.0.0.1:9/x.pth"})),
    "smp_cache_dir": ("smp", _model_args(cache_dir="PICKLE")),
    "smp_encoder_weights": ("smp", _configured(encoder_weights="imagenet")),
    "smp_encoder_weights_in_args": ("smp", _model_args(encoder_weights="imagenet")),
    "smp_weights": ("smp", _model_args(weights="imagenet")),
    "smp_encoder_of_hub": ("smp", _configured(encoder_name="tu-hf-hub:stranger/model")),
    "smp_encoder_of_folder": ("smp", _configured(encoder_name="tu-local-dir:MODEL")),
    "smp_unknown_argument": ("smp", _model_args(exec="print(1)")),
    "smp_deep": ("smp", _model_args(decoder_channels=[16] * 200_000)),
    "smp_wide": ("smp", _model_args(decoder_channels=[10**6] * 5)),
    "timm_checkpoint_path": ("timm", _model_args(checkpoint_path="PICKLE")),
    "timm_pretrained": ("timm", _model_args(pretrained=True)),
    "timm_pretrained_file": ("timm", _model_args(pretrained_cfg={"file": "PICKLE"}, pretrained_cfg_overlay={})),
    "timm_pretrained_of_hub": ("timm", _model_args(pretrained=True, pretrained_cfg={"hf_hub_id": "stranger/model"})),
    "timm_sources": (
        "timm",
        _configured(
            pretrained_cfg={
                "input_size": [3, 64, 64],
                "mean": [0.5] * 3,
                "std": [0.2] * 3,
                "source": "hf-hub",
                "custom_load": True,
                "hf_hub_id": "stranger/model",
                "file": "PICKLE",
                "url": "http://127.0.0.1:9/x.pth",
            }
        ),
    ),
    "timm_features": ("timm", _model_args(features_only=True, feature_cfg={"feature_cls": "PICKLE"})),
    "timm_of_hub": ("timm", _configured(architecture="hf-hub:stranger/model")),
    "timm_of_folder": ("timm", _configured(architecture="local-dir:MODEL")),
    "timm_wide": ("timm", _model_args(channels=[10**6] * 4)),
    "timm_input_of_a_million": (
        "timm",
        _configured(pretrained_cfg={"input_size": [3, 10**6, 10**6], "mean": [0.5] * 3, "std": [0.5] * 3}),
    ),
    "cnn_deep": ("cnn", _configured(convolutions=HUGE)),
    "cnn_many_blocks": ("cnn", _configured(widths=[8] * 200_000)),
    "cnn_wide": ("cnn", _configured(widths=[10**6, 10**6])),
    "ensemble_checkpoint_path": ("ensemble", _member(model_args={"checkpoint_path": "PICKLE"})),
    "ensemble_of_hub": ("ensemble", _member(architecture="hf-hub:stranger/model")),
    "ensemble_of_unknown": ("ensemble", _member(model_type="evil")),
    "ensemble_labels": ("ensemble", _member(num_labels=HUGE, num_classes=HUGE, label_names=None)),
    "backbone_of_hub": ("vit", _configured(model_type="dpt", backbone="stranger/model", backbone_config=None)),
    "backbone_of_timm": (
        "vit",
        _configured(
            model_type="upernet",
            architectures=["UperNetForSemanticSegmentation"],
            backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:stranger/model"},
        ),
    ),
    "backbone_pretrained": (
        "vit",
        _configured(
            model_type="dpt",
            architectures=["DPTForSemanticSegmentation"],
            use_timm_backbone=True,
            use_pretrained_backbone=True,
            backbone="resnet50",
            backbone_kwargs={"checkpoint_path": "PICKLE"},
        ),
    ),
    "backbone_checkpoint_path": (
        "vit",
        _configured(
            model_type="upernet",
            architectures=["UperNetForSemanticSegmentation"],
            backbone_config={
                "model_type": "timm_wrapper",
                "architecture": "test_resnet",
                "model_args": {"checkpoint_path": "PICKLE"},
            },
        ),
    ),
    "kernel_of_hub": ("vit", _configured(attn_implementation="stranger/kernel")),
    "kernel_of_hub_private_key": ("vit", _configured(_attn_implementation="stranger/kernel")),
    "quantization": ("vit", _configured(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})),
    "weights_elsewhere": ("vit", _configured(transformers_weights="../bait/model/model.safetensors")),
    "weights_of_pickle": ("vit", _configured(transformers_weights="pytorch_model.bin")),
    "name_or_path": ("vit", _configured(_name_or_path="stranger/model", name_or_path="MODEL")),
    "pipelines": ("vit", _configured(custom_pipelines={"image-classification": {"impl": "evil.Evil", "pt": "x"}})),
    "silly_dtype": ("vit", _configured(dtype="__import__('os')", torch_dtype="evil")),
    "silly_types": ("vit", _configured(hidden_size="32", num_hidden_layers=[], layer_norm_eps=None)),
    "silly_labels": ("vit", _configured(id2label=["a", "b"], label2id=7)),
    "code_in_config": ("vit", _code_in("config.json")),
    "code_in_processor": ("vit", _code_in("preprocessor_config.json", "processor_config.json")),
    "code_of_unknown_model": ("vit", _unknown_with_code),
    "code_elsewhere": ("vit", _code_elsewhere),
    "loose_code": ("vit", _loose_code),
    "pickles": ("vit", _pickles),
    "pickle_only": ("vit", _pickle_only),
    "adapter": ("vit", _adapter),
    "adapter_beside": ("vit", _adapter_beside),
    "index_absolute": ("vit", _index("absolute")),
    "index_relative": ("vit", _index("relative")),
    "link_of_weights": ("vit", _link("model.safetensors", "model/model.safetensors")),
    "link_of_card": ("vit", _link("README.md", "secret.md")),
    "link_of_results": ("vit", _link("results.json", "model/config.json")),
    "link_of_outliers": ("vit", _link("outliers.safetensors", "model/model.safetensors")),
    "header_claims_much": ("vit", _header(2, claimed=2**62)),
    "header_of_17_mb": ("vit", _header(17 * 2**20)),
    "header_of_a_huge_tensor": ("vit", _lying_header({"dtype": "F32", "shape": [10**6] * 2, "data_offsets": [0, 8]})),
    "header_of_other_type": ("vit", _lying_header({"dtype": "F64", "shape": [2], "data_offsets": [0, 8]})),
    "many_labels": ("vit", _labels(200_000)),
    "number_of_labels": ("vit", _configured(num_labels=HUGE, id2label=None, label2id=None)),
    "number_of_classes": ("timm", _configured(num_classes=HUGE, label_names=None)),
    "control_characters": ("vit", _configured(id2label={"0": "\x1b[2J\x1b]0;gone\x07", "1": "a\r\nlesion 0.99"})),
    "bidirectional_label": ("vit", _configured(id2label={"0": "no_lesion", "1": "\u202elesion"})),
    "html_label": ("vit", _configured(id2label={"0": "<img src=x onerror=alert(1)>", "1": "lesion"}, conformal=None)),
    "wide": ("vit", _configured(**WIDE)),
    "deep": ("vit", _configured(num_hidden_layers=HUGE)),
    "large_input": ("vit", _configured(image_size=10**6, patch_size=1)),
    "nested": ("vit", _text("config.json", f'{{"model_type": "vit", "x": {_nested(100_000)}}}')),
    "nested_results": ("vit", _text("results.json", _nested(100_000))),
    "results_of_other_types": ("vit", _text("results.json", '{"task": [], "metrics": 7, "dataset": {}}')),
    "recipe_with_tags": ("vit", _text("recipe.yaml", "seed: !!python/object/apply:pathlib.Path.touch [CANARY]\n")),
    "threshold_nan": ("vit", _configured(threshold=NAN)),
    "threshold_huge": ("vit", _configured(threshold=1e300)),
    "threshold_text": ("vit", _configured(threshold="__import__('os')")),
    "conformal_text": ("vit", _configured(conformal={"alpha": 0.1, "lowest": ["a"]})),
    "outliers_text": ("vit", _configured(outliers="PICKLE")),
    "outliers_one_dimension": ("vit", _outliers(centres=np.zeros(32, np.float32))),
    "outliers_nan": ("vit", _outliers(variances=np.full(3, np.nan, np.float32))),
    "outliers_whole_numbers": ("vit", _outliers(centres=np.zeros((2, 32), np.int64))),
    "outliers_missing": ("vit", _outliers(rest=None)),
    "outliers_more": ("vit", _outliers(evil=np.zeros(3, np.float32))),
    "outliers_of_others": ("vit", _outliers(centres=np.zeros((2, 7), np.float32))),
    "outliers_of_another_model": (
        "vit",
        _outliers(
            centres=np.zeros((2, 7), np.float32),
            components=np.eye(3, 7, dtype=np.float32),
            variances=np.ones(3, np.float32),
        ),
    ),
    "outliers_empty_rest": ("vit", _outliers(rest=np.zeros(0))),
    "size_of_a_million": ("vit", _processed(size={"height": 10**6, "width": 10**6})),
    "shortest_edge_of_a_million": (
        "vit",
        _processed(size={"shortest_edge": 10**6}, image_processor_type="BitImageProcessor"),
    ),
    "crop_of_a_million": (
        "vit",
        _processed(do_center_crop=True, crop_size=10**6, image_processor_type="BitImageProcessor"),
    ),
    "divisor_of_a_million": ("vit", _processed(size_divisor=10**6, image_processor_type="DPTImageProcessor")),
    "medical_size_of_a_million": ("vit", _medical(size=10**6)),
    "medical_blur": ("vit", _medical(blur_sigma=1e9, steps=["blur"])),
    "medical_clahe": ("vit", _medical(clahe_grid=10**6, steps=["clahe"])),
    "mean_nan": ("vit", _processed(image_mean=[NAN] * 3)),
    "long_mean": ("vit", _processed(image_mean=[0.5] * 200_000)),
    "rescale_infinite": ("vit", _processed(rescale_factor=INF)),
    "processor_of_other_kind": ("vit", _processed(image_processor_type="os.system")),
    "lung_model_elsewhere": ("vit", _lung_model_elsewhere),
    "lung_model_hostile": ("vit", _lung_model_hostile),
    "templates": ("vit", _template),
}


def write_families(folder: Path, labels: tuple[str, ...]) -> None:
    """Save a tiny model of each family with the labels of the run."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_medtl.models.build import set_labels
    from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
    from tests.support.tiny_models import build_tiny, save_tiny

    for family, name in (("timm", "timm-resnet"), ("cnn", "cnn")):
        save_tiny(name, folder / f"{family}-3")
        model = AutoModelForImageClassification.from_pretrained(
            folder / f"{family}-3", num_labels=len(labels), ignore_mismatched_sizes=True
        )
        set_labels(model.config, labels)
        if family == "timm":
            model.config.label_names = list(labels)
        model.save_pretrained(folder / family)
        AutoImageProcessor.from_pretrained(folder / f"{family}-3").save_pretrained(folder / family)
    members = [AutoModelForImageClassification.from_pretrained(folder / "timm") for _ in range(2)]
    settings = [{"config": m.config.to_dict(), "name": "m", "mean": [0.5] * 3, "std": [0.5] * 3} for m in members]
    config = EnsembleConfig(members=settings)
    set_labels(config, labels)
    EnsembleForImageClassification(config).save_pretrained(folder / "ensemble")
    AutoImageProcessor.from_pretrained(folder / "cnn-3").save_pretrained(folder / "ensemble")
    model, processor = build_tiny(labels=labels)
    model.save_pretrained(folder / "smp")
    processor.save_pretrained(folder / "smp")


def write_hostile(kind: str, root: Path, run: Path, bait: Bait) -> Path:
    """Write the folder of one kind to root/KIND and return its path.

    Args:
        kind: One of KINDS.
        root: Folder that has `families`, as `write_families` writes it.
        run: Finished run that the folder is like.
        bait: What the folder points to.
    """
    family, change = KINDS[kind]
    folder = root / kind
    folder.mkdir()
    for name in RUN_FILES:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    shutil.copytree(run / "figures", folder / "figures")
    if family != "vit":
        for name in ("preprocessor_config.json", "outliers.safetensors"):
            (folder / name).unlink(missing_ok=True)
        for path in (root / "families" / family).iterdir():
            shutil.copyfile(path, folder / path.name)
    change(folder, bait)
    return folder
