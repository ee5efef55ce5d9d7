"""HTTP inference with the model beside this file: an image in, JSON out. It needs transformers, not hf_medtl.

A classifier returns probabilities (calibrated), label, decision (at the saved threshold), candidates (conformal set),
abstain, and reasons for abstaining. A segmentation model returns mask (base64 PNG of class indices at the image's
original size), labels, area (fractions of the image), and postprocessing, which is named in config.json but not applied
here. Images have 8 bits; deeper ones must be windowed first, as in training. Images are neither stored nor logged.

Hugging Face Inference Endpoints find this file by its name; anywhere else: python handler.py --port 8000.
For research and education. Not a medical device.
"""

import argparse
import base64
import io
import threading
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


class EndpointHandler:
    """Custom handler, see https://huggingface.co/docs/inference-endpoints/guides/custom_handler.

    Args:
        path: Folder of the model; code in it is run.
    """

    def __init__(self, path: str = ".") -> None:
        trusted = {"trust_remote_code": True}  # like this file
        self.config = AutoConfig.from_pretrained(path, **trusted)
        self.of_masks = any(name.endswith("ForSemanticSegmentation") for name in self.config.architectures or ())
        auto: Any = AutoModelForSemanticSegmentation if self.of_masks else AutoModelForImageClassification
        self.model = auto.from_pretrained(path, **trusted, dtype=torch.float32, use_safetensors=True).eval()
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
            data: "inputs" is an image: a Pillow image, the bytes of a file, or these in base64.

        Raises:
            ValueError: Not an image, or one of more than 8 bits.
        """
        image = read(data.get("inputs"))
        with self.lock, torch.inference_mode():
            inputs = self.processor(image, return_tensors="pt").to(self.model.device)
            logits = self.model(**inputs).logits.float().cpu()
            return self.mask(logits, image) if self.of_masks else self.decide(logits[0].double())

    def decide(self, logits: torch.Tensor) -> dict[str, Any]:
        """Return probabilities and decision for logits (K,)."""
        config, multilabel = self.config, self.config.problem_type == "multi_label_classification"
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
        if self.training and self.distance(self.features[0].double().cpu()) > config.outliers["threshold"]:
            reasons.append("unlike the training pictures")
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

    def mask(self, logits: torch.Tensor, image: Image.Image) -> dict[str, Any]:
        """Return the most probable class of each pixel for logits (1, K, h, w)."""
        size = image.height, image.width
        resized = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        mask, png = resized.argmax(0).to(torch.uint8), io.BytesIO()
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
    try:
        if not isinstance(source, Image.Image):
            content = base64.b64decode(source, validate=True) if isinstance(source, str) else source
            source = Image.open(io.BytesIO(content))
        source.load()
    except Exception as error:  # Pillow's readers raise all kinds of errors on damaged files
        raise ValueError(f"not a readable image ({type(error).__name__})") from error
    if source.mode[0] in "IF":
        raise ValueError(f"expected an 8-bit image, found Pillow mode {source.mode}; apply a window first")
    return ImageOps.exif_transpose(source).convert("RGB")


def app(handler: EndpointHandler) -> Any:
    """Return an ASGI app: POST / with the bytes of an image, GET /health."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def predict(request: Any) -> JSONResponse:
        try:
            return JSONResponse(await run_in_threadpool(handler, {"inputs": await request.body()}))
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
