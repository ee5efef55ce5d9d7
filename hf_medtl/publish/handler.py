"""HTTP inference with the model beside this file: an image in, JSON out. It needs transformers, not hf_medtl.

A classifier returns probabilities (calibrated), label, decision (at the saved threshold), candidates (conformal set),
abstain, and reasons for abstaining. A segmentation model returns mask (base64 PNG of class indices at the image's
original size), labels, area (fractions of the image), and postprocessing, which is named in config.json but not applied
here. Images have 8 bits; deeper ones must be windowed first, as in training. DICOM is read as displayed, with pydicom.
Images are neither stored nor logged.

Hugging Face Inference Endpoints find this file by its name; anywhere else: python handler.py --port 8000. An image is
the body of a request, a file of a form, or base64 in JSON:

    curl --data-binary @image.png http://127.0.0.1:8000
    curl --form file=@image.dcm http://127.0.0.1:8000
    curl --json '{"inputs": "data:image/png;base64,..."}' http://127.0.0.1:8000

For research and education. Not a medical device.
"""

import argparse
import base64
import binascii
import email
import io
import json
import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

MAX_PIXELS = 100_000_000


class EndpointHandler:
    """Custom handler, see https://huggingface.co/docs/inference-endpoints/guides/custom_handler.

    Args:
        path: Folder of the model; code in it is run.

    Raises:
        ValueError: Weights are missing or not finite.
    """

    def __init__(self, path: str = ".") -> None:
        trusted = {"trust_remote_code": True}  # like this file
        self.config = AutoConfig.from_pretrained(path, **trusted)
        self.of_masks = any(str(name).endswith("ForSemanticSegmentation") for name in self.config.architectures or ())
        auto: Any = AutoModelForSemanticSegmentation if self.of_masks else AutoModelForImageClassification
        stored = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        self.model, loading = auto.from_pretrained(path, **trusted, **stored)
        weights = self.model.eval().state_dict().items()
        broken = [name for name, x in weights if x.is_floating_point() and not x.isfinite().all()]
        if broken := sorted(loading["missing_keys"]) + broken:
            raise ValueError(f"weights in {path} are missing or not finite, such as {broken[0]}; download them again")
        self.model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        self.processor = AutoImageProcessor.from_pretrained(path, **trusted)
        self.labels = [self.config.id2label[i] for i in range(self.config.num_labels)]
        file = Path(path) / "outliers.safetensors"
        self.training = load_file(file) if getattr(self.config, "outliers", None) and file.exists() else None
        self.features = torch.empty(0)
        self.lock = threading.Lock()  # features are those of the current image
        if self.training:
            layers = [module for module in self.model.modules() if isinstance(module, torch.nn.Linear)]
            head = [layer for layer in layers if layer.out_features == len(self.labels)][-1]
            head.register_forward_pre_hook(lambda module, inputs: setattr(self, "features", inputs[0].flatten(1)))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Predict one image.

        Args:
            data: "inputs" is an image: a Pillow image, the bytes of a file, or these in base64, also as a data URL.

        Raises:
            ValueError: Not an image, or one of more than 8 bits that is no DICOM file.
        """
        image = read(data.get("inputs"))
        with self.lock, torch.inference_mode():
            inputs = self.processor(image, return_tensors="pt").to(self.model.device)
            outputs = self.model(**inputs)
            return self.mask(outputs, image) if self.of_masks else self.decide(outputs.logits[0].cpu().double())

    def decide(self, logits: torch.Tensor) -> dict[str, Any]:
        """Return probabilities and decision for logits (K,)."""
        config = self.config
        # As in stock pipeline(): the softmax of one output would always be 1.
        multilabel = config.problem_type == "multi_label_classification" or len(self.labels) == 1
        p = dict(zip(self.labels, (logits.sigmoid() if multilabel else logits.softmax(0)).tolist(), strict=True))
        label = max(p, key=lambda name: p[name])
        decision, candidates, reasons = label, None, []
        positive, threshold = getattr(config, "positive_label", None), getattr(config, "threshold", None)
        if multilabel:
            thresholds = getattr(config, "thresholds", None) or {}
            decision = "|".join(name for name in p if p[name] >= thresholds.get(name, 0.5))
        elif positive is not None and threshold is not None and len(p) == 2:
            decision = positive if p[positive] >= threshold else next(name for name in p if name != positive)
        if conformal := getattr(config, "conformal", None):
            candidates = [name for name in p if p[name] >= conformal["lowest"][name]]
            reasons += ["uncertain"] if len(candidates) != 1 else []
        if self.training and self.distance(self.features[0].cpu().double()) > config.outliers["threshold"]:
            reasons.append("unlike the training images")
        answer = {"probabilities": p, "label": label, "decision": decision, "candidates": candidates}
        return {**answer, "abstain": bool(reasons), "reasons": reasons}

    def distance(self, features: torch.Tensor) -> float:
        """Return the Mahalanobis distance of features (d,) to the nearest class of the training images."""
        fitted = {name: tensor.double() for name, tensor in (self.training or {}).items()}
        difference = features - fitted["centres"]
        inside = difference @ fitted["components"].T
        outside = difference.square().sum(1) - inside.square().sum(1)  # of the principal components
        squared = (inside.square() / fitted["variances"]).sum(1) + outside / fitted["rest"]
        return float(squared.min() / len(features))

    def mask(self, outputs: Any, image: Image.Image) -> dict[str, Any]:
        """Return the most probable class of each pixel for outputs of the model with logits (1, K, h, w)."""
        outputs.logits = outputs.logits.float().cpu()
        size = image.height, image.width
        mask = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].to(torch.uint8)
        png = io.BytesIO()
        Image.fromarray(mask.numpy()).save(png, "png")
        return {
            "mask": base64.b64encode(png.getvalue()).decode(),
            "labels": self.labels,
            "area": {name: float((mask == i).double().mean()) for i, name in enumerate(self.labels) if i},
            "postprocessing": getattr(self.config, "postprocessing", None) or {},
        }


def read(source: Any) -> Image.Image:
    """Read an image as RGB, rotated upright by EXIF.

    Raises:
        ValueError: As `EndpointHandler.__call__`.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError("addresses are not downloaded; send the image itself")
    try:
        if not isinstance(source, Image.Image):
            if isinstance(source, str):
                encoded = source.partition(",")[2] if source.startswith("data:") else source
                source = base64.b64decode("".join(encoded.split()), validate=True)
            source = read_dicom(source) if source[128:132] == b"DICM" else Image.open(io.BytesIO(source))
        # Pillow drops the lower bits of deep colours on loading.
        if source.width * source.height > MAX_PIXELS:
            raise Unsupported(f"expected at most {MAX_PIXELS:,} pixels, found {source.width} × {source.height}")
        deep = source.mode[0] in "IF" or ";16" in str([part[3] for part in getattr(source, "tile", [])])
        source.load()
        image = ImageOps.exif_transpose(source)
    except Unsupported:
        raise
    except binascii.Error as error:
        raise ValueError("expected an image in base64, but found other characters") from error
    except Exception as error:  # readers raise all kinds of errors on damaged files, which quote headers
        raise ValueError(f"not a readable image ({type(error).__name__})") from error
    if deep:
        raise ValueError(f"expected an 8-bit image, found more bits (Pillow mode {source.mode}); apply a window first")
    return image.convert("RGB")


class Unsupported(ValueError):
    """A file that is not read here."""


def read_dicom(content: bytes) -> Image.Image:
    """Read the middle frame as displayed: by its linear window, or else the 0.5th and 99.5th percentile of its pixels.

    Raises:
        Unsupported: Pydicom is missing, or the file has lookup tables, settings of each frame or bits below its values.
    """
    try:
        import numpy as np
        import pydicom
    except ImportError as error:
        raise Unsupported("DICOM needs pydicom: pip install pydicom on the server, or send PNG") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its messages quote headers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = pydicom.dcmread(io.BytesIO(content))
        tables = ("VOILUTSequence", "ModalityLUTSequence", "SharedFunctionalGroupsSequence")
        kind = file.PhotometricInterpretation
        shifted = int(file.get("HighBit") or 0) >= file.BitsStored  # unused bits below the stored ones
        palette = kind == "PALETTE COLOR" or file.get("VOILUTFunction") == "SIGMOID"
        if shifted or palette or any(file.get(name) for name in tables):
            raise Unsupported("this DICOM file has lookup tables or bits not supported here; send it as PNG")
        frames = int(file.get("NumberOfFrames") or 1)
        pixels = pydicom.pixels.pixel_array(file, index=frames // 2 if frames > 1 else None)
        if pixels.ndim == 3:
            return Image.fromarray(np.rint(pixels * (255 / (2**file.BitsStored - 1))).astype(np.uint8))
        slope, intercept = float(file.get("RescaleSlope") or 1), float(file.get("RescaleIntercept") or 0)
        values, bits = pixels * slope + intercept, file.BitsStored
        centre, width = (np.atleast_1d(file.get(name) or np.nan)[0] for name in ("WindowCenter", "WindowWidth"))
        if width > 0:
            exact = width <= 1 or file.get("VOILUTFunction") == "LINEAR_EXACT"
            middle, half = (centre, width / 2) if exact else (centre - 0.5, (width - 1) / 2)
            low, high = float(middle - half), float(middle + half)
        elif bits <= 8:
            start = -(2 ** (bits - 1)) if file.PixelRepresentation else 0
            low, high = sorted(value * slope + intercept for value in (start, start + 2**bits - 1))
        else:
            low, high = np.percentile(values[pixels != file.get("PixelPaddingValue")], [0.5, 99.5])
        shades = np.rint(255 * ((values - low) / max(high - low, 1e-9)).clip(0, 1)).astype(np.uint8)
        return Image.fromarray(255 - shades if kind == "MONOCHROME1" else shades)


def parse(content_type: str, body: bytes) -> Any:
    """Return the image in the body of a request: a file of a form, "inputs" of JSON, or the body itself.

    Raises:
        ValueError: No file, or more than one, in a form, or no "inputs" in JSON.
    """
    if content_type.lower().startswith("multipart/form-data"):
        message: Any = email.message_from_bytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
        parts = message.get_payload() if message.is_multipart() else []
        files = [part for part in parts if part.get_filename() is not None] or parts
        if len(files) != 1:
            raise ValueError(f"expected one file in the form, found {len(files)}")
        return files[0].get_payload(decode=True)
    if content_type.lower().startswith("application/json") or body[:1] == b"{":
        try:
            return json.loads(body)["inputs"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError('expected JSON such as {"inputs": "BASE64"}') from error
    return body


def app(handler: EndpointHandler) -> Any:
    """Return an ASGI app: POST / with an image as `parse` takes it, GET /health."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def predict(request: Any) -> JSONResponse:
        try:
            source = parse(request.headers.get("content-type", ""), await request.body())
            return JSONResponse(await run_in_threadpool(handler, {"inputs": source}))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def health(request: Any) -> Response:
        return Response()

    return Starlette(routes=[Route("/", predict, methods=["POST"]), Route("/health", health)])


if __name__ == "__main__":
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve the model beside this file.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    uvicorn.run(app(EndpointHandler(str(Path(__file__).parent))), host=args.host, port=args.port)
