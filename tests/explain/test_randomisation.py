"""Cascading randomisation: nothing that was learned is left."""

import pytest
import torch
from torch import nn

from hf_medtl.explain.randomisation import _draw, _randomise
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification


def test_everything_learned_is_drawn_anew():
    model = MedicalCnnForImageClassification(MedicalCnnConfig(widths=[8, 16], num_labels=1))
    learned = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if b.is_floating_point()}}
    with torch.no_grad():
        for values in learned.values():
            values.copy_(torch.rand(values.shape) + 3)
    before = {name: values.clone() for name, values in learned.items()}
    number = sum(_randomise(module, torch.Generator().manual_seed(0)) for module in model.modules())
    assert number == model.num_parameters()
    for name, values in learned.items():  # a bias of a single value, too
        assert (values != before[name]).all(), name
        if values.numel() > 30:
            assert float(values.detach().mean()) == pytest.approx(3.5, abs=0.3)
    assert all((b > 0).all() for n, b in model.named_buffers() if n.endswith("running_var"))


def test_buffers_that_are_not_learned_stay():
    module = nn.BatchNorm2d(4, affine=False)
    module.register_buffer("positions", torch.ones(4))
    module.running_mean.fill_(3.14)
    assert _draw is _randomise
    _draw(module, torch.Generator().manual_seed(0))
    assert (module.positions == 1).all()
    assert (module.running_mean != 3.14).all()
    assert module.num_batches_tracked == 0
