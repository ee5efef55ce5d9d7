"""Image encoders without a stock classifier: built, pooled, saved with their code, loaded without hf_medtl."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageClassification, ViTImageProcessor

from hf_medtl import MedtlError
from hf_medtl.explain.attention import attention_weights
from hf_medtl.explain.layers import find_layer
from hf_medtl.models.build import build_classifier
from hf_medtl.models.encoder_classifier import EncoderConfig, EncoderForImageClassification
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from hf_medtl.models.strategies import count_blocks, head_names, parameter_depths, set_trainable
from hf_medtl.publish.hub import UPLOAD_PATTERNS
from tests.support.tiny_models import ENCODERS, save_encoder

LABELS = ("healthy", "ill")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return a function that saves a tiny encoder once, as it would come from the Hub, and returns its folder."""
    made = {}

    def make(model_type, **more):
        key = (model_type, *sorted(more.items()))
        if key not in made:
            made[key] = save_encoder(model_type, tmp_path_factory.mktemp("encoders") / model_type, **more)
        return made[key]

    return make


def pixels(side=16):
    return torch.randn(2, 3, side, side, generator=torch.manual_seed(1))


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [
        ("dinov3_vit", "cls"),
        ("dinov3_convnext", "cls"),
        ("siglip_vision_model", "attention"),
        ("clip_vision_model", "cls"),
        ("aimv2_vision_model", "attention"),
        ("mlcd_vision_model", "cls"),
        ("pixio", "cls"),
    ],
)
def test_features_are_those_of_the_encoder(encoder, model_type, pooling, tmp_path):
    side = 64 if model_type == "dinov3_convnext" else 16
    model, processor = build_classifier(str(encoder(model_type)), LABELS, image_size=side)
    assert (type(model), model.config.pooling) == (EncoderForImageClassification, pooling)
    body = AutoModel.from_pretrained(encoder(model_type)).eval()
    with torch.no_grad():
        expected = model.classifier(body(pixel_values=pixels(side)).pooler_output)
        torch.testing.assert_close(model.eval()(pixel_values=pixels(side)).logits, expected)
    loss = model.train()(pixel_values=pixels(side), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and "mask_token" not in n] == []
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixel_values=pixels(side)).logits, model.eval()(pixel_values=pixels(side)).logits)


@pytest.mark.parametrize("model_type", ["dinov3_vit", "clip_vision_model", "siglip_vision_model", "ijepa", "vit_mae"])
def test_mean_pooling_is_that_of_the_patches(encoder, model_type):
    model, _ = build_classifier(str(encoder(model_type)), LABELS, pooling="mean")
    model.classifier = torch.nn.Identity()
    output = model.eval()(pixel_values=pixels(), output_hidden_states=True)
    features, hidden = output.logits, output.hidden_states[-1]
    norms = [m for n, m in model.named_modules() if n.split(".")[-1] in ("norm", "layernorm", "post_layernorm")]
    torch.testing.assert_close(features, norms[-1](hidden)[:, -16:].mean(dim=1))


def test_masked_autoencoder_is_a_stock_vit_that_sees_all_patches(encoder, tmp_path):
    model, _ = build_classifier(str(encoder("vit_mae")), LABELS)
    assert type(model).__name__ == "ViTForImageClassification"
    assert torch.equal(model.eval()(pixel_values=pixels()).logits, model(pixel_values=pixels()).logits)
    body = AutoModel.from_pretrained(encoder("vit_mae")).state_dict()
    assert all(torch.equal(x, body[name]) for name, x in model.base_model.state_dict().items())


def test_image_encoder_of_a_model_for_images_and_text_is_used(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    both = {"vision_config": ENCODERS["aimv2_vision_model"], "text_config": text | {"vocab_size": 20}}
    whole = AutoModel.from_config(CONFIG_MAPPING["aimv2"](**both)).eval()
    whole.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    model, _ = build_classifier(str(tmp_path), LABELS)
    with torch.no_grad():
        expected = model.classifier(whole.vision_model(pixel_values=pixels()).pooler_output)
        torch.testing.assert_close(model.eval()(pixel_values=pixels()).logits, expected)


@pytest.mark.parametrize("name", ["vit", "ijepa"])
def test_stock_class_is_kept_for_its_own_pooling(encoder, name):
    pooling = {"vit": "cls", "ijepa": "mean"}[name]
    model, _ = build_classifier(str(encoder(name)), LABELS, pooling=pooling)
    assert not isinstance(model, EncoderForImageClassification)


def test_saved_model_keeps_loading_when_transformers_has_a_class(encoder, tmp_path, stock_pool):
    """Its model type is our own, so no stock class for the encoder's type can take its place."""
    model, processor = build_classifier(str(encoder("dinov3_vit")), LABELS)
    model.eval().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "medical_encoder"
    assert config["vision_config"]["model_type"] == "dinov3_vit"
    assert config["auto_map"]["AutoModelForImageClassification"] == "encoder_classifier.EncoderForImageClassification"
    assert {path.name for path in (tmp_path / "model").glob("*.py")} == {"encoder_classifier.py"} <= {*UPLOAD_PATTERNS}
    torch.save(pixels(), tmp_path / "pixels.pt")
    process = stock_pool.run_code(LOADING, tmp_path / "pixels.pt", tmp_path / "model")
    assert process.returncode == 0, process.stderr
    logits = torch.tensor(json.loads(process.stdout.splitlines()[-1]))
    torch.testing.assert_close(logits, model(pixel_values=pixels()).logits, rtol=0, atol=1e-5)


LOADING = """
import json, sys
sys.modules["hf_medtl"] = None
import torch
from transformers import AutoModelForImageClassification, DINOv3ViTConfig, DINOv3ViTModel, PreTrainedModel

class Later(PreTrainedModel):  # as if transformers had gained a classifier for this encoder
    config_class = DINOv3ViTConfig

AutoModelForImageClassification.register(DINOv3ViTConfig, Later)
model = AutoModelForImageClassification.from_pretrained(sys.argv[2], trust_remote_code=True).eval()
print(json.dumps(model(pixel_values=torch.load(sys.argv[1])).logits.tolist()))
"""


@pytest.mark.parametrize("model_type", ["dinov3_vit", "siglip_vision_model", "clip_vision_model", "aimv2_vision_model"])
def test_explanations_and_strategies_find_layers(encoder, model_type):
    model, _ = build_classifier(str(encoder(model_type)), LABELS)
    layer = find_layer(model, pixels())
    assert (layer.height, layer.width) == (4, 4)
    assert attention_weights(model, pixels())[0].shape[1] == 2
    depths = parameter_depths(model)
    assert count_blocks(depths) == 2
    assert head_names(model) == {"classifier.weight", "classifier.bias"}
    set_trainable(model, 0, None)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("model_type", "tokens"), [("clip_vision_model", 26), ("siglip_vision_model", 25)])
def test_position_embeddings_of_encoders_are_interpolated(encoder, model_type, tokens, tmp_path):
    model, _ = build_classifier(str(encoder(model_type)), LABELS, image_size=20)
    assert model.config.vision_config.image_size == 20
    assert next(x for n, x in model.named_parameters() if "position_embedding" in n).shape[0] == tokens
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again(pixel_values=pixels(20)).logits.shape == (2, 2)


def test_an_encoder_classifier_can_be_trained_further_and_pooled_otherwise(encoder, tmp_path):
    model, processor = build_classifier(str(encoder("dinov3_vit")), LABELS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = build_classifier(str(tmp_path), LABELS)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    other, _ = build_classifier(str(tmp_path), LABELS, pooling="mean")
    assert other.config.pooling == "mean"
    assert torch.equal(other.encoder.norm.weight, model.encoder.norm.weight)


def test_encoders_can_be_members_of_an_ensemble(encoder):
    model, _ = build_classifier(str(encoder("clip_vision_model")), LABELS)
    member = {"config": model.config.to_dict(), "name": "a", "mean": [0.5] * 3, "std": [0.5] * 3}
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    ensemble = EnsembleForImageClassification(EnsembleConfig([member], **names)).eval()
    ensemble.members[0].load_state_dict(model.state_dict())
    expected = model.eval()(pixel_values=pixels()).logits.softmax(dim=1)
    torch.testing.assert_close(ensemble(pixel_values=pixels()).logits.softmax(dim=1), expected)


@pytest.mark.parametrize(
    ("model_type", "pooling", "sentence"),
    [
        ("siglip_vision_model", "cls", "siglip_vision_model can be pooled by attention or mean, not by 'cls'"),
        ("dinov3_vit", "attention", "dinov3_vit can be pooled by cls or mean, not by 'attention'"),
    ],
)
def test_pooling_that_an_encoder_does_not_have_is_refused(encoder, model_type, pooling, sentence):
    with pytest.raises(MedtlError, match=sentence):
        build_classifier(str(encoder(model_type)), LABELS, pooling=pooling)


def test_encoders_of_other_types_are_not_built():
    with pytest.raises(ValueError, match=r"expected an image encoder of the type .* found 'timm_wrapper'"):
        EncoderConfig({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "x"}})


def test_attention_implementation_and_wanted_layers_reach_the_encoder(encoder):
    model, _ = build_classifier(str(encoder("dinov3_vit")), LABELS)
    model.eval().set_attn_implementation("eager")
    assert model.encoder.config._attn_implementation == "eager"
    output = model(pixel_values=pixels(), output_attentions=True, output_hidden_states=[0, 2])
    assert [x.shape for x in output.attentions] == [(2, 2, 19, 19)] * 2
    assert [x is None for x in output.hidden_states] == [False, True, False]


def test_folder_of_an_encoder_loads_below_a_new_head(encoder):
    model, report = EncoderForImageClassification.from_pretrained(
        encoder("clip_vision_model"), num_labels=3, output_loading_info=True
    )
    assert (model.config.vision_config.model_type, model.classifier.out_features) == ("clip_vision_model", 3)
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    body = AutoModel.from_pretrained(encoder("clip_vision_model")).state_dict()
    assert all(torch.equal(x, body[name]) for name, x in model.encoder.state_dict().items())


def test_missing_tensors_are_drawn_as_by_the_encoder_itself():
    config = EncoderConfig({"model_type": "clip_vision_model"} | ENCODERS["clip_vision_model"] | {"hidden_size": 64})
    model = EncoderForImageClassification.from_pretrained(None, config=config, state_dict={})
    deviation = model.encoder.encoder.layers[0].mlp.fc1.weight.std().item()
    assert deviation == pytest.approx(128**-0.5, rel=0.15)  # of CLIP; that of other layers is 0.02
