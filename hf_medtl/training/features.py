"""Feature caching: the head of a frozen body is trained on features that are computed once."""

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from hf_medtl.common.progress import track
from hf_medtl.data.prepared import PreparedImages
from hf_medtl.errors import MedtlError
from hf_medtl.models.heads import find_head
from hf_medtl.models.strategies import eval_frozen_modules
from hf_medtl.training.distributed import keep_workers

logger = logging.getLogger("hf_medtl")


class FeatureSet(Dataset):
    """Split with `features` (d,) float32 and `labels` instead of images while `in_use`.

    Epoch e uses view e modulo the number of views, and view v is augmented as epoch v would be: with as many views as
    epochs, training is the same as on images.
    """

    def __init__(self, images: PreparedImages, views: int) -> None:
        self.images, self.views = images, views if images.augment is not None else 1
        self.values: torch.Tensor | None = None  # (views, n, d)
        self.in_use = torch.zeros((), dtype=torch.bool).share_memory_()  # shared, so that workers see changes

    @property
    def epoch(self) -> torch.Tensor:
        """Epoch of the images."""
        return self.images.epoch

    @property
    def labels(self) -> list[int]:
        """Class index of each image."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.values is None or not self.in_use:
            return self.images[index]
        return {"features": self.values[int(self.epoch) % self.views, index], "labels": self.labels[index]}


@torch.no_grad()
def compute_features(
    data: FeatureSet,
    model: PreTrainedModel,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    args: TrainingArguments,
    stage: str = "Computing features",
) -> None:
    """Fill `data.values` with the inputs of the head; each process computes its shard of the images.

    Args:
        data: dataset whose views are computed.
        model: model on its device; its body is run in eval mode.
        prepare: turns a batch of the data loader into the model's inputs on its device.
        args: batch size of evaluation, number of data loader workers, and the processes.
        stage: what is shown as long as it takes.
    """
    head, epoch = find_head(model), int(data.epoch)
    shard = list(range(args.process_index, len(data), args.world_size))
    size, workers = args.per_device_eval_batch_size, args.dataloader_num_workers
    inputs: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].float()))
    model.eval()
    values = torch.zeros(data.views, len(data), head.in_features, device=model.device)

    def batches() -> Iterator[dict[str, Any]]:
        for view in range(data.views):
            data.epoch.fill_(view)
            subset = torch.utils.data.Subset(data.images, shard)
            yield from keep_workers(DataLoader(subset, size, num_workers=workers))

    try:
        number = data.views * math.ceil(len(shard) / size)
        for batch in track(batches(), f"{stage} of {len(data)} images", number, "batch"):
            model(pixel_values=prepare(batch)["pixel_values"])
        if shard:
            values[:, shard] = torch.cat(inputs).unflatten(0, (data.views, len(shard)))
    finally:
        hook.remove()
        data.epoch.fill_(epoch)
    if args.world_size > 1:  # each process has zeros in the shards of the others
        torch.distributed.all_reduce(values)
    data.values = values.cpu().share_memory_()


def add_features_input(model: PreTrainedModel, dropout: float) -> Callable[[], None]:
    """Let `model` take `features` (B, d) instead of `pixel_values`: only dropout and head compute the logits.

    Only `forward` of this object changes, so DDP, checkpoints and a later stage on images work as usual.

    Returns:
        Function that undoes the change.
    """
    head, original = find_head(model), model.forward

    def forward(*args: Any, features: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if features is None:
            return original(*args, **kwargs)
        return ImageClassifierOutput(logits=head(nn.functional.dropout(features, dropout, model.training)))

    def undo() -> None:
        model.forward = original
        if getattr(original, "__func__", None) is type(model).forward:
            del model.forward  # the class has it

    model.forward = forward
    return undo


@torch.no_grad()
def check_pooled(model: PreTrainedModel, pixels: torch.Tensor) -> None:
    """Check that the head takes one vector per image, and that its output is the logits.

    Args:
        model: model on its device; it is in eval mode afterwards.
        pixels: (B, 3, H, W) normalized images.

    Raises:
        MedtlError: It does not, so a head that is fitted on its inputs would not be the model's.
    """
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = find_head(model).register_forward_hook(lambda module, args, output: calls.append((args[0], output)))
    try:
        logits = model.eval()(pixel_values=pixels).logits
    finally:
        hook.remove()
    if len(calls) != 1 or calls[0][0].ndim != 2 or not torch.equal(calls[0][1], logits):
        raise MedtlError(
            f"The logits of {type(model).__name__} do not come from one linear layer on one vector per image, so no "
            "classifier can be fitted on such vectors. Use --strategy feature_extraction."
        )


@torch.no_grad()
def dropout_before_head(model: PreTrainedModel, pixels: torch.Tensor) -> float | None:
    """Return the rate of the dropout between frozen body and head; None if features cannot replace images.

    They can if the head takes (B, d) and its output is the logits, and if nothing is random in training except for at
    most one dropout just before the head.

    Args:
        model: model whose body is frozen (`requires_grad`).
        pixels: (B, 3, H, W) normalized images.
    """
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output.float())  # also with mixed precision

    hook = find_head(model).register_forward_hook(record)
    try:
        logits = model.eval()(pixel_values=pixels).logits
        eval_frozen_modules(model.train())
        with _Dropouts() as dropouts:
            model(pixel_values=pixels)
    finally:
        hook.remove()
        model.eval()
    if len(inputs) != 2 or inputs[0].ndim != 2 or not torch.equal(outputs[0], logits.float()):
        return None
    if not dropouts.calls:
        return 0.0 if torch.allclose(inputs[0], inputs[1], atol=1e-5) else None
    (rate, output), *others = dropouts.calls
    return rate if not others and output is inputs[1] else None


class _Dropouts(TorchFunctionMode):
    """Record the rate and the output of each active dropout call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.dropout:
            bound = inspect.signature(func).bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            if bound.arguments["training"] and bound.arguments["p"] > 0:
                self.calls.append((bound.arguments["p"], result))
        return result
