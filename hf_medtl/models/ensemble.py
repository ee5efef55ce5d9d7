"""Deep ensemble of classifiers, averaging probabilities. This file is copied beside the weights, with its members'."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax, logsigmoid
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

# Relative, so that it resolves both in hf_medtl and beside the weights; stock Auto classes do not know this class.
from .cnn import MedicalCnnConfig, MedicalCnnForImageClassification, check_number_of_labels
from .encoder_classifier import EncoderConfig, EncoderForImageClassification

# Arguments of timm's architectures that a configuration may give: sizes and rates alone. TRAP: `transformers` hands all
# on to timm, which would unpickle a `checkpoint_path`.
TIMM_ARGUMENTS = frozenset({
    "act_layer", "always_partition", "ape", "attn_drop_rate", "avg_down", "base_width", "bn_eps", "bn_momentum",
    "cardinality", "channels", "class_token", "conv_bias", "conv_mlp", "depth", "depths", "dim", "dims",
    "distillation", "down_kernel_size", "downsamples", "drop_block_rate", "drop_path_rate", "drop_rate",
    "dynamic_img_pad", "dynamic_img_size", "embed_dim", "embed_dims", "embed_layer", "expand_ratio", "fc_norm",
    "features_only", "final_norm", "fix_init", "fix_stem", "global_pool", "groups", "growth_rate", "head_dim",
    "head_dropout", "head_hidden_size", "head_init_scale", "head_norm_first", "heads", "img_size", "in_chans",
    "init_values", "kernel_size", "layer_scale_init_value", "layers", "ls_init_value", "mlp_layer", "mlp_ratio",
    "mlp_ratios", "no_embed_class", "norm_eps", "norm_layer", "num_classes", "num_features", "num_heads",
    "num_init_features", "out_indices", "output_stride", "patch_drop_rate", "patch_norm", "patch_size",
    "pool_include_prefix", "pool_type", "pos_drop_rate", "pos_embed", "pre_norm", "proj_drop_rate", "qk_norm",
    "qkv_bias", "qkv_fused", "ref_feat_shape", "reg_tokens", "rope_mixed_mode", "rope_temperature", "round_limit",
    "scale_attn_inner_norm", "scale_mlp", "scale_mlp_norm", "stem_chs", "stem_size", "stem_type", "stem_width",
    "strict_img_size", "swiglu_mlp", "use_abs_pos_emb", "use_fc_norm", "use_grn", "use_pos_embed", "use_post_norm",
    "use_rope", "use_rot_pos_emb", "weight_init", "width", "widths", "window_size", "zero_init_last",
})  # fmt: skip


class EnsembleConfig(PreTrainedConfig):
    """Configuration of an `EnsembleForImageClassification`.

    Args:
        members: for each member its `config` as a dict, the `name` of its run, and the `mean` and `std` (per channel,
            of pixels in [0, 1]) that its images are normalised with.
        mean: per channel, used by the ensemble's own image processor.
        std: likewise.
        kwargs: arguments of every configuration, such as `id2label` and `problem_type`.
    """

    model_type = "medical_ensemble"

    def __init__(
        self,
        members: Sequence[dict[str, Any]] = (),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        check_number_of_labels(kwargs)
        self.members = [dict(member) for member in members]
        self.mean, self.std = list(mean), list(std)
        super().__init__(**kwargs)


class EnsembleForImageClassification(PreTrainedModel):
    """Ensemble whose logits give, after softmax (or sigmoid), the mean of the members' probabilities.

    Source: Lakshminarayanan et al. 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
    https://arxiv.org/abs/1612.01474.
    """

    config_class = EnsembleConfig
    config: EnsembleConfig
    base_model_prefix = "members"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules: list[str] = []  # noqa: RUF012 - as transformers has it

    def __init__(self, config: EnsembleConfig) -> None:
        attention = config._attn_implementation  # that was asked for; None leaves it to the members
        config._attn_implementation = None
        super().__init__(config)
        config._attn_implementation = attention or config._attn_implementation
        members: list[Any] = [build_member(member["config"], attention) for member in config.members]
        if other := {member.config.num_labels for member in members} - {config.num_labels}:
            raise ValueError(
                f"expected {config.num_labels} labels, as in the configuration, but members have {sorted(other)}. "
                "An ensemble can't change its labels: train members for them."
            )
        self.members = nn.ModuleList(members)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Return logits (B, K) of images (B, 3, H, W), and with labels the loss, like stock classifiers.

        Args:
            pixel_values: output of the ensemble's image processor; renormalised for each member.
            labels: (B,) class indices, or (B, K) for multilabel classification.
            return_dict: False returns a tuple; None is the configuration's setting.
            output_hidden_states: also return the hidden states of the members, one after the other; None as above.
            kwargs: arguments of the loss, such as `num_items_in_batch`; others that stock models take are ignored.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        more = {"return_dict": True} | ({"output_hidden_states": True} if wanted else {})
        pairs = zip(self.members, self.config.members, strict=True)
        outputs = [model(self._renormalise(pixel_values, member), **more) for model, member in pairs]
        logits = torch.stack([output.logits.float() for output in outputs])
        if self.config.problem_type == "multi_label_classification":
            logits = log_mean_exp(logsigmoid(logits)) - log_mean_exp(logsigmoid(-logits))
        else:
            logits = log_mean_exp(log_softmax(logits, dim=-1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        hidden_states = tuple(x for output in outputs for x in output.hidden_states) if wanted else None
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        keep_names = self.config.return_dict if return_dict is None else return_dict
        return output if keep_names else output.to_tuple()

    def _renormalise(self, pixel_values: torch.Tensor, member: dict[str, Any]) -> torch.Tensor:
        if (member["mean"], member["std"]) == (self.config.mean, self.config.std):
            return pixel_values
        target, source = (
            [pixel_values.new_tensor(values).view(3, 1, 1) for values in pair]
            for pair in ((member["mean"], member["std"]), (self.config.mean, self.config.std))
        )
        return (pixel_values * source[1] + source[0] - target[0]) / target[1]


def build_member(settings: dict[str, Any], attention: str | None = None) -> PreTrainedModel:
    """Build a model with random weights from the dict of its configuration; nothing is downloaded.

    Its precision is torch's default, which `from_pretrained` sets to that of the ensemble.

    Args:
        settings: dict of the configuration.
        attention: implementation of attention; None for the model's own choice.
    """
    check_member(settings)
    if settings["model_type"] == MedicalCnnConfig.model_type:
        return MedicalCnnForImageClassification(MedicalCnnConfig.from_dict(settings))
    if settings["model_type"] == EncoderConfig.model_type:
        return EncoderForImageClassification(EncoderConfig.from_dict(settings))
    config: Any = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    given = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForImageClassification.from_config(config, dtype=torch.get_default_dtype(), **given)


def check_member(settings: dict[str, Any]) -> None:
    """Raise ValueError if a member's configuration names no known model, or asks timm for more than an architecture."""
    check_number_of_labels(settings)
    model_type = settings.get("model_type")
    if model_type not in {
        MedicalCnnConfig.model_type,
        EncoderConfig.model_type,
        *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }:
        raise ValueError(f"members must be image classifiers, found the model type {model_type!r}.")
    if unknown := sorted(set(settings.get("model_args") or {}) - TIMM_ARGUMENTS):
        raise ValueError(f"model_args of a member may give sizes and rates only, found {', '.join(unknown)}.")
    if "/" in str(settings.get("attn_implementation") or settings.get("_attn_implementation")):
        raise ValueError("attn_implementation of a member must not be a kernel on the Hub.")
    if not re.fullmatch(r"[\w.\-]+", str(settings.get("architecture") or "timm")):
        raise ValueError(f"the architecture of a member must be a name in timm, found {settings['architecture']!r}.")


def log_mean_exp(logs: torch.Tensor) -> torch.Tensor:
    """Return the logarithm (B, K) of the mean over members of exp(logs), with logs (members, B, K)."""
    return logs.logsumexp(dim=0) - math.log(len(logs))
