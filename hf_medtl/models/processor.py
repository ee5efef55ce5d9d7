"""Image processor with medical steps. This file is copied beside the weights, so it imports nothing of hf_medtl."""

import copy
import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature, get_size_dict
from transformers.image_transforms import center_crop
from transformers.image_utils import SizeDict, make_flat_list_of_images

STEPS = ("brain_crop", "lung_crop", "grayscale", "blur", "clahe")  # in the order of application
FITS = ("squash", "pad")
SIZES = ("size", "crop_size", "pad_size")
# What a call can set for itself, and what stock processors take, too, and has no meaning here.
OVERRIDES = {
    *(*SIZES, "do_resize", "resample", "do_center_crop", "do_rescale", "rescale_factor", "do_normalize", "image_mean"),
    *("image_std", "do_pad", "fit", "crop_margin", "blur_sigma", "clahe_clip", "clahe_grid"),
}
IGNORED = {"do_convert_rgb", "default_to_square", "device", "disable_grouping", "image_seq_length"}
MAX_SIDE = 8_192  # pixels; anybody can publish settings, so sizes have limits
MAX_SETTING = 128  # pixels of sigma, tiles in a row, sides of a box
LUNG_MODEL = "lung_model"  # folder of the lung_crop model, beside preprocessor_config.json
OUTSIDE = -100.0  # logit of other classes than the first, the background, outside of a crop: a probability of 0
LUNG_FILES = ("config.json", "model*.safetensors*", "preprocessor_config.json", "*.py")
COUNTS_LOCK = threading.Lock()  # a lock inside the processor could not be copied with it


class MedicalImageProcessor(BaseImageProcessor):
    """Convert 8-bit RGB images to `pixel_values`, by a fixed order of operations; those in `steps` are optional.

    1. brain_crop: crop to the brain, see `brain_box`, or lung_crop: to the lungs found by a segmentation model; the
       whole image is kept where nothing is found
    2. grayscale: ITU-R 601 luma in all three channels
    3. resize with Pillow's anti-aliased filters; `fit` is "squash" (to `size`) or "pad" (aspect kept)
    4. blur: Gaussian
    5. clahe: contrast-limited adaptive histogram equalisation
    6. with "pad": black margins on both sides, up to `size`
    7. values × `rescale_factor`, then `image_mean` and `image_std`

    Blur and CLAHE come after resizing, so that a sigma and a tile mean the same in images of any resolution, and in
    this order, because CLAHE would amplify the noise. Up to step 6 all values are whole numbers of 0 to 255.

    Args:
        size: height and width in pixels, or one number for both.
        resample: Pillow's number of the interpolation; 3 is bicubic.
        image_mean: per channel, of rescaled values.
        image_std: likewise.
        do_normalize: subtract the mean and divide by the standard deviation.
        rescale_factor: 1/255 maps pixels to [0, 1].
        steps: some of STEPS, in any order.
        fit: one of FITS.
        crop_margin: margin around the brain or the lungs, as a fraction of the width and height of the box.
        blur_sigma: standard deviation of the blur in pixels of the resized image.
        clahe_clip: contrast limit, in OpenCV's unit.
        clahe_grid: tiles in a row and in a column.
        lung_model: folder of the segmentation model of lung_crop, see `Lungs`. `save_pretrained` copies it to
            LUNG_MODEL beside the settings, where `from_pretrained` finds it.
        kwargs: other keys that `from_pretrained` reads, and two of segmentation models: `return_crop_boxes`, to return
            the crop of each image, too, which the model passes on to `post_process_semantic_segmentation`; and `tile`,
            the side in pixels of tiles that the model cuts images into, which are then not resized; those smaller than
            a tile get black margins.

    Attributes:
        counts: number of "pictures" passed to the crop, and of those with "nothing" found, which stayed whole; by this
            object in this process, and never saved.

    Raises:
        ValueError: an unknown step or fit, a size without height or width, two crops, lung_crop without a model or with
            another than it was saved with.
    """

    # Of the class, so that they are saved only where they are set: folders saved before do not have them.
    do_resize: bool = True
    do_rescale: bool = True
    do_center_crop: bool | None = None
    crop_size: Any = None
    do_pad: bool | None = None
    pad_size: Any = None
    return_crop_boxes: bool = False
    tile: int | None = None

    def __init__(
        self,
        size: int | Sequence[int] | dict[str, int] | SizeDict | None = None,
        resample: int = 3,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        do_normalize: bool = True,
        rescale_factor: float = 1 / 255,
        steps: Sequence[str] = (),
        fit: str = "squash",
        crop_margin: float = 0.02,
        blur_sigma: float = 1.0,
        clahe_clip: float = 2.0,
        clahe_grid: int = 8,
        lung_model: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        saved_sha256 = kwargs.pop("lung_model_sha256", None)
        super().__init__(**kwargs)
        if not set(steps) <= set(STEPS) or fit not in FITS:
            raise ValueError(f"steps must be some of {STEPS} and fit one of {FITS}; found {steps!r} and {fit!r}.")
        if {"brain_crop", "lung_crop"} <= set(steps) or ("lung_crop" in steps) != (lung_model is not None):
            raise ValueError("steps can hold one crop only, and lung_model must be given with lung_crop and only then.")
        numbers = [*image_mean, *image_std, rescale_factor, crop_margin, blur_sigma, clahe_clip]
        if not {len(image_mean), len(image_std)} <= {1, 3} or not np.isfinite(numbers).all():
            raise ValueError(
                "image_mean and image_std must have one or three numbers, and all settings must be finite."
            )
        if max(abs(crop_margin), blur_sigma, clahe_grid) > MAX_SETTING or min(blur_sigma, clahe_grid - 1) < 0:
            raise ValueError(f"crop_margin, blur_sigma and clahe_grid must be positive and {MAX_SETTING} at most.")
        if self.tile is not None and not (isinstance(self.tile, int) and 1 <= self.tile <= MAX_SIDE):
            raise ValueError(f"tile must be a whole number of 1 to {MAX_SIDE}, found {self.tile!r}.")
        self.size: Any = _size({"height": 224, "width": 224} if size is None else size, "size")
        for name in ("crop_size", "pad_size"):
            if getattr(self, name) is not None:
                setattr(self, name, _size(getattr(self, name), name))
        self.resample = int(resample)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.do_normalize, self.rescale_factor = do_normalize, rescale_factor
        self.steps, self.fit = [step for step in STEPS if step in steps], fit
        self.crop_margin, self.blur_sigma = crop_margin, blur_sigma
        self.clahe_clip, self.clahe_grid = clahe_clip, clahe_grid
        self.counts: Counter[str] = Counter()
        self.lungs = None if lung_model is None else Lungs(Path(lung_model))
        if self.lungs and saved_sha256 not in (None, self.lungs.sha256):
            raise ValueError(f"{lung_model} is not the model that this processor was saved with. Download it again.")

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the saved settings and the path of the lung_crop model: in the same folder, or downloaded."""
        hub = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        given = {key: kwargs[key] for key in hub if kwargs.get(key) is not None}
        subfolder = kwargs.get("subfolder", "")
        settings, rest = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "lung_crop" in settings.get("steps", ()):
            pattern = f"{subfolder}/{LUNG_MODEL}/*".lstrip("/")
            folder = lung_model_folder(str(pretrained_model_name_or_path), [pattern], **given)
            settings["lung_model"] = folder / subfolder / LUNG_MODEL
        return settings, rest

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save settings and code, and the model of lung_crop, if any, in LUNG_MODEL."""
        if self.lungs:
            self.lungs.copy(Path(save_directory) / LUNG_MODEL)
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, without `counts` and with the checksum of the lung_crop model."""
        settings = {key: value for key, value in super().to_dict().items() if key not in ("counts", "lungs")}
        if self.lungs:
            settings["lung_model_sha256"] = self.lungs.sha256
        # TRAP: from `auto_map` alone pipeline() infers a video processor in this file as well, and asks on the terminal
        # whether to run its code. Seen in transformers 5.23; remove this when image pipelines load none.
        return {**settings, "video_processor_type": "none"}

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        data_format: str | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Convert one or more images to `pixel_values` (n, 3, height, width), float32.

        With `return_crop_boxes`, there are `crop_boxes` (n, 4), too: left, top, right, bottom in pixels of the image.

        Args:
            images: a Pillow image, a uint8 array (height, width[, channels]), a uint8 tensor (channels, height,
                width), a path or URL, or a list of these.
            return_tensors: "pt" or "np"; None returns a list of arrays.
            input_data_format: "channels_first" or "channels_last" of arrays and tensors; None finds out.
            data_format: "channels_last" for `pixel_values` (n, height, width, 3).
            overrides: settings for this call alone, as stock processors take them: those of this class, `do_resize`,
                `do_rescale`, `do_center_crop` with `crop_size`, and `do_pad` with `pad_size`. None is the own setting.
                Images always become RGB, on the CPU, so IGNORED changes nothing.

        Raises:
            ValueError: an image of more than 8 bits, which would turn white: apply a window first.
            TypeError: there is no such setting.
        """
        if unknown := overrides.keys() - OVERRIDES - IGNORED:
            raise TypeError(f"{type(self).__name__} has no settings {', '.join(sorted(unknown))} for a call.")
        settings = copy.copy(self)  # shares `counts` and `lungs`
        for name, value in overrides.items():
            if value is not None:
                setattr(settings, name, _size(value, name) if name in SIZES else value)
        flat: Any = make_flat_list_of_images(self.fetch_images(images))
        values: Any = []
        boxes = []
        for image in flat:
            rgb = to_rgb(image, input_data_format)
            boxes.append(settings.counted_crop(rgb))
            values.append(settings.values(settings.resized(rgb, boxes[-1])))
        if str(getattr(data_format, "value", data_format)) in ("channels_last", "ChannelDimension.LAST"):
            values = [image.transpose(1, 2, 0) for image in values]
        if return_tensors and len({image.shape for image in values}) == 1:
            values = np.stack(values) if len(values) > 1 else values[0][None]  # without a copy: it may be large
        crops = {"crop_boxes": np.array(boxes)} if self.return_crop_boxes else {}
        return BatchFeature({"pixel_values": values, **crops}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Return the most probable class of each pixel of each image, (height, width), as stock processors do.

        Args:
            outputs: of the model: logits (n, K, h, w), and `crop_boxes` (n, 4) if this processor returned some.
            target_sizes: (n,) height and width of the images; None for the masks of the model's input.
            return_segmentation_scores: return for each image a dict of these classes, "segmentation", and of the
                logits (K, height, width) they were decided by, "segmentation_scores".

        Raises:
            ValueError: not as many sizes as logits, or a crop that the model did not pass on.
        """
        logits = list(outputs.logits) if target_sizes is None else self._all_logits(outputs, target_sizes)
        masks = [scores.argmax(dim=0) for scores in logits]
        if not return_segmentation_scores:
            return masks
        pairs = zip(masks, logits, strict=True)
        return [BatchFeature({"segmentation": mask, "segmentation_scores": scores}) for mask, scores in pairs]

    def _all_logits(self, outputs: Any, target_sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Return `restore_logits` of each image."""
        boxes = getattr(outputs, "crop_boxes", None)
        if len(target_sizes) != len(outputs.logits) or (boxes is None and self.return_crop_boxes):
            raise ValueError(
                "Expected a size for each image, and crop_boxes of the model's input in its output. Pass both."
            )
        crops = [None] * len(target_sizes) if boxes is None else boxes.tolist()
        rows = zip(outputs.logits, target_sizes, crops, strict=True)
        return [self.restore_logits(*row) for row in rows]

    def restore_logits(
        self, logits: torch.Tensor, size: Sequence[int], crop: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Return the logits (K, height, width) of an image for those of the model's input (K, h, w).

        Margins are cut off, the rest is resized (bilinear), and all is of the first class, the background, outside of
        the crop.

        Args:
            logits: of one image; smaller ones than the input are resized first.
            size: height and width of the image.
            crop: left, top, right, bottom of the crop in it; None if there is none.
        """
        height, width = (int(side) for side in size)
        left, top, right, bottom = crop or (0, 0, width, height)
        a, b, c, d = self.inner(bottom - top, right - left)
        canvas = self.canvas(bottom - top, right - left)
        if (a, b, c, d) != (0, 0, *canvas[::-1]):
            logits = _resize_logits(logits, canvas)[..., b:d, a:c]
        logits = _resize_logits(logits, (bottom - top, right - left))
        if (left, top, right, bottom) == (0, 0, width, height):
            return logits
        whole = logits.new_full((len(logits), height, width), OUTSIDE)
        whole[0] = 0
        whole[..., top:bottom, left:right] = logits
        return whole

    def values(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the numbers (3, height, width) that a model gets for a prepared image (height, width, 3)."""
        values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        for wanted, name in ((self.do_center_crop, "crop_size"), (self.do_pad, "pad_size")):
            if wanted and getattr(self, name) is None:
                raise ValueError(f"{name} must be given with do_center_crop or do_pad.")
        if self.do_center_crop:
            size = self.crop_size.height, self.crop_size.width
            values = center_crop(values, size, input_data_format="channels_first")
        if self.do_rescale:
            values *= np.float32(self.rescale_factor)
        if self.do_normalize:
            mean, std = (
                np.broadcast_to(np.array(x, np.float32).ravel()[:3], 3).reshape(3, 1, 1)  # a fourth is that of alpha
                for x in (self.image_mean, self.image_std)
            )
            values -= mean
            values /= std
        if self.do_pad:
            height, width = (self.pad_size[side] - values.shape[i] for i, side in ((1, "height"), (2, "width")))
            if min(height, width) < 0:
                raise ValueError(
                    f"pad_size must be at least {values.shape[1]} × {values.shape[2]} pixels (height × width), the "
                    f"size of the image; found {self.pad_size.height} × {self.pad_size.width}."
                )
            values = np.pad(values, ((0, 0), (0, height), (0, width)))
        return values

    def prepare(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply everything but the normalisation: the image that the model sees, for display.

        Args:
            rgb: (any height, any width, 3).

        Returns:
            (height, width, 3) of `size`.
        """
        return self.resized(rgb, self.counted_crop(rgb))

    def counted_crop(self, rgb: NDArray[np.uint8]) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom of the crop of an image, or of all of it, and count it in `counts`."""
        box = self.crop(rgb)
        if self.lungs or "brain_crop" in self.steps:
            with COUNTS_LOCK:  # images are prepared by several threads
                self.counts.update({"pictures": 1, "nothing": int(box is None)})
        return box or (0, 0, rgb.shape[1], rgb.shape[0])

    def resized(self, rgb: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Apply everything between the crop, which is `box`, and the normalisation."""
        left, top, right, bottom = box
        image = Image.fromarray(rgb[top:bottom, left:right])
        if "grayscale" in self.steps:
            image = image.convert("L").convert("RGB")
        left, top, right, bottom = self.inner(image.height, image.width)
        rgb = np.asarray(image.resize((right - left, bottom - top), _resampling(self.resample)))
        if "blur" in self.steps:
            rgb = opencv().GaussianBlur(rgb, (0, 0), self.blur_sigma)
        if "clahe" in self.steps:
            rgb = clahe(rgb, self.clahe_clip, self.clahe_grid)
        shape = self.canvas(box[3] - box[1], box[2] - box[0])
        if self.tile and rgb.shape[:2] == shape:  # without a copy: it may be large
            return rgb
        canvas = np.zeros((*shape, 3), np.uint8)
        canvas[top:bottom, left:right] = rgb
        return canvas

    def crop(self, rgb: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
        """Return left, top, right, bottom of the crop of an image (height, width, 3); None where nothing is cropped."""
        if not self.lungs and "brain_crop" not in self.steps:
            return None
        box = self.lungs.box(rgb) if self.lungs else brain_box(rgb)
        if box is None:
            return None
        (height, width), (left, top, right, bottom) = rgb.shape[:2], box
        x, y = round((right - left) * self.crop_margin), round((bottom - top) * self.crop_margin)
        return max(0, left - x), max(0, top - y), min(width, right + x), min(height, bottom + y)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the model's input for a (cropped) image."""
        if self.tile:
            return max(height, self.tile), max(width, self.tile)
        return (self.size.height, self.size.width) if self.do_resize else (height, width)

    def inner(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom of the (cropped) image within the model's input; the margins are black."""
        all_rows, all_columns = rows, columns = self.canvas(height, width)
        if self.tile:
            rows, columns = height, width
        elif self.fit == "pad" and self.do_resize:
            scale = min(rows / height, columns / width)
            rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (all_rows - rows) // 2, (all_columns - columns) // 2
        return left, top, left + columns, top + rows

    def geometry(self, image: Any) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Return two boxes: the crop of `image`, and its position in the model's input of `size`.

        Both are left, top, right, bottom in pixels. The image is neither prepared nor counted.

        Args:
            image: as for `preprocess`.
        """
        rgb = to_rgb(image)
        height, width = rgb.shape[:2]
        left, top, right, bottom = self.crop(rgb) or (0, 0, width, height)
        return (left, top, right, bottom), self.inner(bottom - top, right - left)


class Lungs:
    """Segmentation model that finds the lungs on a radiograph, on the CPU.

    Classes whose name contains "lung" are lungs, or all but class 0 where none does.

    Args:
        folder: a semantic segmentation model with its image processor, as `save_pretrained` writes it. If this file
            comes from a repository with trusted code, code of the model in it is trusted, too; otherwise none is run.

    Raises:
        OSError, ValueError: there is no such model, or its weights are missing or not finite.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        trust = __name__.startswith("transformers_modules.")
        self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust)
        if getattr(self.processor, "lungs", None):
            raise ValueError(f"the model in {folder} itself needs a lung model; use one without lung_crop")
        stored: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        self.model, loading = AutoModelForSemanticSegmentation.from_pretrained(
            folder, trust_remote_code=trust, **stored
        )
        weights = self.model.eval().state_dict().items()
        broken = [name for name, x in weights if x.is_floating_point() and not x.isfinite().all()]
        if broken := sorted(loading["missing_keys"]) + broken:
            raise ValueError(f"weights in {folder} are missing or not finite, such as {broken[0]}")
        names = self.model.config.id2label
        self.classes = [i for i, name in names.items() if "lung" in name.lower()] or [i for i in names if i]
        digest = hashlib.sha256()
        for path in sorted(p for pattern in LUNG_FILES[:3] for p in folder.glob(pattern)):
            digest.update(path.read_bytes())
        self.sha256 = digest.hexdigest()

    def __deepcopy__(self, memo: Any) -> "Lungs":
        """Return the same object: settings are copied often, and the weights never change."""
        return self

    def copy(self, folder: Path) -> None:
        """Copy the files needed to load the model."""
        if folder.exists() and folder.samefile(self.folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in (p for pattern in LUNG_FILES for p in self.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)

    @torch.inference_mode()
    def box(self, rgb: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
        """Return left, top, right, bottom of the lungs in an image (height, width, 3); None if too small or absent."""
        image = Image.fromarray(rgb)
        outputs = self.model(**self.processor(image, return_tensors="pt"))
        if hasattr(self.processor, "restore_logits"):  # with margins or a crop of its own
            decided = self.processor.post_process_semantic_segmentation(outputs, [rgb.shape[:2]])[0]
        else:
            decided = outputs.logits[0].argmax(dim=0)
        mask = np.isin(decided.numpy(), self.classes).astype(np.uint8)
        box = large_box(mask)
        if box is None:
            return None
        (height, width), (rows, columns) = rgb.shape[:2], mask.shape
        left, top, right, bottom = box
        return (
            left * width // columns,
            top * height // rows,
            -(-right * width // columns),
            -(-bottom * height // rows),
        )


def lung_model_folder(name: str, patterns: Sequence[str] = LUNG_FILES, **hub: Any) -> Path:
    """Return the path of a folder, or of the downloaded files of a Hub id.

    Args:
        name: Hub id or folder.
        patterns: glob patterns of the files to download.
        hub: cache_dir, force_download, local_files_only, revision, token.

    Raises:
        OSError: there is no such repository, or no network.
    """
    return Path(name if Path(name).is_dir() else snapshot_download(name, allow_patterns=list(patterns), **hub))


def brain_box(rgb: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Return left, top, right, bottom of the head in a slice on a dark background; None without a large enough contour.

    Grey, blurred, thresholded, eroded and dilated; the extreme points of the largest outer contour are the box. Source:
    Rosebrock 2016, Finding extreme points in contours with OpenCV,
    https://pyimagesearch.com/2016/04/11/finding-extreme-points-in-contours-with-opencv, with a threshold of 45.

    That cut off half of the brain in several of the 253 images of "Brain MRI Images for Brain Tumor Detection": in
    dark ones, and where the threshold split the brain. So here the threshold is relative, 12 % of the 99th percentile
    of the image, and contours at least a tenth as large as the largest count as well. A box of less than 2 % of the
    image is a speck or a letter, not a brain. A bright background or frame gives the whole image.

    Args:
        rgb: (height, width, 3).
    """
    cv2 = opencv()
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    bright = (grey > 0.12 * np.percentile(grey, 99)).astype(np.uint8)
    return large_box(cv2.dilate(cv2.erode(bright, None, iterations=2), None, iterations=2))


def large_box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Return left, top, right, bottom of the non-zero area of a mask (height, width), ignoring specks; None if no more.

    Outer contours at least a tenth as large as the largest count, and a box of at least 2 % of the image.
    """
    cv2 = opencv()
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = [cv2.contourArea(contour) for contour in contours]
    large = [contour for contour, area in zip(contours, areas, strict=True) if area >= 0.1 * max(areas)]
    left, top, width, height = cv2.boundingRect(np.concatenate(large)) if large else (0, 0, 0, 0)
    return (left, top, left + width, top + height) if width * height >= 0.02 * mask.size else None


def clahe(rgb: NDArray[np.uint8], clip: float = 2.0, grid: int = 8) -> NDArray[np.uint8]:
    """Apply contrast-limited adaptive histogram equalisation to the brightness; colours stay.

    Brightness is luma (YCrCb), not L*: luma of a grey pixel is its grey value. So a grey image (R = G = B) stays grey
    and equals CLAHE of its one channel, and a copy with JPEG's faint colours gives nearly the same.

    Source: Zuiderveld 1994, Contrast limited adaptive histogram equalization, Graphics Gems IV; `cv2.createCLAHE`.

    Args:
        rgb: (height, width, 3).
        clip: contrast limit, in OpenCV's unit.
        grid: tiles in a row and in a column.
    """
    cv2 = opencv()
    ycrcb = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    ycrcb[..., 0] = cv2.createCLAHE(clip, (grid, grid)).apply(np.ascontiguousarray(ycrcb[..., 0]))
    return cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)


def _size(value: Any, name: str) -> SizeDict:
    """Return a size given as one positive number, as height and width, or as a dict of these."""
    size = dict(value) if isinstance(value, dict | SizeDict) else get_size_dict(value, param_name=name)
    if set(size) != {"height", "width"} or not 1 <= min(size.values()) <= max(size.values()) <= MAX_SIDE:
        raise ValueError(f"{name} must have height and width of 1 to {MAX_SIDE} pixels, found {size}.")
    return SizeDict(**size)


def _resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize logits (K, h, w) as stock processors do."""
    if logits.shape[1:] == size:
        return logits
    return torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def _resampling(resample: Any) -> Image.Resampling:
    """Return Pillow's interpolation for its own number or torchvision's name."""
    value = getattr(resample, "value", resample)
    return Image.Resampling[value.split("-")[0].upper()] if isinstance(value, str) else Image.Resampling(value)


def to_rgb(image: Any, layout: str | None = None) -> NDArray[np.uint8]:
    """Convert an 8-bit Pillow image, array or tensor to (height, width, 3), like `Image.convert("RGB")`.

    Args:
        image: the image.
        layout: "channels_first" or "channels_last" of an array or tensor; None finds out.
    """
    if not isinstance(image, Image.Image):
        array = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        if array.dtype != np.uint8:
            raise ValueError(f"Expected 8-bit images, found {array.dtype}. Apply a window, then make them uint8.")
        usual, other = (0, 2) if isinstance(image, torch.Tensor) else (2, 0)  # channel axis
        axis = usual if array.shape[usual] in (1, 3, 4) else other
        if layout is not None:
            axis = {"channels_first": 0, "channels_last": 2}[str(getattr(layout, "value", layout))]
        array = np.moveaxis(array, axis, 2)
        image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
    if image.mode[0] in "IF":
        raise ValueError(f"Expected 8-bit images, found Pillow's mode {image.mode}. Apply a window first.")
    return np.asarray(image.convert("RGB"))


def opencv() -> ModuleType:
    """Import OpenCV at its first use."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("MedicalImageProcessor needs OpenCV: pip install opencv-python-headless") from error
    return cv2
