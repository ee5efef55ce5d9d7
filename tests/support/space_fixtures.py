"""Tiny models with all files that hf_medtl saves beside them, and a running Space that serves them."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl import Predictor
from hf_medtl.data import phantoms
from hf_medtl.evaluation.ood import OutOfDistributionScorer
from hf_medtl.models.build import set_labels
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.space.security.middleware import API, SecurityMiddleware
from hf_medtl.space.serve import create_server
from tests.support.process_pool import free_port
from tests.support.tiny_models import build_tiny

LABELS = ("no_lesion", "lesion")
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.2] * 3, "image_std": [0.25] * 3}
META = {"meta": {"_type": "gradio.FileData"}}
CARD = "# T\n\n## Intended use\n\nFor tests.\n\n## Training\n\nNone.\n\n## Limits\n\nAll of <b>them</b>.\n"


def brain_image(number: int, lesion: bool = True) -> Image.Image:
    """Return a synthetic brain slice that is unique to a number."""
    return Image.fromarray(phantoms.draw_brain(number, 0, lesion, seed=3, size=64).image).convert("RGB")


def chest_image() -> Image.Image:
    return Image.fromarray(phantoms.draw_chest(1, 0, True, seed=3, size=64).image).convert("RGB")


def write_models(folder: Path) -> dict[str, Path]:
    """Write a ViT with a decision rule, a CNN of other labels and two U-Nets; return their folders by name."""
    model_folders = {name: folder / name for name in ("vit", "cnn", "lungs", "other-lungs")}
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    decisions: dict[str, Any] = {
        "positive_label": "lesion", "threshold": 0.4, "folded_temperature": 1.5, "wording": {"lesion": "A sentence."},
        "conformal": {"alpha": 0.1, "lowest": {"lesion": 0.3, "no_lesion": 0.8}, "pictures": [9, 9]},
    }  # fmt: skip
    config = ViTConfig(image_size=32, patch_size=8, **sizes)
    set_labels(config, LABELS)
    vit = ViTForImageClassification(config)
    with torch.no_grad():
        vit.classifier.weight.mul_(40)  # so that images get different probabilities
    vit.config.update(decisions)
    save_model(vit, model_folders["vit"])
    predictor = Predictor(vit, ViTImageProcessor(**PROCESSOR))
    images = [brain_image(number, bool(number % 2)) for number in range(24)]
    features = []
    for image in images:
        with torch.inference_mode():
            pixels = predictor.processor(image, return_tensors="pt")["pixel_values"]
            features.append(vit.vit(pixels).last_hidden_state[0, 0].numpy())
    outliers = OutOfDistributionScorer.fit(np.array(features), np.arange(24) % 2)
    outliers.save(model_folders["vit"])
    vit.config.update({"outliers": {"threshold": 1.2 * float(outliers.score(np.array(features)).max())}})
    vit.config.save_pretrained(model_folders["vit"])
    verdict = {"lesion": {"passed": False, "summary": "Such maps miss the lesion."}}
    (model_folders["vit"] / "explanations.json").write_text(json.dumps({"method": "gradcam", "verdict": verdict}))
    (model_folders["vit"] / "README.md").write_text(CARD)

    config = MedicalCnnConfig(widths=(8, 16), image_size=32)
    set_labels(config, (*LABELS, "=cow"))
    save_model(MedicalCnnForImageClassification(config), model_folders["cnn"])
    for name in ("lungs", "other-lungs"):
        model, processor = build_tiny(labels=("background", "lungs"))
        with torch.no_grad():
            model.segmentation_head[0].bias.add_(torch.tensor([0.0, 0.2 if name == "lungs" else -0.1]))
        model.config.update({"postprocessing": {"largest_components": 2}} if name == "lungs" else {})
        save_model(model, model_folders[name], processor)
    return model_folders


def save_model(model: Any, folder: Path, processor: Any = None) -> None:
    model.eval().save_pretrained(folder)
    (processor or ViTImageProcessor(**PROCESSOR)).save_pretrained(folder)


def decode_data_uri(uri: str) -> Image.Image:
    """Return the image of a data URI."""
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory) -> dict[str, Path]:
    """Return the folders of `write_models` by name."""
    return write_models(tmp_path_factory.mktemp("models"))


@contextlib.contextmanager
def run_server(app: SecurityMiddleware) -> Iterator[str]:
    """Serve an app in a thread."""
    port = free_port()
    serving = create_server(app, port=port)
    thread = threading.Thread(target=serving.run)
    thread.start()
    while not serving.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    serving.should_exit = serving.force_exit = True  # gradio_client keeps its connections
    thread.join()


class Visitor:
    """A visitor of the page: fires its Gradio events over HTTP, without a browser."""

    def __init__(self, url: str, session: str) -> None:
        self.client, self.session = httpx.Client(base_url=url, timeout=60, trust_env=False), session
        config = self.client.get("/config").json()
        self.ids = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
        self.events = config["dependencies"]
        self.values = {component["id"]: component["props"].get("value") for component in config["components"]}

    def event(self, name: str, kind: str) -> dict[str, Any]:
        """Return the event of the component with an `elem_id`."""
        return next(event for event in self.events if [self.ids[name], kind] in event["targets"])

    def after(self, event: dict[str, Any]) -> dict[str, Any]:
        return next(candidate for candidate in self.events if candidate["trigger_after"] == event["id"])

    def upload(self, *files: tuple[str, bytes]) -> list[dict[str, Any]]:
        paths = self.client.post(API + "upload", files=[("files", file) for file in files]).json()
        return [{"path": path, "orig_name": name, **META} for path, (name, _) in zip(paths, files, strict=True)]

    def fire(self, event: dict[str, Any], changed: dict[int, Any] | None = None, data: Any = None) -> dict[str, Any]:
        """Fire an event of the page and return the output of its final message."""
        values = self.values | (changed or {})
        body = {
            "data": [values.get(component) for component in event["inputs"]],
            "fn_index": event["id"],
            "event_data": data,
        }
        joined = self.client.post(API + "queue/join", json=body | {"session_hash": self.session})
        joined.raise_for_status()
        output = {}
        with self.client.stream("GET", API + "queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    output = message["output"] | {"success": message["success"]}
        for component, value in zip(event["outputs"], output.get("data", ()), strict=False):
            update = isinstance(value, dict) and value.get("__type__") == "update"
            if not update or "value" in value:
                self.values[component] = value["value"] if update else value
        return output

    def load_page(self) -> None:
        """Fire the load event of the page."""
        self.fire(next(event for event in self.events if event["targets"][0][1] == "load"))

    def drop_files(self, *files: tuple[str, bytes]) -> dict[str, Any]:
        """Upload files to the page."""
        return self.fire(self.event("upload", "upload"), {self.ids["upload"]: self.upload(*files)})

    def read_page(self, **changed: Any) -> str:
        """Return all that the page shows; set controls by their `elem_id` first."""
        event = self.after(self.event("upload", "upload"))
        values = {self.ids[name]: value for name, value in changed.items()}
        output = self.fire(event, values)
        assert output["success"], output
        return "".join(map(str, output["data"]))


def wait_until(condition) -> None:
    """Wait at most ten seconds for a condition."""
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not happen")


def check_headers(response: httpx.Response) -> None:
    headers = response.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in headers["permissions-policy"]
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert policy["frame-ancestors"].split() == [
        *("'self'", "https://huggingface.co", "https://*.huggingface.co", "https://*.hf.space"),
    ]
    assert len(headers.get_list("content-security-policy")) == 1
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control-")]
