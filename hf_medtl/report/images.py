"""Images of a report: small JPEGs re-encoded from pixels, so that no metadata of the original file is copied."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image
from hf_medtl.report.blocks import Gallery, GalleryImage

THUMBNAIL_SIDE, OUTLINED_SIDE = 200, 420  # pixels of the longer side
PER_GALLERY = 6  # images
TRUE, PREDICTED = (86, 180, 233), (240, 120, 20)  # colours of outlines, bright enough for a dark image
REENCODED = "Images are re-encoded from their pixels, small and without metadata."


def gallery(
    loaded: LoadedDataset, title: str, examples: Sequence[tuple[str, str, bool]], note: str = ""
) -> list[Gallery]:
    """Return a gallery of thumbnails with their image ids, or nothing if there are no examples.

    Args:
        loaded: the data set.
        title: of the gallery.
        examples: image id, caption and whether the decision is correct.
        note: prefixed to the caption of the gallery.
    """
    paths = loaded.table.drop_duplicates("image_id").set_index("image_id")["path"]
    images = []
    for image_id, caption, correct in examples:
        image = read_image(loaded.root / paths[image_id])
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        kind = "correct" if correct else "wrong"
        images.append(GalleryImage(to_jpeg(image), f"{caption}\n{image_id}", f"{image_id}: {caption}", kind))
    return [Gallery(title, images, f"{note} {REENCODED}".strip())] if images else []


def draw_outlines(image: Image.Image, masks: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """Draw the outlines of the true and the predicted mask, (H, W) class indices, on an image of the same size."""
    scale = min(1.0, OUTLINED_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = np.asarray(image.resize(size, Image.Resampling.LANCZOS).convert("RGB")).copy()
    for mask, colour in zip(masks, (TRUE, PREDICTED), strict=True):
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for value in np.unique(small[small > 0]):
            inside = small == value
            edge = binary_dilation(inside & ~binary_erosion(inside)) & inside  # two pixels wide
            canvas[edge] = colour
    return Image.fromarray(canvas)


def to_jpeg(image: Image.Image) -> bytes:
    """Encode the pixels of an RGB image, without metadata."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return stream.getvalue()
