"""Checkpoints as other libraries write them: timm's own folders, one channel, no preprocessing settings."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import (
    AutoModelForImageClassification,
    EfficientNetImageProcessor,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    SwiftFormerConfig,
    SwiftFormerForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_medtl import MedtlError, Recipe
from hf_medtl.models.backbones import classifier_config, timm_tags
from hf_medtl.models.build import build_classifier, check_unshared
from hf_medtl.models.heads import find_head
from hf_medtl.models.preprocessing import normalisation
from hf_medtl.training.options import check_choices

LABELS = ("healthy", "ill")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "image_size": 16, "patch_size": 8}  # fmt: skip


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_folders_that_timm_writes_are_backbones(name, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    save_for_hf(network, tmp_path / "timm", model_args={"num_classes": 3}, safe_serialization=True)
    model, processor = build_classifier(str(tmp_path / "timm"), LABELS)
    head = {id(p) for p in find_head(model).parameters()}
    body = {n.removeprefix("timm_model.") for n, p in model.named_parameters() if id(p) not in head}
    weights = model.timm_model.state_dict()
    assert all(torch.equal(network.state_dict()[key], weights[key]) for key in body)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert "num_classes" not in config["model_args"]  # stock classes would fail
    side = processor.data_config["input_size"][1]
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    pixels = torch.randn(1, 3, side, side)
    torch.testing.assert_close(again(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)


def check_grey(model, grey_logits, side):
    grey = torch.randn(2, 1, side, side, generator=torch.manual_seed(0))
    expected = grey_logits(grey)
    torch.testing.assert_close(model.eval()(pixel_values=grey.expand(-1, 3, -1, -1)).logits, expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_one_channel_stems_of_timm_become_three(name, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, in_chans=1).eval()
    save_for_hf(network, tmp_path / "grey", model_args={"in_chans": 1}, safe_serialization=True)
    config = json.loads((tmp_path / "grey" / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"] |= {"mean": [0.4], "std": [0.2]}
    (tmp_path / "grey" / "config.json").write_text(json.dumps(config | {"label_names": [*LABELS]}), encoding="utf-8")
    model, processor = build_classifier(str(tmp_path / "grey"), LABELS)
    find_head(model).load_state_dict(network.get_classifier().state_dict())
    size = tuple(processor.data_config["input_size"])
    check_grey(model, network, size[1])
    assert size[0] == 3
    assert (normalisation(processor)[0].flatten() / 255).tolist() == pytest.approx([0.4] * 3)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert again(pixel_values=torch.zeros(1, *size)).logits.shape == (1, 2)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_one_channel_stems_of_transformers_become_three(kind, tmp_path):
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    if kind == "vit":
        network = ViTForImageClassification(ViTConfig(num_channels=1, **SMALL, **names)).eval()
    else:
        config = ResNetConfig(num_channels=1, hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8, **names)
        network = ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4], image_std=[0.2]).save_pretrained(tmp_path)
    model, processor = build_classifier(str(tmp_path), LABELS)  # these labels, so the head is kept
    assert (model.config.num_channels, [*processor.image_mean], [*processor.image_std]) == (3, [0.4] * 3, [0.2] * 3)
    check_grey(model, lambda grey: network(pixel_values=grey).logits, 16)


@pytest.fixture
def bare(tmp_path):
    """Return a checkpoint without preprocessing settings."""
    ViTForImageClassification(ViTConfig(**SMALL)).save_pretrained(tmp_path)
    return str(tmp_path)


def test_statistics_are_given_where_a_checkpoint_says_none(bare):
    with pytest.raises(MedtlError, match=r"give them with --image_mean and --image_std\."):
        build_classifier(bare, LABELS)
    _, processor = build_classifier(bare, LABELS, mean=[0.4, 0.5, 0.6], std=[0.2])
    assert ([*processor.image_mean], [*processor.image_std]) == ([0.4, 0.5, 0.6], [0.2] * 3)
    assert (processor.size.height, processor.size.width) == (16, 16)
    processor.save_pretrained(bare)
    with pytest.raises(MedtlError, match=r"Remove --image_mean and --image_std, which differ\."):
        build_classifier(bare, LABELS, mean=[0.5], std=[0.5])
    build_classifier(bare, LABELS, mean=[0.4, 0.5, 0.6], std=[0.2])


def test_size_is_asked_for_where_nothing_says_it(tmp_path):
    ResNetForImageClassification(ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8)).save_pretrained(tmp_path)
    with pytest.raises(MedtlError, match=r"Give --image_size\."):
        build_classifier(str(tmp_path), LABELS, mean=[0.5], std=[0.5])
    _, processor = build_classifier(str(tmp_path), LABELS, mean=[0.5], std=[0.5], image_size=32)
    assert processor.size.height == 32


def test_processors_that_normalise_twice_are_folded_into_one(bare):
    stock = EfficientNetImageProcessor(size={"height": 16, "width": 16}, include_top=True, rescale_offset=False,
                                       image_mean=[0.4] * 3, image_std=[0.5] * 3, resample=3)  # fmt: skip
    stock.save_pretrained(bare)
    _, processor = build_classifier(bare, LABELS)
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    expected = stock(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], expected, rtol=0, atol=1e-5)


def test_models_for_bgr_images_take_rgb(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 7, "image_size": 32, "num_attention_heads": 2}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    network = MobileViTForImageClassification(MobileViTConfig(**sizes, **names)).eval()
    network.save_pretrained(tmp_path)
    stock = MobileViTImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False, resample=3)
    stock.save_pretrained(tmp_path)
    model, processor = build_classifier(str(tmp_path), LABELS)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    values = stock(image, return_tensors="pt")["pixel_values"]
    ours = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, values.flip(1))
    torch.testing.assert_close(model.eval()(pixel_values=ours).logits, network(pixel_values=values).logits)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_mean": "0.5"}, "belong together"),
        ({"image_mean": "a,b,c", "image_std": "0.5"}, "--image_mean must be one number, or three"),
        ({"image_mean": "0.5", "image_std": "0,0,0"}, "--image_std must be one number above 0"),
    ],
)
def test_statistics_are_checked_before_anything_is_loaded(options, sentence):
    from hf_medtl.tasks import get_task

    recipe = Recipe(dataset="brain-phantoms", use_cpu=True, **options)
    with pytest.raises(MedtlError, match=sentence):
        get_task(recipe.task).check_recipe(recipe)


def test_pooling_is_one_of_the_choices():
    with pytest.raises(MedtlError, match="--pooling must be cls, mean or attention, but is 'max'"):
        check_choices(vars(Recipe(dataset="brain-phantoms", use_cpu=True)) | {"pooling": "max"})


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("facebook/dinov3-vith16plus-pretrain-lvd1689m", "timm/vit_huge_plus_patch16_dinov3.lvd1689m"),
        ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m", "timm/convnext_tiny.dinov3_lvd1689m"),
        ("google/vit-base-patch16-224", ""),
    ],
)
def test_errors_name_the_same_network_in_timm(name, twin):
    hint = timm_tags(name)
    assert hint == (f" The same network without a gate: {twin}." if twin else "")


def test_networks_for_patches_of_any_shape_are_refused_with_the_reason():
    from transformers import Siglip2Config

    with pytest.raises(MedtlError, match=r"NaFlex takes patches of images of any shape.*siglip2-base-patch16-224\."):
        classifier_config("google/siglip2-base-patch16-naflex", Siglip2Config())


def test_layers_that_share_weights_are_refused_before_training(tmp_path):
    """CoaT of timm is one of them; transformers would fail to save it after the first epoch."""
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SMALL | {"num_hidden_layers": 2})).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    model, _ = build_classifier(str(tmp_path), LABELS)
    check_unshared("vit", model)
    layers = next(x for x in model.modules() if isinstance(x, torch.nn.ModuleList))
    layers[1] = layers[0]
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path / "again")
    with pytest.raises(MedtlError, match="vit uses the same weights in several layers") as error:
        check_unshared("vit", model)
    assert "\n" not in str(error.value)


def test_network_of_timm_with_shared_layers_is_refused():
    with pytest.raises(MedtlError, match=r"same weights in several layers, such as .*cpe"), torch.device("meta"):
        build_classifier("timm/coat_tiny", LABELS, from_scratch=True)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "volo_d1_224", "efficientvim_m1", "repvit_m0_9"])
def test_logits_of_several_heads_are_refused(name):
    """One head of them would be calibrated, and the others not."""
    with torch.device("meta"):
        config = TimmWrapperConfig(architecture=name, num_labels=2)
        model = TimmWrapperForImageClassification(config)
    with pytest.raises(MedtlError, match="has a second head"):
        find_head(model)


def test_logits_of_two_heads_of_transformers_are_refused():
    with torch.device("meta"):
        model = SwiftFormerForImageClassification(SwiftFormerConfig(num_labels=2))
    with pytest.raises(MedtlError, match=r"second head \(dist_head\)"):
        find_head(model)
