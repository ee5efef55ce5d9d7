"""Answers of the model beside this file over HTTP: a picture in, JSON out. It needs transformers, not hf_medtl.

Of labels: probabilities (calibrated), label, decision (at the saved threshold), candidates (conformal set), abstain,
and reasons why no decision should be taken from this. Of masks: mask (PNG of class indices at the picture's own size,
in base64), labels, area (shares of the picture), and postprocessing, which config.json names and which is not done
here. Pictures have 8 bits; a deeper one must be windowed first, as for training. Nothing of a picture is written down.

On Hugging Face Inference Endpoints it is found by its name; anywhere else: python handler.py --port 8000.
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
    """See https://huggingface.co/docs/inference-endpoints/guides/custom_handler.

    Args:
        path: folder of the model; code in it is run.
    """

    def __init__(self, path: str = ".") -> None:
        trusted = {"trust_remote_code": True}  # as this file is
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
        self.lock = threading.Lock()  # features belong to the last picture
        if self.training:
            linear = [its for its in self.model.modules() if isinstance(its, torch.nn.Linear)]
            head = [its for its in linear if its.out_features == len(self.labels)][-1]
            head.register_forward_pre_hook(lambda module, inputs: setattr(self, "features", inputs[0].flatten(1)))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """The answer for one picture.

        Args:
            data: "inputs" is a picture: Pillow's, a file's bytes, or these in base64.

        Raises:
            ValueError: no picture, or one of more than 8 bits.
        """
        picture = read(data.get("inputs"))
        with self.lock, torch.inference_mode():
            inputs = self.processor(picture, return_tensors="pt").to(self.model.device)
            logits = self.model(**inputs).logits.float().cpu()
            return self.mask(logits, picture) if self.of_masks else self.decide(logits[0].double())

    def decide(self, logits: torch.Tensor) -> dict[str, Any]:
        """Probabilities and what follows from them, of logits (K,)."""
        config, several = self.config, self.config.problem_type == "multi_label_classification"
        p = dict(zip(self.labels, (logits.sigmoid() if several else logits.softmax(0)).tolist(), strict=True))
        label = max(p, key=lambda name: p[name])
        decision, candidates, reasons = label, None, []
        positive, threshold = getattr(config, "positive_label", None), getattr(config, "threshold", None)
        if several:
            cuts = getattr(config, "thresholds", None) or {}
            decision = "|".join(name for name in p if p[name] >= cuts.get(name, 0.5))
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
        """Of features (d,) from those of the training pictures: Mahalanobis, to the nearest class."""
        its = {name: tensor.double() for name, tensor in (self.training or {}).items()}
        difference = features - its["centres"]
        along = difference @ its["components"].T
        beside = difference.square().sum(1) - along.square().sum(1)
        return float(((along.square() / its["variances"]).sum(1) + beside / its["rest"]).min() / len(features))

    def mask(self, logits: torch.Tensor, picture: Image.Image) -> dict[str, Any]:
        """The most probable class of each pixel, of logits (1, K, h, w)."""
        size = picture.height, picture.width
        large = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        mask, png = large.argmax(0).to(torch.uint8), io.BytesIO()
        Image.fromarray(mask.numpy()).save(png, "png")
        return {
            "mask": base64.b64encode(png.getvalue()).decode(),
            "labels": self.labels,
            "area": {name: float((mask == i).double().mean()) for i, name in enumerate(self.labels) if i},
            "postprocessing": getattr(self.config, "postprocessing", None) or {},
        }


def read(source: Any) -> Image.Image:
    """An upright RGB picture.

    Raises:
        ValueError: as `EndpointHandler.__call__`.
    """
    try:
        if not isinstance(source, Image.Image):
            content = base64.b64decode(source, validate=True) if isinstance(source, str) else source
            source = Image.open(io.BytesIO(content))
        source.load()
    except Exception as error:  # Pillow's readers raise whatever a damaged file provokes
        raise ValueError(f"no picture that can be read ({type(error).__name__})") from error
    if source.mode[0] in "IF":
        raise ValueError(f"8-bit pictures are expected, found Pillow's mode {source.mode}; apply a window first")
    return ImageOps.exif_transpose(source).convert("RGB")


def app(handler: EndpointHandler) -> Any:
    """For any ASGI server: POST / with a picture's bytes, GET /health."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def answer(request: Any) -> JSONResponse:
        try:
            return JSONResponse(await run_in_threadpool(handler, {"inputs": await request.body()}))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def health(request: Any) -> Response:
        return Response()

    return Starlette(routes=[Route("/", answer, methods=["POST"]), Route("/health", health)])


if __name__ == "__main__":
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve the model beside this file.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(app(EndpointHandler(str(Path(__file__).parent))), host=given.host, port=given.port)
