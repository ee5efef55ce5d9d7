"""Import of weights of other libraries: the same outputs, and no code of a file is run."""

import collections
import json
import os
import urllib.error

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from hf_medtl import MedtlError
from hf_medtl.common.run_folder import UNFINISHED
from hf_medtl.models.build import build_classifier
from hf_medtl.models.importing import open_clip, timm_weights, torchxrayvision
from hf_medtl.models.importing.tensor_files import read_tensors
from hf_medtl.publish.base_model import find_base_model, sha256_of
from hf_medtl.runs import import_model
from hf_medtl.runs.lock import RUN_LOCK
from tests.support.commands import run_cli
from tests.support.killed import leave_killed


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Give a model random weights and statistics that keep its outputs in range."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                value.normal_(std=0.1, generator=generator)
    return model.eval()


def assert_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Return an empty home folder and cache."""
    monkeypatch.setattr("hf_medtl.runs.importing.Path.home", lambda: tmp_path / "home")
    monkeypatch.setattr("hf_medtl.runs.importing.cache_dir", lambda: tmp_path / "cache")
    return tmp_path


def xrv_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return grey images as torchxrayvision and as timm see them."""
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    return (2 * grey - 1) * 1024, ((grey - 0.5) / 0.5).repeat(1, 3, 1, 1)


@pytest.mark.parametrize("zipped", [True, False])
def test_densenet_of_torchxrayvision_has_the_same_logits(zipped, home, monkeypatch):
    models = pytest.importorskip("torchxrayvision.models", reason="torchxrayvision is not installed")
    torch.manual_seed(0)
    theirs = randomize(models.DenseNet())
    release = torchxrayvision.find_release("chex")
    file = home / "home" / ".torchxrayvision" / "models_data" / release.file
    file.parent.mkdir(parents=True)
    torch.save(theirs, file, _use_new_zipfile_serialization=zipped)  # the whole module, as published
    record = import_model("torchxrayvision:densenet121-res224-chex", home / "xrv")
    assert record["sha256"] == sha256_of([file])[file.name]
    ours = AutoModelForImageClassification.from_pretrained(home / "xrv").eval()
    labels = models.model_urls["chex"]["labels"]
    kept = [number for number, label in enumerate(labels) if label]
    assert list(ours.config.id2label.values()) == [labels[number] for number in kept]
    raw, normalised = xrv_images()
    with torch.inference_mode():
        assert_equal(ours(normalised).logits, theirs(raw)[:, kept])
    processor = AutoImageProcessor.from_pretrained(home / "xrv")
    pixels = processor(Image.new("RGB", (300, 200), (255, 0, 255)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels.amin((0, 2, 3)).tolist() == [1, -1, 1]
    base = find_base_model(str(home / "xrv"))
    assert base.licence == "apache-2.0"
    assert "Cohen2022xrv" in base.bibtex[0]


def test_all_releases_of_torchxrayvision_have_its_labels_and_files():
    models = pytest.importorskip("torchxrayvision.models", reason="torchxrayvision is not installed")
    for name, release in torchxrayvision.RELEASES.items():
        theirs = models.model_urls[name]
        assert theirs["weights_url"] == torchxrayvision.RELEASE + release.file
        assert [label for label in theirs["labels"] if label and label in release.labels] == [
            label for label in theirs["labels"] if label
        ]
        assert len(release.labels) == sum(map(bool, theirs["labels"]))
        assert theirs["input_resolution"] == release.size
    assert {name for name in models.model_urls if "-" in name} == torchxrayvision.RELEASES.keys()


def test_resnet_of_torchxrayvision_has_the_same_logits(home, monkeypatch):
    models = pytest.importorskip("torchxrayvision.models", reason="torchxrayvision is not installed")
    import torchvision

    network = torchvision.models.resnet50(num_classes=18)
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    release = torchxrayvision.RELEASES["resnet50-res512-all"]
    torch.save(randomize(network).state_dict(), home / release.file)
    theirs = models.ResNet(weights="resnet50-res512-all", cache_dir=str(home))
    ours, labels = torchxrayvision.convert(read_tensors(home / release.file), release)
    assert list(labels) == theirs.targets
    raw, normalised = xrv_images()
    with torch.inference_mode():
        assert_equal(ours(normalised), theirs.model(raw))


def test_unknown_releases_and_missing_network_are_one_sentence(home, monkeypatch):
    with pytest.raises(MedtlError, match=r"no classifier 'vgg'.*densenet121-res224-all"):
        import_model("torchxrayvision:vgg", home / "out")

    def fail(*args, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MedtlError, match=r"could not be downloaded \(<urlopen error Name.*Check the network"):
        import_model("torchxrayvision:all", home / "out")
    assert not (home / "out").exists()


TOWERS = {
    "trunk": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    "average": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none", "image_size": 160},
    "clip": {"image_size": 224, "layers": 10, "width": 256, "patch_size": 16},
}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


@pytest.mark.parametrize("kind", TOWERS)
def test_visual_tower_of_open_clip_has_the_same_features(kind, tmp_path):
    library = pytest.importorskip("open_clip", reason="open_clip is not installed")
    torch.manual_seed(0)
    theirs = library.CustomTextCLIP(32, TOWERS[kind], TEXT).eval()
    model = {"embed_dim": 32, "vision_cfg": TOWERS[kind], "text_cfg": TEXT}
    settings = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "resize_mode": "shortest"}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / open_clip.CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": settings}))
    (tmp_path / "clip" / "README.md").write_text("---\nlicense: mit\n---\n")
    torch.save(theirs.state_dict(), tmp_path / "clip" / "open_clip_pytorch_model.bin")
    record = import_model(f"open_clip:{tmp_path / 'clip'}", tmp_path / "tower")
    assert record["licence"] == "mit"
    ours = AutoModel.from_pretrained(tmp_path / "tower").eval()
    size = TOWERS[kind]["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = ours(pixels).pooler_output
        if kind == "clip":
            assert_equal(features @ theirs.visual.proj, theirs.visual(pixels))
        else:
            assert_equal(theirs.visual.head(features), theirs.visual(pixels))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tower")
    black = processor(Image.new("RGB", (300, 200)), return_tensors="pt")["pixel_values"]
    assert black.shape == (1, 3, size, size)
    assert black[0, :, 0, 0].tolist() == pytest.approx([-0.25, -0.4, -0.5])


def test_towers_that_timm_does_not_have_are_refused():
    def choose(quick_gelu=False, **vision):
        return open_clip.choose_architecture({"model_cfg": {"vision_cfg": vision, "quick_gelu": quick_gelu}})

    assert choose(layers=24, width=1024, patch_size=14, image_size=336) == ("vit_large_patch14_clip_336", {})
    base = {"layers": 12, "width": 768, "patch_size": 32, "image_size": 224}
    assert choose(quick_gelu=True, **base) == ("vit_base_patch32_clip_quickgelu_224", {})
    with pytest.raises(MedtlError, match=r"no architecture for this visual tower \(.*layers \[3, 4, 6, 3\]"):
        choose(layers=[3, 4, 6, 3], width=64, image_size=224)
    with pytest.raises(MedtlError, match="attentional_pool True"):
        choose(layers=12, width=768, patch_size=16, attentional_pool=True)
    with pytest.raises(MedtlError, match="pools by abs_attn"):
        choose(timm_model_name="resnet50", timm_pool="abs_attn")


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0).eval()


WRAPPED = {
    "plain": lambda state: state,
    "parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "nested": lambda state: {"epoch": 3, "model": {f"encoder.backbone.{key}": value for key, value in state.items()}},
    "with options": lambda state: {"args": __import__("argparse").Namespace(lr=1), "teacher": state},
    "with a decoder": lambda state: state | {"decoder.0.weight": torch.ones(2)},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_files_of_timm_models_have_the_same_features(kind, vit, tmp_path):
    torch.save(WRAPPED[kind](vit.state_dict()), tmp_path / "weights.pth")
    record = import_model(str(tmp_path / "weights.pth"), tmp_path / "out", architecture="test_vit", model_license="mit")
    assert record["unused_tensors"] == (kind == "with a decoder")
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        assert_equal(ours(pixels).pooler_output, vit(pixels))


def test_numbered_modules_stems_of_one_channel_and_heads_are_kept(tmp_path):
    torch.manual_seed(0)
    theirs = randomize(timm.create_model("test_resnet", in_chans=1, num_classes=4))
    tensors = {f"net.{key}": value.contiguous() for key, value in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    words = ("--as", "timm/test_resnet", "--prefix", "net.", "--image_mean", "0.5", "--image_std", "0.1,0.2,0.3")
    printed = run_cli("import", tmp_path / "weights.safetensors", "--out", tmp_path / "out", *words)
    assert "Licence: unknown" in printed
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    grey = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert_equal(ours(grey.repeat(1, 3, 1, 1)).logits, theirs(grey))
    assert ours.config.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    children = [name for name, _ in theirs.named_children()]
    numbered = {".".join((str(children.index(key.partition(".")[0])), key.partition(".")[2])): value
                for key, value in theirs.state_dict().items() if not key.startswith("fc.")}  # fmt: skip
    model = timm_weights.create("test_resnet")
    assert timm_weights.load_tensors(model, "test_resnet", numbered, "") == []
    with torch.inference_mode():
        features = theirs.forward_head(theirs.forward_features(grey), pre_logits=True)
        assert_equal(model(grey.repeat(1, 3, 1, 1)), features)


def test_an_imported_folder_is_fine_tuned_like_others(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    import_model(str(tmp_path / "weights.pt"), leave_killed(tmp_path / "out"), architecture="test_vit")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {UNFINISHED, RUN_LOCK, "older.csv", "figures"}
    model, processor = build_classifier(str(tmp_path / "out"), ("healthy", "ill"))
    pixels = processor([Image.new("RGB", (50, 40))], return_tensors="pt")["pixel_values"]
    assert model(pixels).logits.shape == (1, 2)
    body = {key: value for key, value in model.timm_model.state_dict().items() if not key.startswith("head.")}
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in body.items())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.ones(1), "more": Evil()}, "evil.pt")
    with pytest.raises(MedtlError, match=r"evil\.pt is a pickle that needs code to be opened \((posix|nt)\.mkdir\)"):
        read_tensors(tmp_path / "evil.pt", torchxrayvision.CLASSES)
    torch.save(torch.nn.Linear(1, 1), "module.pth")
    with pytest.raises(MedtlError, match=r"needs code to be opened \(torch\.nn\.modules\.linear\.Linear\)"):
        read_tensors(tmp_path / "module.pth")
    torch.save({"more": Evil()}, "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(MedtlError, match=r"old\.pt is a pickle that needs code to be opened \((posix|nt)\.mkdir\)"):
        read_tensors(tmp_path / "old.pt", torchxrayvision.CLASSES)
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_old_modules_that_claim_or_lack_memory_are_refused(tmp_path):
    layer = torch.nn.Linear(8, 4)
    torch.save(layer, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    read = read_tensors(tmp_path / "old.pt", torchxrayvision.CLASSES)
    assert all(torch.equal(read[key], value) for key, value in layer.state_dict().items())
    content = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:-5])
    with pytest.raises(MedtlError, match="it ends too early"):
        read_tensors(tmp_path / "cut.pt", torchxrayvision.CLASSES)
    number = content.index(b"cpu") + content[content.index(b"cpu") :].index(b"K\x20") + 1
    (tmp_path / "huge.pt").write_bytes(content[: number - 1] + b"J\xff\xff\xff\x7f" + content[number + 1 :])
    with pytest.raises(MedtlError, match="its tensors are larger than the file"):
        read_tensors(tmp_path / "huge.pt", torchxrayvision.CLASSES)
    nested: dict = {"weight": torch.ones(1)}
    for _ in range(60):
        nested = {"a": nested, "b": nested}
    torch.save(nested, tmp_path / "nested.pt")
    assert len(read_tensors(tmp_path / "nested.pt")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read as weights"),
        (b"<html>404</html>", "no file of torch.save"),
        (b"PK\x03\x04", "can't be read"),
    ],
)
def test_damaged_files_are_one_sentence(content, message, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(MedtlError, match=message):
        read_tensors(tmp_path / "weights.pt")


def test_what_does_not_fit_is_said(vit, tmp_path):
    state = vit.state_dict()
    load = timm_weights.load_tensors
    with pytest.raises(MedtlError, match=r"timm .* has no architecture 'vit_bas_patch16_224'.*vit_base_patch16_224"):
        timm_weights.create("vit_bas_patch16_224")
    with pytest.raises(MedtlError, match=r"can't build test_resnet with \{'img_size': 64\}"):
        timm_weights.create("test_resnet", img_size=64)
    with pytest.raises(MedtlError, match=r"--prefix net\.: no tensor begins with it\. The names are cls_token"):
        load(timm_weights.create("test_vit"), "test_vit", state, "net.")
    with pytest.raises(MedtlError, match=r"of \d+ tensors of test_resnet are not in the file"):
        load(timm_weights.create("test_resnet"), "test_resnet", state)
    with pytest.raises(MedtlError, match=r"for another image size than that of test_vit.*--image_size"):
        load(timm_weights.create("test_vit", img_size=64), "test_vit", state)
    both = {f"{part}.{key}": value for part in ("student", "teacher") for key, value in state.items()}
    with pytest.raises(MedtlError, match="with 'student' and with 'teacher' before them"):
        load(timm_weights.create("test_vit"), "test_vit", both)
    broken = collections.OrderedDict(state) | {"norm.weight": state["norm.weight"] * torch.nan}
    with pytest.raises(MedtlError, match=r"norm\.weight holds NaN"):
        load(timm_weights.create("test_vit"), "test_vit", broken)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(MedtlError, match="give timm's name of its architecture with --as"):
        import_model(str(tmp_path / "w.pt"), tmp_path / "out")
    with pytest.raises(MedtlError, match="There is no file"):
        import_model(str(tmp_path / "missing.pt"), tmp_path / "out", architecture="test_vit")
    with pytest.raises(MedtlError, match="Expected torchxrayvision:NAME"):
        import_model("torchvision:resnet50", tmp_path / "out")


def test_eva_x_is_the_model_of_its_authors(tmp_path):
    eva = pytest.importorskip("timm.models.eva").Eva
    sizes = {"embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 4 * 2 / 3, "patch_size": 16}
    torch.manual_seed(0)
    theirs = eva(**sizes, swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(14, 14), num_classes=0).eval()
    masked = {("norm" + key.removeprefix("fc_norm") if key.startswith("fc_norm") else key): value
              for key, value in theirs.state_dict().items()}  # fmt: skip
    masked |= {"mask_token": torch.zeros(1, 1, 192), "lm_head.weight": torch.zeros(4, 192)}  # as in pretraining
    torch.save({"module": masked}, tmp_path / "eva_x_ti_16.pt")
    import_model(str(tmp_path / "eva_x_ti_16.pt"), tmp_path / "out", architecture="eva_x_tiny_patch16")
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert ours.config.pretrained_cfg["mean"] == [0.49185243] * 3
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert_equal(ours(pixels).pooler_output, theirs(pixels))
