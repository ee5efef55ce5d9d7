"""A frozen body is computed once: the head is trained on its features, inside the full model."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_medtl.data.cache import Pictures
from hf_medtl.models.heads import find_head
from hf_medtl.models.strategies import rest_frozen
from hf_medtl.training.distributed import keep_workers

logger = logging.getLogger("hf_medtl")


class FeatureSet(Dataset):
    """A split that gives features instead of pictures while `in_use`: `features` (d,) float32 and `labels`.

    In epoch e a picture's features are those of view e modulo the number of views, and view v is augmented as epoch v
    would augment it: with as many views as epochs nothing differs from training on pictures.
    """

    def __init__(self, pictures: Pictures, views: int) -> None:
        self.pictures, self.views = pictures, views if pictures.augment is not None else 1
        self.values: torch.Tensor | None = None  # (views, n, d)
        self.in_use = torch.zeros((), dtype=torch.bool).share_memory_()  # workers see it change

    @property
    def epoch(self) -> torch.Tensor:
        """That of the pictures."""
        return self.pictures.epoch

    @property
    def labels(self) -> list[int]:
        """(n,) class indices."""
        return self.pictures.labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.values is None or not self.in_use:
            return self.pictures[index]
        return {"features": self.values[int(self.epoch) % self.views, index], "labels": self.labels[index]}


@torch.no_grad()
def compute(
    data: FeatureSet,
    model: PreTrainedModel,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    batch_size: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Fill `data.values` with the head's inputs, each process its share of the pictures.

    Args:
        data: whose views are computed.
        model: on its device; its body is run in evaluation mode.
        prepare: batch of the data loader -> the model's inputs on its device.
        batch_size, workers: of the data loader.
        rank, world: of this process and all.
    """
    head, epoch = find_head(model), int(data.epoch)
    mine = list(range(rank, len(data), world))
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0].float()))
    model.eval()
    values = torch.zeros(data.views, len(data), head.in_features, device=model.device)
    try:
        for view in range(data.views):
            data.epoch.fill_(view)
            seen.clear()
            subset = torch.utils.data.Subset(data.pictures, mine)
            for batch in keep_workers(DataLoader(subset, batch_size, num_workers=workers)):
                model(pixel_values=prepare(batch)["pixel_values"])
            if mine:
                values[view, mine] = torch.cat(seen)
    finally:
        hook.remove()
        data.epoch.fill_(epoch)
    if world > 1:  # each process has zeros where the others computed
        torch.distributed.all_reduce(values)
    data.values = values.cpu().share_memory_()


def add_features_input(model: PreTrainedModel, dropout: float) -> Callable[[], None]:
    """Let `model` take `features` (B, d) for `pixel_values`: dropout and head alone then give the logits.

    A method of this one object, so that DDP, checkpoints, and a later stage on pictures work as always.

    Returns:
        What takes it away again.
    """
    head, usual = find_head(model), model.forward

    def forward(*args: Any, features: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if features is None:
            return usual(*args, **kwargs)
        return ImageClassifierOutput(logits=head(nn.functional.dropout(features, dropout, model.training)))

    def undo() -> None:
        model.forward = usual
        if getattr(usual, "__func__", None) is type(model).forward:
            del model.forward  # the class has it

    model.forward = forward
    return undo


@torch.no_grad()
def dropout_before_head(model: PreTrainedModel, pixels: torch.Tensor) -> float | None:
    """Rate of the dropout between frozen body and head; None if features can't stand for pictures.

    They can if the head takes (B, d) and gives the logits as they are, and if nothing is random in training but at most
    one dropout just before the head.

    Args:
        model: with its body frozen (`requires_grad`).
        pixels: (B, 3, H, W) normalised.
    """
    seen: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append(args[0])
        given.append(output.float())  # of mixed precision, too

    hook = find_head(model).register_forward_hook(note)
    try:
        logits = model.eval()(pixel_values=pixels).logits
        rest_frozen(model.train())
        with _Dropouts() as dropouts:
            model(pixel_values=pixels)
    finally:
        hook.remove()
        model.eval()
    if len(seen) != 2 or seen[0].ndim != 2 or not torch.equal(given[0], logits.float()):
        return None
    if not dropouts.found:
        return 0.0 if torch.allclose(seen[0], seen[1], atol=1e-5) else None
    (rate, output), *others = dropouts.found
    return rate if not others and output is seen[1] else None


class _Dropouts(TorchFunctionMode):
    """Notes each call of dropout that does something: its rate and its output."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.dropout:
            bound = inspect.signature(func).bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            if bound.arguments["training"] and bound.arguments["p"] > 0:
                self.found.append((bound.arguments["p"], result))
        return result
