"""Small convolutional networks. This file is copied beside the weights, so it imports nothing of hf_medtl."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

# Name -> arguments of MedicalCnnConfig.
PRESETS: dict[str, dict[str, Any]] = {
    "cnn": {},
    "cnn_baseline": {"widths": (32, 64), "convolutions": 1, "batch_norm": False, "attention": False},
}


class MedicalCnnConfig(PreTrainedConfig):
    """Configuration of `MedicalCnnForImageClassification`; by default four blocks with batch norm and attention.

    Args:
        widths: channels of each block.
        convolutions: 3 × 3 convolutions in a block.
        batch_norm: add batch norm after each convolution.
        attention: add CBAM at the end of each block.
        num_channels: channels of the images.
        image_size: height and width in pixels that the image processor resizes to; the network accepts any size.
        kwargs: arguments of every configuration, such as `num_labels`.

    Raises:
        ValueError: more blocks, convolutions, channels or labels than any such network has.
    """

    model_type = "medical_cnn"

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 96, 128),
        convolutions: int = 2,
        batch_norm: bool = True,
        attention: bool = True,
        num_channels: int = 3,
        image_size: int = 128,
        **kwargs: Any,
    ) -> None:
        check_number_of_labels(kwargs)
        if not 0 < len(widths) <= 64 or not 0 < max(widths) <= 65_536 or not 0 < convolutions <= 64:
            raise ValueError("widths must be 1 to 64 numbers of up to 65536, and convolutions 1 to 64.")
        self.widths, self.convolutions = list(widths), convolutions
        self.batch_norm, self.attention = batch_norm, attention
        self.num_channels, self.image_size = num_channels, image_size
        super().__init__(**kwargs)


def check_number_of_labels(settings: dict[str, Any]) -> None:
    """Raise ValueError if a configuration asks for absurdly many labels, each of which would get a name."""
    for key in ("num_labels", "num_classes"):
        if int(settings.get(key) or 0) > 100_000:
            raise ValueError(f"{key} must be 100000 or less, found {settings[key]}.")


class Attention(nn.Module):
    """CBAM: channel attention, then spatial attention, each computed from means and maxima.

    Source: Woo et al. 2018, CBAM: Convolutional Block Attention Module, https://arxiv.org/abs/1807.06521.

    Args:
        width: number of channels.
        reduction: factor by which the hidden layer has fewer channels.
    """

    def __init__(self, width: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.channels = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.places = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh features (B, C, H, W) by channel and position."""
        weights = self.channels(x.mean((2, 3))) + self.channels(x.amax((2, 3)))
        x = x * weights.sigmoid()[:, :, None, None]
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * self.places(maps).sigmoid()


class Block(nn.Sequential):
    """Convolutions, optional attention, and 2 × 2 max pooling."""

    def __init__(self, config: MedicalCnnConfig, inputs: int, width: int) -> None:
        layers: list[nn.Module] = []
        for i in range(config.convolutions):
            layers.append(nn.Conv2d(width if i else inputs, width, 3, padding=1, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
        if config.attention:
            layers.append(Attention(width))
        super().__init__(*layers, nn.MaxPool2d(2, ceil_mode=True))  # else an image of one pixel would vanish


class MedicalCnnForImageClassification(PreTrainedModel):
    """Image classifier for any input size: convolutional blocks, global average pooling and a linear head."""

    config_class = MedicalCnnConfig
    config: MedicalCnnConfig
    base_model_prefix = "blocks"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules = ["Block"]  # noqa: RUF012 - as transformers has it

    def __init__(self, config: MedicalCnnConfig) -> None:
        super().__init__(config)
        inputs = [config.num_channels, *config.widths]
        self.blocks = nn.Sequential(*(Block(config, *pair) for pair in zip(inputs, config.widths, strict=False)))
        self.classifier = nn.Linear(config.widths[-1], int(config.num_labels or 0))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # TRAP: torch.nn.init would reinitialise loaded weights; these functions skip them.
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Return logits (B, K) of images (B, C, H, W), and with labels the loss, like stock classifiers.

        Args:
            pixel_values: output of the image processor.
            labels: (B,) class indices, or (B, K) for multilabel classification.
            return_dict: False returns a tuple; None is the configuration's setting.
            output_hidden_states: also return the output of each block, (B, C, H, W); None as above.
            kwargs: arguments of the loss, such as `num_items_in_batch`; others that stock models take are ignored.
        """
        features, hidden_states = pixel_values, []
        for block in self.blocks:
            features = block(features)
            hidden_states.append(features)
        logits = self.classifier(features.mean((2, 3)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=tuple(hidden_states) if wanted else None
        )
        keep_names = self.config.return_dict if return_dict is None else return_dict
        return output if keep_names else output.to_tuple()
