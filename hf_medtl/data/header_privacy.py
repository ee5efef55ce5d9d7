"""Errors of DICOM and NIfTI readers without text from the header, which may name a patient."""

import functools
from collections.abc import Callable
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar

from hf_medtl.errors import UnreadableImage

P = ParamSpec("P")
T = TypeVar("T")


def without_header_text(
    file: str, content: str
) -> Callable[[Callable[Concatenate[BinaryIO, str, P], T]], Callable[Concatenate[BinaryIO, str, P], T]]:
    """Decorate a function of a stream and its file name, converting exceptions to UnreadableImage.

    Messages of other exceptions are dropped, because libraries quote values of the header in them.

    Args:
        file: Kind of the file, for the message.
        content: What to export again, for the message.
    """

    def decorate(function: Callable[Concatenate[BinaryIO, str, P], T]) -> Callable[Concatenate[BinaryIO, str, P], T]:
        @functools.wraps(function)
        def wrapped(stream: BinaryIO, name: str, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(stream, name, *args, **kwargs)
            except UnreadableImage as error:
                reason = str(error)
            except Exception as error:
                reason = f"{name}: the {file} can't be decoded ({type(error).__name__}). Export the {content} again."
            raise UnreadableImage(reason)  # outside `except`: no context whose text could be printed

        return wrapped

    return decorate
