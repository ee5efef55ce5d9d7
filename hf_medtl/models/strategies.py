"""Fine-tuning strategies: frozen layers by epoch, layer-wise learning rates and LoRA, for any image model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_medtl.common.extras import require
from hf_medtl.errors import MedtlError
from hf_medtl.models.heads import find_head, is_segmenter

FITTED = ("linear_probe", "knn")
STRATEGIES = ("full", "feature_extraction", "last_n", "progressive", "differential", "lp_ft", "lora", *FITTED)


@dataclass(frozen=True)
class Strategy:
    """Fine-tuning strategy: the trainable parameters of each epoch, a function of the epoch alone (resuming is exact).

    Args:
        name: one of STRATEGIES, in this order: everything; the head alone; the head and the last blocks; more and more
            blocks; everything, with a learning rate that decays from block to block towards the input (as in BEiT,
            https://arxiv.org/abs/2106.08254); the head alone and then everything (Kumar et al. 2022,
            https://arxiv.org/abs/2202.10054); the head and low-rank adapters of the linear layers (Hu et al. 2021,
            https://arxiv.org/abs/2106.09685); and without training steps, on features that are computed once, logistic
            regression as the head, or k nearest neighbours, which only measure the encoder.
        epochs: number of training epochs.
        unfreeze_blocks: number of trained blocks, for last_n.
        unfreeze_schedule: epoch:blocks pairs such as 2:1,4:3,6:all, for progressive; "" adds blocks evenly from epoch 1
            until all train at half of the epochs. Epochs count from 0.
        layer_decay: learning-rate factor from a block to the one before it, for differential.
        probe_epochs: epochs that train the head alone, for lp_ft.
        lora_rank: rank of the adapters, for lora.
        lora_alpha: the output of the adapters is multiplied by alpha / rank.

    Raises:
        MedtlError: an unknown name, or an invalid value.
    """

    name: str = "full"
    epochs: int = 10
    unfreeze_blocks: int = 1
    unfreeze_schedule: str = ""
    layer_decay: float = 0.75
    probe_epochs: int = 3
    lora_rank: int = 8
    lora_alpha: int = 16

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise MedtlError(f"--strategy must be one of {', '.join(STRATEGIES)}, found {self.name!r}.")
        if self.name == "last_n" and self.unfreeze_blocks < 1:
            raise MedtlError(
                f"--unfreeze_blocks must be 1 or more, found {self.unfreeze_blocks}. For none: feature_extraction."
            )
        if not 0 < self.layer_decay <= 1:
            raise MedtlError(
                f"--layer_decay must be above 0 and at most 1 (0.65 to 0.9 is usual), found {self.layer_decay}."
            )
        if self.name == "lp_ft" and not 0 < self.probe_epochs < self.epochs:
            raise MedtlError(
                f"--probe_epochs must be 1 or more and less than the {self.epochs} of --num_train_epochs, found "
                f"{self.probe_epochs}: fine-tuning comes after them."
            )
        if self.lora_rank < 1 or self.lora_alpha < 1:
            raise MedtlError(
                f"--lora_rank and --lora_alpha must be 1 or more, found {self.lora_rank} and {self.lora_alpha}."
            )
        self.unfreeze_steps(1)  # raises for an invalid schedule

    @property
    def by_blocks(self) -> bool:
        """True if the strategy treats blocks of the model differently."""
        return self.name in ("last_n", "progressive", "differential")

    @property
    def is_fitted(self) -> bool:
        """True if a classifier is fitted on features of the frozen body, without training steps."""
        return self.name in FITTED

    @property
    def staged(self) -> bool:
        """True if the set of trainable parameters changes during training."""
        return self.name in ("progressive", "lp_ft")

    def head_only(self, epoch: int) -> bool:
        """Return True if only the head trains in this epoch."""
        frozen = self.name == "feature_extraction" or self.is_fitted
        return frozen or (self.name == "lp_ft" and epoch < self.probe_epochs)

    def unfreeze_steps(self, blocks: int) -> dict[int, int]:
        """Return epoch -> number of blocks that train from it on, of a model with `blocks`; blocks + 1 is everything.

        Raises:
            MedtlError: the schedule can't be parsed, does not increase, or is longer than the training.
        """
        if self.name != "progressive":
            return {}
        if not self.unfreeze_schedule:
            half = math.ceil(self.epochs / 2)
            if half < 2:
                raise MedtlError(f"Progressive unfreezing needs 3 epochs or more, found {self.epochs}.")
            return {epoch: math.ceil((blocks + 1) * epoch / half) for epoch in range(1, half + 1)}
        try:
            pairs = [part.split(":") for part in self.unfreeze_schedule.split(",")]
            schedule = [(int(epoch), None if number.strip() == "all" else int(number)) for epoch, number in pairs]
        except ValueError as error:
            raise MedtlError(
                f"--unfreeze_schedule must be comma-separated epoch:blocks, such as 2:1,4:3,6:all, found "
                f"{self.unfreeze_schedule!r}."
            ) from error
        epochs = [epoch for epoch, _ in schedule]
        numbers = [math.inf if number is None else number for _, number in schedule]
        if epochs != sorted({*epochs}) or numbers != sorted({*numbers}) or epochs[0] < 0 or numbers[0] < 1:
            raise MedtlError(
                f"--unfreeze_schedule must increase in epochs and blocks, found {self.unfreeze_schedule!r}."
            )
        if epochs[-1] >= self.epochs:
            raise MedtlError(
                f"--unfreeze_schedule {self.unfreeze_schedule} reaches epoch {epochs[-1]}, but training ends with "
                f"epoch {self.epochs - 1} (epochs count from 0). Shorten it, or increase --num_train_epochs."
            )
        return {epoch: blocks + 1 if number is None else number for epoch, number in schedule}

    def trainable_blocks(self, epoch: int, blocks: int) -> int:
        """Return the number of trainable blocks, counted from the head: 0 = the head alone, blocks + 1 = everything."""
        if self.head_only(epoch) or self.name == "lora":
            return 0
        if self.name == "last_n":
            return self.unfreeze_blocks
        if self.name == "progressive":
            return max((number for start, number in self.unfreeze_steps(blocks).items() if start <= epoch), default=0)
        return blocks + 1

    def check(self, model: PreTrainedModel) -> None:
        """Check that this strategy can train the model.

        Raises:
            MedtlError: too few blocks, no ordered blocks, a head without bias, too few linear layers for LoRA, or peft
                is not installed.
        """
        if self.by_blocks:
            blocks = count_blocks(parameter_depths(model))
            # With -1 blocks, "all" becomes 0.
            most = max([self.unfreeze_blocks if self.name == "last_n" else 0, *self.unfreeze_steps(-1).values()])
            if most > blocks:
                raise MedtlError(
                    f"{type(model).__name__} has {blocks} blocks, so {most} can't be unfrozen. Use at most {blocks}, "
                    "or --strategy full."
                )
        if self.name == "linear_probe" and find_head(model).bias is None:
            raise MedtlError(
                f"The head of {type(model).__name__} has no bias, so logistic regression can't be saved in it. Use "
                "--strategy feature_extraction."
            )
        if self.name == "lora":
            require("peft", "lora", "--strategy lora")
            _linear_layers(model)


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """Return parameter name -> depth: 0 before the first block, 1..n in the blocks, n + 1 after them and in the head.

    A block is a layer of a transformer, a stage of a convolutional network, or the layers between two poolings of a
    VGG. timm models define them; elsewhere the blocks are the list of modules with the most parameters.

    Raises:
        MedtlError: the model has no list of blocks.
    """
    timm = getattr(model, "timm_model", None)
    pooled = next((m for m in model.named_modules() if _pools(m[1]) > 1), None)
    if timm is not None and hasattr(timm, "group_matcher") and pooled is None:
        from timm.models import group_parameters

        groups = group_parameters(timm, timm.group_matcher(coarse=True), reverse=True)
        return {f"timm_model.{name}": depth for name, depth in groups.items()}
    head = {id(p) for p in find_head(model).parameters()}
    name, blocks = pooled or max(
        (
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList | nn.Sequential)
            and sum(1 for child in module if any(True for _ in child.parameters())) > 1
            and not any(id(p) in head for p in module.parameters())
        ),
        # Of equals the first one, which is the outermost.
        key=lambda pair: sum(p.numel() for p in pair[1].parameters()),
        default=("", None),
    )
    if blocks is None:
        raise MedtlError(
            f"{type(model).__name__} has no list of blocks, so its depth is unknown. Use --strategy full, "
            "feature_extraction, lp_ft or lora."
        )
    block_depths, depth = {}, 1
    for i, child in enumerate(blocks):
        for parameter, _ in child.named_parameters(prefix=f"{name}.{i}"):
            block_depths[parameter] = depth
        filled = bool(block_depths) and depth == max(block_depths.values())
        if filled and (not pooled or _is_pool(child)):
            depth += 1
    last, depths, seen = max(block_depths.values()), {}, False
    for parameter, _ in model.named_parameters():
        seen |= parameter in block_depths
        depths[parameter] = block_depths.get(parameter, last + 1 if seen else 0)
    return depths


def _is_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d | nn.AvgPool2d)


def _pools(module: nn.Module) -> int:
    return sum(map(_is_pool, module)) if isinstance(module, nn.Sequential) else 0


def count_blocks(depths: dict[str, int]) -> int:
    """Return the number of blocks in the result of `parameter_depths`."""
    return max(depths.values()) - 1


def head_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the head's parameters; for a segmentation network, of everything but its encoder.

    Raises:
        MedtlError: a classifier without a linear head, or a segmentation network without a separate encoder.
    """
    if is_segmenter(model):
        encoder = f"{model.base_model_prefix}."
        outside = {name for name, _ in model.named_parameters() if not name.startswith(encoder)}
        if len(outside) == len(dict(model.named_parameters())):
            raise MedtlError(
                f"{type(model).__name__} has no separate encoder to train differently. Use --strategy full without "
                "--head_learning_rate."
            )
        return outside
    head = {id(p) for p in find_head(model).parameters()}
    return {name for name, p in model.named_parameters() if id(p) in head}


def set_trainable(model: PreTrainedModel, number: int, depths: dict[str, int] | None) -> None:
    """Set `requires_grad` for the head and the last `number` blocks (and layers after them), and for nothing else.

    Args:
        model: changed in place.
        number: 0 = the head alone, number of blocks + 1 = everything.
        depths: result of `parameter_depths`; not needed for none or all.
    """
    head = head_names(model)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # used in pretraining only; DDP would wait for its gradient and fail
            parameter.requires_grad = False
        elif name in head or depths is None:
            parameter.requires_grad = name in head or number > 0
        else:
            blocks = count_blocks(depths)
            parameter.requires_grad = number > blocks or (number > 0 and depths[name] > blocks - number)


def eval_frozen_modules(model: nn.Module) -> None:
    """Set fully frozen modules to eval mode: batch norm keeps its statistics, dropout is off.

    Modules without parameters keep the mode of their parent, so dropout just before the head stays active.
    """
    parameters = list(model.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        model.eval()
        return
    for child in model.children():
        eval_frozen_modules(child)


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the body's linear layers.

    Raises:
        MedtlError: they hold less than half of the weights, as in convolutional networks.
    """
    head = find_head(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    fraction = sum(m.weight.numel() for m in layers.values()) / model.num_parameters()
    if fraction < 0.5:
        raise MedtlError(
            f"LoRA adapts linear layers, which hold {100 * fraction:.0f} % of the weights of this "
            f"{type(model).__name__}. Use a transformer, or another --strategy, such as last_n."
        )
    return [*layers]


def add_lora(model: PreTrainedModel, rank: int, alpha: int) -> Any:
    """Add low-rank adapters to `model`, in place, and freeze everything but them and the head.

    Returns:
        peft's LoraModel around `model`; `remove_lora` removes the adapters.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_linear_layers(model), bias="none")
    head = head_names(model)
    lora = LoraModel(model, {"default": config}, "default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name or name in head
    return lora


def remove_lora(lora: Any, merge: bool) -> PreTrainedModel:
    """Remove the adapters in place and return the model; `merge` adds their product to the weights."""
    return lora.merge_and_unload() if merge else lora.unload()


def describe_trainable(model: nn.Module, groups: list[dict[str, Any]]) -> Iterator[str]:
    """Yield lines for the log: number of trainable parameters, by optimizer group with its peak learning rate.

    Args:
        model: with `requires_grad` set.
        groups: parameter groups of the optimizer, with `name` and `peak`.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    yield f"{trained:,} of {total:,} parameters train ({100 * trained / total:.1f} %)"
    rates: dict[tuple[str, float], int] = {}
    for group in groups:
        number = sum(p.numel() for p in group["params"] if p.requires_grad)
        if number:
            key = (group["name"], group["peak"])
            rates[key] = rates.get(key, 0) + number
    for (name, rate), number in rates.items():
        yield f"  {name}: {number:,} at a peak learning rate of {rate:g}"
