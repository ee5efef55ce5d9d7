"""Errors as a notebook shows them."""

from hf_medtl.errors import Interrupted, MedtlError, UnreadableImage


def test_notebooks_show_the_message_alone():
    for error in (MedtlError("Do this."), UnreadableImage("Do this."), Interrupted("Do this.", 2)):
        # IPython calls this method instead of formatting the traceback.
        assert error._render_traceback_() == [f"{type(error).__name__}: Do this."]
