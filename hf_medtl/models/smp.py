"""Segmentation networks of SMP. This file is copied beside the weights, so it imports nothing of hf_medtl."""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

ARCHITECTURES = ("unet", "unetplusplus", "deeplabv3plus", "fpn", "manet", "segformer")
# Arguments of SMP's classes and of timm's architectures that a configuration may give: sizes and rates alone. TRAP: SMP
# hands what it does not know on to timm, which would unpickle a `checkpoint_path`.
SMP_ARGUMENTS = frozenset({
    "activation", "decoder_aspp_dropout", "decoder_aspp_separable", "decoder_atrous_rates", "decoder_attention_type",
    "decoder_channels", "decoder_dropout", "decoder_interpolation", "decoder_merge_policy", "decoder_pab_channels",
    "decoder_pyramid_channels", "decoder_segmentation_channels", "decoder_use_batchnorm", "decoder_use_norm",
    "drop_path_rate", "drop_rate", "encoder_depth", "encoder_output_stride", "img_size", "patch_size", "upsampling",
    "window_size",
})  # fmt: skip
STRIDE = 32  # of the coarsest features of every encoder, in pixels
TILE_OVERLAP = 0.25  # of neighbouring tiles, at least, as a fraction of their side
TILES_AT_ONCE = 4  # in one forward pass, so that memory does not grow with their number
TILE_SIDES = (32, 8_192)  # smallest and largest, in pixels


class SmpConfig(PreTrainedConfig):
    """Configuration of `SmpForSemanticSegmentation`.

    Args:
        architecture: one of ARCHITECTURES.
        encoder_name: name in SMP, such as resnet34 or mit_b0; `tu-NAME` is an architecture of timm.
        model_args: further arguments of SMP's class, such as `decoder_channels`.
        num_channels: channels of the images.
        semantic_loss_ignore_index: class index of pixels that the loss ignores.
        tile: side in pixels of the tiles in which larger images go through the network; None for whole images.
        encoder_weights: always None. TRAP: with a name here SMP would download the encoder at each loading, although
            the weights are in the folder.
        kwargs: arguments of every configuration, such as `num_labels`, which includes the background.

    Raises:
        ValueError: an unknown architecture, `encoder_weights`, an encoder from elsewhere, arguments other than
            SMP_ARGUMENTS, or a tile outside of TILE_SIDES.
    """

    model_type = "medical_smp"

    def __init__(
        self,
        architecture: str = "unet",
        encoder_name: str = "resnet34",
        model_args: dict[str, Any] | None = None,
        num_channels: int = 3,
        semantic_loss_ignore_index: int = 255,
        tile: int | None = None,
        encoder_weights: None = None,
        **kwargs: Any,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {ARCHITECTURES}, found {architecture!r}.")
        if encoder_weights is not None:
            raise ValueError(
                f"encoder_weights must be None: load weights into the model instead; found {encoder_weights!r}."
            )
        if not re.fullmatch(r"[\w.\-]+", str(encoder_name)):  # hf-hub:NAME and local-dir:NAME load something else
            raise ValueError(f"encoder_name must be a name in SMP or timm, found {encoder_name!r}.")
        if int(kwargs.get("num_labels") or 0) > 100_000:  # each would get a name
            raise ValueError(f"num_labels must be 100000 or less, found {kwargs['num_labels']}.")
        if unknown := sorted(set(model_args or {}) - SMP_ARGUMENTS):
            raise ValueError(f"model_args may give {', '.join(sorted(SMP_ARGUMENTS))}; found {', '.join(unknown)}.")
        if any(isinstance(value, list | tuple | dict) and len(value) > 100 for value in (model_args or {}).values()):
            raise ValueError("model_args may have lists of 100 entries at most.")
        self.architecture, self.encoder_name, self.encoder_weights = architecture, encoder_name, encoder_weights
        if tile is not None and not (isinstance(tile, int) and TILE_SIDES[0] <= tile <= TILE_SIDES[1]):
            raise ValueError(f"tile must be a whole number of {TILE_SIDES[0]} to {TILE_SIDES[1]}, found {tile!r}.")
        self.model_args, self.tile = dict(model_args or {}), tile
        self.num_channels, self.semantic_loss_ignore_index = num_channels, semantic_loss_ignore_index
        super().__init__(**kwargs)


class SmpForSemanticSegmentation(PreTrainedModel):
    """Encoder, decoder and head of an SMP network, for images of any size; tensors are named as in SMP.

    Source: Iakubovskii 2019, Segmentation Models PyTorch, https://github.com/qubvel-org/segmentation_models.pytorch.
    """

    config_class = SmpConfig
    config: SmpConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = "image"
    accepts_loss_kwargs = False  # the loss is a mean over the pixels of this batch; Trainer then averages over batches
    _no_split_modules: list[str] = []  # noqa: RUF012 - as transformers has it

    def __init__(self, config: SmpConfig) -> None:
        super().__init__(config)
        network = build_network(config)
        self.encoder, self.decoder, self.segmentation_head = network.encoder, network.decoder, network.segmentation_head
        for _, tensor in _named_tensors(self):
            tensor._is_hf_initialized = not tensor.is_meta  # type: ignore[attr-defined]
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise tensors that no checkpoint has filled as SMP does, and leave all others as they are.

        TRAP: `transformers` would draw every layer with a deviation of 0.02, even those of a pretrained encoder; and
        buffers that are not saved, such as tables of relative positions, would be undefined after loading.
        """
        empty = {name: x for name, x in _named_tensors(self) if not getattr(x, "_is_hf_initialized", False)}
        if empty:
            for name, initial in _named_tensors(build_network(self.config)):
                if name in empty:
                    empty[name].copy_(initial)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        crop_boxes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput | tuple[Any, ...]:
        """Return logits (B, K, H, W) of images (B, C, H, W), and with labels the mean cross entropy, in float32.

        Sizes that are no multiple of STRIDE are padded with the last row and column, and the logits are cropped. Images
        larger than `config.tile` are cut into tiles, whose logits are blended, see `blend_tiles`.

        Args:
            pixel_values: output of the image processor.
            labels: (B, H, W) class indices; `semantic_loss_ignore_index` for pixels without a label.
            return_dict: False returns a tuple; None is the configuration's setting.
            output_hidden_states: also return the features (B, C, H, W) of each stage of the encoder for the padded
                image, from fine to coarse; None as above. There are none of tiles.
            crop_boxes: (B, 4) crops that the image processor made; they are returned, because it needs them again for
                masks of the size of the images.
            kwargs: other arguments that stock models take; they are ignored.
        """
        if self.config.tile and max(pixel_values.shape[-2:]) > self.config.tile:
            logits = blend_tiles(lambda tiles: self._logits(tiles)[0], pixel_values, self.config.tile)
            features: list[torch.Tensor] = []
        else:
            logits, features = self._logits(pixel_values)
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            total = nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=ignored, reduction="sum")
            loss = total / (labels != ignored).sum().clamp(min=1)  # 0, not NaN, for a batch without labelled pixels
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        stages = tuple(x for x in features[1:] if x.numel())  # the first is the image; encoders may lack a stage
        output = SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=stages if wanted else None)
        if crop_boxes is not None:
            output["crop_boxes"] = crop_boxes
        keep_names = self.config.return_dict if return_dict is None else return_dict
        return output if keep_names else output.to_tuple()

    def _logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the logits of images, and the features of the encoder's stages."""
        height, width = pixel_values.shape[-2:]
        margins = (0, -width % STRIDE, 0, -height % STRIDE)
        if any(margins):
            pixel_values = nn.functional.pad(pixel_values, margins, mode="replicate")
        features = self.encoder(pixel_values)
        return self.segmentation_head(self.decoder(features))[..., :height, :width], features


def tile_starts(length: int, tile: int) -> list[int]:
    """Return the first pixels of evenly spaced tiles that cover a side, overlapping by TILE_OVERLAP or more.

    Args:
        length: of the side in pixels.
        tile: side of the tiles in pixels; a shorter side has one tile.
    """
    last = max(0, length - tile)
    steps = -(-last // max(1, int(tile * (1 - TILE_OVERLAP))))
    return [round(last * i / steps) for i in range(steps + 1)] if steps else [0]


def tile_windows(height: int, width: int, tile: int) -> list[tuple[slice, slice]]:
    """Return rows and columns of the tiles of an image, from top left to bottom right."""
    rows, columns = ([slice(x, x + min(tile, side)) for x in tile_starts(side, tile)] for side in (height, width))
    return [(y, x) for y in rows for x in columns]


def blend_tiles(predict: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, tile: int) -> torch.Tensor:
    """Return the logits (B, K, H, W) of images (B, C, H, W) from those of overlapping tiles.

    Where tiles overlap, logits are averaged with weights that fall linearly to the edge of a tile, where a network sees
    the least around a pixel. Source: the overlap-tile strategy of Ronneberger et al. 2015, U-Net,
    https://arxiv.org/abs/1505.04597, with weights as in nnU-Net (Isensee et al. 2021, Nat Methods 18:203-211), linear
    instead of Gaussian. TILES_AT_ONCE tiles are in memory at a time, besides the images and the logits.

    Args:
        predict: (b, C, h, w) -> logits (b, K, h, w).
        pixels: the images.
        tile: side of the tiles in pixels.
    """
    height, width = pixels.shape[-2:]
    ramps, sums = [], []
    for length in (height, width):
        side = min(tile, length)
        positions = torch.arange(side, device=pixels.device) + 0.5
        ramps.append(torch.minimum(positions, side - positions).clamp(max=tile * TILE_OVERLAP))
        sums.append(torch.zeros(length, device=pixels.device))
        for start in tile_starts(length, tile):
            sums[-1][start : start + side] += ramps[-1]
    weights = ramps[0][:, None] * ramps[1]
    windows, blended = tile_windows(height, width, tile), None
    for first in range(0, len(windows), TILES_AT_ONCE):
        part = windows[first : first + TILES_AT_ONCE]
        logits = predict(torch.cat([pixels[..., y, x] for y, x in part])).float()
        if blended is None:
            blended = logits.new_zeros(len(pixels), logits.shape[1], height, width)
        for (y, x), values in zip(part, logits.split(len(pixels)), strict=True):
            blended[..., y, x] += values * weights
    assert blended is not None
    return blended.div_(sums[0][:, None]).div_(sums[1])


def build_network(config: SmpConfig, encoder_weights: str | bool | None = None) -> Any:
    """Build SMP's own network with random weights; `encoder_weights` downloads pretrained ones for the encoder."""
    import segmentation_models_pytorch  # takes seconds, so it is imported when it is first used

    return segmentation_models_pytorch.create_model(
        config.architecture,
        encoder_name=config.encoder_name,
        encoder_weights=encoder_weights,
        in_channels=config.num_channels,
        classes=int(config.num_labels or 0),
        **config.model_args,
    )


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
