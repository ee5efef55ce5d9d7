"""Image classifier on any image encoder. This file is copied beside the weights, so it imports nothing of hf_medtl."""

import inspect
import os
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# Model type of the encoder -> how its output can be pooled, its own way first. Only these: an encoder of another type
# could open or download something when it is built.
ENCODERS: dict[str, tuple[str, ...]] = {
    "aimv2_vision_model": ("attention", "mean"),
    "chinese_clip_vision_model": ("cls", "mean"),
    "clip_vision_model": ("cls", "mean"),
    "deit": ("cls", "mean"),
    "dinov2": ("cls", "mean"),
    "dinov2_with_registers": ("cls", "mean"),
    "dinov3_convnext": ("cls", "mean"),
    "dinov3_vit": ("cls", "mean"),
    "ijepa": ("mean",),
    "mlcd_vision_model": ("cls", "mean"),
    "pixio": ("cls", "mean"),
    "siglip_vision_model": ("attention", "mean"),
    "tipsv2_vision_model": ("cls", "mean"),
    "vit": ("cls", "mean"),
    "vit_msn": ("cls", "mean"),
}
NORM_AFTER_POOLING = ("chinese_clip_vision_model", "clip_vision_model", "mlcd_vision_model")
HEADS = ("vision_use_head", "use_head")  # settings of encoders that have an attention pooling


class EncoderConfig(PreTrainedConfig):
    """Configuration of `EncoderForImageClassification`.

    The encoder's own configuration is nested, under a model type of this class. So a saved model is loaded as it was
    saved, even where `transformers` has a classifier of its own for this encoder later.

    Args:
        vision_config: configuration of the encoder, or a dict of it, whose model type is one of ENCODERS.
        pooling: one of the ways in ENCODERS; None is the encoder's own. "cls" is its class token (or what it takes for
            one), "mean" the mean over the patches, "attention" its attention pooling.
        kwargs: arguments of every configuration, such as `id2label` and `problem_type`.

    Raises:
        ValueError: another encoder, or a pooling that it does not have.
    """

    model_type = "medical_encoder"
    sub_configs = {"vision_config": AutoConfig}  # noqa: RUF012 - as transformers has it

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        pooling: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_number_of_labels(kwargs)
        given = {"model_type": "vit"} if vision_config is None else vision_config
        settings = given if isinstance(given, dict) else given.to_dict()
        model_type = settings.get("model_type")
        if model_type not in ENCODERS:
            raise ValueError(f"expected an image encoder of the type {', '.join(ENCODERS)}, found {model_type!r}.")
        check_number_of_labels(settings)
        config: Any = CONFIG_MAPPING[model_type].from_dict(settings) if isinstance(given, dict) else given
        heads = [name for name in HEADS if hasattr(config, name)]
        has_head = all(getattr(config, name) for name in heads)
        possible = [name for name in ENCODERS[model_type] if name != "attention" or has_head]
        self.pooling = possible[0] if pooling is None else pooling
        if self.pooling not in possible:
            raise ValueError(f"{model_type} can be pooled by {' or '.join(possible)}, not by {pooling!r}.")
        for name in heads:  # a head without use would get no gradients
            setattr(config, name, self.pooling == "attention")
        self.vision_config = config
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return saved settings; those of an encoder alone become those of a classifier on it."""
        settings, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get("model_type") in ENCODERS:
            settings = {"model_type": cls.model_type, "vision_config": settings}
        return settings, rest


def check_number_of_labels(settings: dict[str, Any]) -> None:
    """Raise ValueError if a configuration asks for absurdly many labels, each of which would get a name."""
    for key in ("num_labels", "num_classes"):
        if int(settings.get(key) or 0) > 100_000:
            raise ValueError(f"{key} must be 100000 or less, found {settings[key]}.")


class EncoderForImageClassification(PreTrainedModel):
    """Image encoder of `transformers`, pooled, with a linear head."""

    config_class = EncoderConfig
    config: EncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.encoder = encoder_class(config.vision_config)._from_config(
            config.vision_config, **without_pooler(config.vision_config)
        )
        sizes = getattr(config.vision_config, "hidden_sizes", None)
        width = sizes[-1] if sizes else config.vision_config.hidden_size
        self.classifier = nn.Linear(width, int(config.num_labels or 0))
        self._no_split_modules = getattr(self.encoder, "_no_split_modules", None)
        self.post_init()

    def initialize_weights(self) -> None:
        """Initialise tensors that no checkpoint has filled; those of the encoder as it does by itself.

        TRAP: below a class from outside `transformers`, layers that a stock encoder initialises from the layer around
        them, as CLIP's are, would get the deviation of any other layer. Seen in transformers 5.23.
        """
        self.encoder.initialize_weights()
        super().initialize_weights()

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that makes the embeddings of the patches."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the layer that makes the embeddings of the patches."""
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Return logits (B, K) of images (B, 3, H, W), and with labels the loss, like stock classifiers.

        Args:
            pixel_values: output of the image processor.
            labels: (B,) class indices, or (B, K) for multilabel classification.
            return_dict: False returns a tuple; None is the configuration's setting.
            output_hidden_states: also return the output of each layer of the encoder, or of those of some indices; None
                as above.
            output_attentions: also return its attention, with the implementation "eager"; None as above.
            interpolate_pos_encoding: take images of another size, where the encoder has embeddings of positions.
            kwargs: arguments of the loss, such as `num_items_in_batch`; others that stock models take are ignored.
        """
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in wanted.items()}
        more: dict[str, Any] = {name: value for name, value in wanted.items() if value}
        if (
            interpolate_pos_encoding
            and "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters
        ):
            more["interpolate_pos_encoding"] = True
        outputs = self.encoder(pixel_values=pixel_values, return_dict=True, **more)
        logits = self.classifier(self.pool(outputs, pixel_values))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        output = ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states") if wanted["output_hidden_states"] else None,
            attentions=outputs.get("attentions") if wanted["output_attentions"] else None,
        )
        keep_names = self.config.return_dict if return_dict is None else return_dict
        return output if keep_names else output.to_tuple()

    def pool(self, outputs: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features (B, d) of images from the output of the encoder, whose patches are its last tokens."""
        tokens, config = outputs.last_hidden_state, self.config.vision_config
        if self.config.pooling != "mean":
            pooled = outputs.get("pooler_output")
            return tokens[:, 0] if pooled is None else pooled
        if config.model_type in NORM_AFTER_POOLING:  # its last norm is for the class token, and fits the patches, too
            tokens = self.encoder.post_layernorm(tokens)
        if config.model_type == "dinov3_convnext":  # it has one token besides its positions
            return tokens[:, 1:].mean(dim=1)
        patch = config.patch_size
        height, width = (patch, patch) if isinstance(patch, int) else patch
        number = (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)
        return tokens[:, -number:].mean(dim=1)


def encoder_class(config: PreTrainedConfig) -> Any:
    """Return the class of an encoder; without a head."""
    classes = MODEL_MAPPING[type(config)]
    return classes[0] if isinstance(classes, tuple | list) else classes


def without_pooler(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the argument that leaves out the pooling layer of BERT, which checkpoints of encoders seldom have."""
    parameters = inspect.signature(encoder_class(config).__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}
