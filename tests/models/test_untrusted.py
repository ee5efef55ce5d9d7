"""Checks of a model's files before it is loaded: what they may ask for, and how much."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_medtl.common.links import check_link, check_links
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.ood import OutOfDistributionScorer
from hf_medtl.models.build import load_trained
from hf_medtl.models.cnn import MedicalCnnConfig
from hf_medtl.models.encoders import read_encoder
from hf_medtl.models.ensemble import EnsembleConfig, build_member
from hf_medtl.models.processor import MedicalImageProcessor
from hf_medtl.models.size_limit import limited_size
from hf_medtl.models.smp import SmpConfig
from hf_medtl.models.untrusted import check_config, check_model, check_processor
from hf_medtl.models.weight_files import check_header
from tests.support.commands import ROOT


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_args": {"checkpoint_path": "x"}}, "model_args in config.json has 'checkpoint_path'"),
        ({"members": [{"config": {"model_args": {"pretrained": True}}}]}, "config.model_args .* 'pretrained'"),
        ({"backbone_kwargs": {"pretrained_cfg": {"file": "x"}}}, "'pretrained_cfg'"),
        ({"model_args": "x"}, "has 'x'"),
        ({"architecture": "hf-hub:a/b"}, "architecture .* 'hf-hub:a/b', which would load something else"),
        ({"encoder_name": "tu-local-dir:/tmp"}, "encoder_name"),
        ({"backbone_config": {"backbone": "../x"}}, "backbone_config.backbone"),
        ({"backbone": "resnet50"}, "backbone in config.json would load another model"),
        ({"backbone_config": {"backbone": "resnet50", "use_pretrained_backbone": True}}, "use_pretrained_backbone"),
        ({"attn_implementation": "a/kernel"}, "attn_implementation"),
        ({"vision_config": {"_attn_implementation": "a/kernel:x"}}, "vision_config._attn_implementation"),
        ({"transformers_weights": "../model.safetensors"}, "transformers_weights"),
        ({"transformers_weights": "pytorch_model.bin"}, "transformers_weights"),
        ({"quantization_config": {"quant_method": "x"}}, "quantised models are not supported"),
        ({"num_labels": 10**9}, "num_labels .* 1000000000; the most that is supported is 100000"),
        ({"id2label": {str(i): "x" for i in range(100_001)}}, "id2label .* 100001 entries"),
        ({"id2label": ["a", "b"]}, "id2label in config.json must give a label for each number"),
        ({"id2label": {"0": "a\x1b[2J"}}, r"id2label\.0 in config.json has control characters"),
        ({"label2id": {"a\nb": 0}}, r"label2id\.a\\nb in config.json has line breaks"),
        ({"wording": {"a": "\u202eb"}}, "control characters"),
        ({"threshold": float("nan")}, "threshold in config.json is nan; expected a finite number"),
        ({"num_hidden_layers": 2001}, "num_hidden_layers .* 2001; the most that is supported is 2000"),
        ({"depths": [1000, 1001]}, "depths .* 2001"),
        ({"image_size": [9000, 9]}, "image_size .* 9000; the most that is supported is 8192"),
        ({"hidden_size": 2**24 + 1}, "hidden_size"),
    ],
)  # fmt: skip
def test_hostile_configurations_are_refused_by_key(config, message):
    with pytest.raises(MedtlError, match=f"folder: .*{message}") as caught:
        check_config(config, "folder")
    assert str(caught.value).isprintable()


def test_configurations_of_published_models_pass():
    uni = {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True, "reg_tokens": 8}
    check_config({"architecture": "vit_large_patch16_224", "model_args": uni, "num_features": 1024}, "timm")
    check_config(
        {"backbone_config": {"model_type": "convnext"}, "backbone": None, "id2label": {"0": "wall"}}, "upernet"
    )
    check_config({"text_config": {"vocab_size": 256_000}, "id2label": {"0": "a", "1": "<5 mm, größer"}}, "siglip2")
    check_config({"quantization_config": None, "transformers_weights": "model-a.safetensors"}, "any")


def test_models_on_the_hub_are_checked_at_the_commit_that_is_loaded(tmp_path, monkeypatch):
    folder = tmp_path / "0123abc"
    folder.mkdir()
    patterns = []

    def download(name, revision, allow_patterns):
        patterns.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("hf_medtl.models.untrusted.snapshot_download", download)
    (folder / "config.json").write_text(json.dumps({"backbone": "other/model"}), encoding="utf-8")
    with pytest.raises(MedtlError, match=r"owner/hostile: backbone in config\.json would load another model"):
        check_model("owner/hostile", "main")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert check_model("owner/fine", "main") == "0123abc"
    assert {"config.json", "adapter_config.json", "lung_model/config.json"} <= set(patterns)
    assert not [pattern for pattern in patterns if not pattern.endswith(".json")]  # weights come after the check
    monkeypatch.delattr("hf_medtl.models.untrusted.snapshot_download")
    assert check_model("owner/fine", "0123abc") == "0123abc"  # a commit is checked once


def test_with_trusted_code_only_sizes_are_checked():
    check_config({"backbone": "a/b", "attn_implementation": "a/kernel"}, "x", trusted=True)
    with pytest.raises(MedtlError, match="num_labels"):
        check_config({"num_labels": 10**9}, "x", trusted=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 10**6, "width": 5}}, "size.height is 1000000; the most that is supported is 8192"),
        ({"size": 10**6}, "size is 1000000"),
        ({"crop_size": {"height": 9000.5}}, "crop_size.height"),
        ({"size_divisor": -(10**6)}, "size_divisor"),
        ({"image_mean": [0.5, float("inf"), 0.5]}, "image_mean is inf"),
        ({"image_std": [0.5] * 1001}, "image_std has 1001 entries"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
    ],
)  # fmt: skip
def test_settings_of_huge_images_are_refused(settings, message):
    with pytest.raises(MedtlError, match=f"p.json: {message}"):
        check_processor(settings, "p.json")


def test_our_classes_refuse_by_themselves_what_stock_code_hands_them():
    with pytest.raises(ValueError, match=r"model_args may give .*; found checkpoint_path, pretrained"):
        SmpConfig(model_args={"pretrained": True, "checkpoint_path": "x", "decoder_channels": [1]})
    with pytest.raises(ValueError, match="encoder_name must be a name in SMP or timm"):
        SmpConfig(encoder_name="tu-hf-hub:a/b")
    with pytest.raises(ValueError, match="100 entries"):
        SmpConfig(model_args={"decoder_channels": [1] * 101})
    timm = {"model_type": "timm_wrapper", "architecture": "test_vit"}
    for change, message in (
        ({"model_args": {"checkpoint_path": "x"}}, "sizes and rates only, found checkpoint_path"),
        ({"architecture": "local-dir:x"}, "must be a name in timm"),
        ({"model_type": "medical_ensemble"}, "must be image classifiers"),
        ({"model_type": "dpt", "backbone": "a/b"}, "must be image classifiers"),
        ({"attn_implementation": "a/kernel"}, "must not be a kernel on the Hub"),
        ({"num_classes": 10**9}, "num_classes must be 100000 or less"),
    ):
        with pytest.raises(ValueError, match=message):
            build_member(timm | change)
    for config in (SmpConfig, MedicalCnnConfig, EnsembleConfig):
        with pytest.raises(ValueError, match="num_labels must be 100000 or less"):
            config(num_labels=10**9)
    for widths, convolutions in (([8] * 65, 1), ([10**6], 1), ([], 1), ([8], 65)):
        with pytest.raises(ValueError, match="widths must be 1 to 64 numbers"):
            MedicalCnnConfig(widths=widths, convolutions=convolutions)
    for setting in ({"size": 8193}, {"clahe_grid": 129}, {"blur_sigma": 1e9}, {"image_mean": [0.5, float("nan"), 0.5]}):
        with pytest.raises(ValueError, match=r"8192|128|finite"):
            MedicalImageProcessor(**setting)


def test_stock_auto_classes_load_timm_models_without_what_timm_would_open(tmp_path):
    from transformers import TimmWrapperForImageClassification

    settings = {"model_type": "timm_wrapper", "architecture": "test_resnet"} | {
        "label_names": ["a", "b"],
        "num_classes": 2,
    }
    for change, message in (
        ({"model_args": {"checkpoint_path": "x"}}, "model_args in config.json has 'checkpoint_path'"),
        ({"model_args": {"pretrained_cfg": {"url": "http://x"}}}, "has 'pretrained_cfg'"),
        ({"architecture": "local-dir:x"}, "architecture in config.json is 'local-dir:x'"),
        ({"num_classes": 10**9}, "num_labels in config.json is 1000000000"),
        ({"model_type": "timm_backbone", "backbone": "hf-hub:a/b"}, "backbone in config.json is 'hf-hub:a/b'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change), encoding="utf-8")
        with pytest.raises(MedtlError, match=f"The model: .*{message}"):
            AutoModelForImageClassification.from_pretrained(tmp_path)
        nested = {"backbone_config": {**settings, **change}}
        with pytest.raises(MedtlError, match=message):
            AutoConfig.for_model("upernet", **nested)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_args": {"depth": 1}}), encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_args, config.id2label) == ({"depth": 1}, {0: "a", 1: "b"})
    config = AutoConfig.for_model("timm_wrapper", architecture="test_resnet")
    assert type(AutoModelForImageClassification.from_config(config)) is TimmWrapperForImageClassification


def test_safetensors_headers_are_bounded(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (b"", struct.pack("<Q", 2**62), struct.pack("<Q", 17 * 2**20) + bytes(17 * 2**20)):
        path.write_bytes(content)
        with pytest.raises(MedtlError, match="expected a header of 1 to 16777216 bytes"):
            check_header(path)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/a.safetensors", "a/b.safetensors", "a.bin", 3, "C:\\a.safetensors"]
)
def test_an_index_names_files_of_its_folder_alone(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}), encoding="utf-8")
    with pytest.raises(MedtlError, match="expected names of safetensors files in the same folder"):
        check_model(tmp_path)


def test_folders_of_encoders_are_checked(tmp_path):
    settings = {"architecture": "local-dir:x", "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(MedtlError, match=r"architecture in config\.json is 'local-dir:x'"):
        read_encoder(tmp_path)


def test_adapters_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MedtlError, match="holds an adapter"):
        check_model(tmp_path)


def test_links_may_lead_to_the_folder_itself_and_to_the_cache_it_is_in(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "secret.json"
    folder.mkdir()
    outside.write_text("{}", encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    try:
        (folder / "other.json").symlink_to(folder / "config.json")
    except OSError:
        pytest.skip("this system makes no links without rights")
    (tmp_path / "alias").symlink_to(folder)
    check_link(tmp_path / "alias" / "other.json", tmp_path / "alias")
    check_link(folder / "absent.json", folder)
    (folder / "results.json").symlink_to(outside)
    for check in (lambda: check_model(folder), lambda: RunFolder(folder).results, lambda: check_links(folder)):
        with pytest.raises(MedtlError, match=r"results\.json leads to .*secret\.json, outside its folder"):
            check()
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.copyfile(outside, blobs / "1234")
    (snapshot / "config.json").symlink_to(Path("../../blobs/1234"))
    check_model(snapshot)
    (tmp_path / "blobs" / "12").mkdir(parents=True)  # where files from Xet storage lie
    shutil.copyfile(outside, tmp_path / "blobs" / "12" / "34")
    (snapshot / "preprocessor_config.json").symlink_to(Path("../../../blobs/12/34"))
    check_model(snapshot)


def test_links_of_checkpoints_are_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    try:
        (tmp_path / "run" / "checkpoint-8").symlink_to(tmp_path)
    except OSError:
        pytest.skip("this system makes no links without rights")
    check_links(tmp_path / "run")
    (tmp_path / "run" / "figures").symlink_to(tmp_path)
    with pytest.raises(MedtlError, match="figures leads to"):
        check_links(tmp_path / "run")


def test_folds_of_a_run_are_folders_of_it(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"folds": [{"fold": "0/../../x"}]}), encoding="utf-8")
    with pytest.raises(MedtlError, match="is no fold"):
        _ = RunFolder(tmp_path).folds


def test_a_model_much_larger_than_its_weights_is_not_built(tmp_path, monkeypatch):
    ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    ).save_pretrained(tmp_path)
    load_trained(AutoModelForImageClassification, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 6000, "intermediate_size": 6000}))
    with pytest.raises(MedtlError, match="describes a model that is much larger than its weights"):
        load_trained(AutoModelForImageClassification, tmp_path)
    monkeypatch.setattr("hf_medtl.models.size_limit.MAX_TENSORS", 1000)
    with pytest.raises(MedtlError, match="much larger"), limited_size(tmp_path), torch.device("meta"):
        nn.ModuleList(nn.ReLU() for _ in range(1001))
    assert nn.Linear(2, 2).weight.shape == (2, 2)  # not counted any more


def rule(**config) -> DecisionRule:
    return DecisionRule.from_config({"id2label": {"0": "a", "1": "b"}, **config})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"threshold": "0.5"}, "threshold in config.json must be a number from 0 to 1, found '0.5'"),
        ({"threshold": 1e300}, "threshold in config.json must be a number from 0 to 1"),
        ({"thresholds": {"a": -1}}, "thresholds of a"),
        ({"thresholds": [0.5]}, "thresholds in config.json must give a probability for each label"),
        ({"folded_temperature": float("inf")}, "folded_temperature in config.json must be a number of 0 or more"),
        ({"outliers": {"threshold": float("nan")}}, "outliers.threshold"),
        ({"outliers": "x"}, "outliers in config.json must be an object"),
        ({"conformal": {"lowest": {"a": 0.1}}}, "conformal.lowest in config.json gives no probability for b"),
        ({"conformal": {"lowest": [0.1, 0.2]}}, "conformal.lowest in config.json must give a probability"),
        ({"positive_label": 3}, "must be texts"),
    ],
)  # fmt: skip
def test_decision_rules_with_senseless_values_are_refused(config, message):
    with pytest.raises(MedtlError, match=re.escape(message)):
        rule(**config)


def test_decision_rules_at_the_limits_are_taken():
    assert rule(threshold=float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))).threshold > 1
    assert rule(threshold=0, conformal={"lowest": {"b": 1, "a": 0.0}}).threshold == 0
    assert DecisionRule.from_config({"label_names": ["x", "y"], "outliers": None}).labels == ("x", "y")


def test_scorers_of_any_other_shape_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 6, generator=generator).numpy()
    OutOfDistributionScorer.fit(features, torch.arange(20).numpy() % 2).save(tmp_path)
    path = tmp_path / "outliers.safetensors"
    good = load_file(path)
    assert OutOfDistributionScorer.load(tmp_path).score(features).shape == (20,)
    for change in (
        {"centres": good["centres"][0]}, {"centres": good["centres"][:, :5]}, {"components": good["components"].T},
        {"variances": -good["variances"]}, {"variances": good["variances"][:1]}, {"rest": good["rest"][:0]},
        {"centres": good["centres"].astype("int64")}, {"more": good["rest"]}, {"rest": good["rest"] * float("nan")},
    ):  # fmt: skip
        save_file({name: x.copy() for name, x in (good | change).items()}, path)
        with pytest.raises(MedtlError, match="is no scorer of out-of-distribution images"):
            OutOfDistributionScorer.load(tmp_path)


def test_nothing_is_loaded_past_the_checks():
    """Stock Auto classes are called in few places: where files are checked, and where code is trusted."""
    allowed = {"models/untrusted.py", "models/build.py", "models/processor.py", "publish/handler.py"}
    called = {
        path.relative_to(ROOT / "hf_medtl").as_posix()
        for path in (ROOT / "hf_medtl").rglob("*.py")
        if re.search(r"\bAuto(Config|ImageProcessor|Model\w*)\.from_pretrained\(", path.read_text(encoding="utf-8"))
    }
    assert called <= allowed
