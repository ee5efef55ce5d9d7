"""Device that a model runs on: the accelerator that torch finds, or the one that was asked for."""

import torch

from hf_medtl.errors import MedtlError


def select_device(device: str | torch.device | None = None) -> torch.device:
    """Return a device that works here.

    Args:
        device: "cuda", "cuda:1", "mps", "cpu", ...; None for the accelerator, or the CPU if there is none.

    Raises:
        MedtlError: torch does not know the device, or this machine has none.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        names = "cpu" if accelerator is None else f"{accelerator.type} or cpu"
        raise MedtlError(
            f"The device {str(device)!r} can't be used on this machine ({str(error).splitlines()[0].rstrip('.')}). "
            f"Give {names}, or leave it out."
        ) from error
    return chosen


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout of images (n, C, H, W) in memory with which convolutions, which follow their input, are fast.

    Channels last, but on MPS, where gradients of batch norm fail with it. Remove the exception when all supported
    versions of torch contain https://github.com/pytorch/pytorch/pull/188371.

    Args:
        device: of the model.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last
