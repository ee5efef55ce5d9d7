"""Loading snippets of model cards: run without hf_medtl, from the Hub and offline from the cache."""

import ast
import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import HfApi, hf_hub_download
from PIL import Image
from sklearn.metrics import roc_auc_score

from hf_medtl import Predictor, Recipe, run
from hf_medtl.common.checksums import sha256_of_file
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.images import encode_image
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.export.export import export_run
from hf_medtl.publish.handler import EndpointHandler
from hf_medtl.publish.hub import push
from tests.support.commands import ROOT, WAIVED, options, run_command
from tests.support.multilabel_tables import write_table
from tests.support.process_pool import free_port
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.tiny_models import save_segformer

# Family -> (True if custom code is saved, snippet on the card besides pipeline(), the Auto classes and Predictor).
FAMILIES = {
    "vit": (False, "onnxruntime"),
    "timm": (False, "timm.create_model"),
    "several": (False, None),
    "cnn": (True, None),
    "steps": (True, None),
    "unet": (True, None),
    "segformer": (False, None),
}
NAME = "ci-user/loads-{}"

# Run each snippet in its own process, forked after the libraries are imported, in a folder with image.png.
FORKED = """
import contextlib, gc, io, json, os, shutil, sys, tempfile, traceback
jobs = json.load(sys.stdin)
if sys.argv[1] == "stock":
    sys.modules["hf_medtl"] = None
else:
    import hf_medtl.predict
import numpy, onnxruntime, segmentation_models_pytorch, timm, torch, transformers.pipelines
torch.set_num_threads(1)
gc.freeze()
outputs = {}
for key, (code, images) in jobs.items():
    read, written = os.pipe()
    if os.fork() == 0:
        os.close(read)
        output, status = {"printed": [], "masks": []}, 1
        try:
            os.chdir(tempfile.mkdtemp())
            space = {}
            for image in images:
                shutil.copy(image, "image.png")
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(code, space)
                output["printed"].append(out.getvalue().strip().splitlines()[-1])
                mask = space["masks"].get("lungs", 0) if "masks" in space else space.get("mask")
                mask = getattr(space.get("prediction"), "mask", None) if mask is None else mask
                if mask is not None:
                    output["masks"].append((numpy.asarray(mask) > 0).astype(int).tolist())
            status = 0
        except BaseException:
            output["error"] = traceback.format_exc()
        with os.fdopen(written, "w") as stream:
            json.dump(output, stream)
        os._exit(status)
    os.close(written)
    with os.fdopen(read) as stream:
        outputs[key] = json.load(stream)
    os.wait()
print(json.dumps(outputs))
"""
HANDLER = """
import sys
from huggingface_hub import snapshot_download
if "handle" not in globals():
    sys.path.insert(0, snapshot_download("{name}", revision="v1"))
    from handler import EndpointHandler
    handle = EndpointHandler(sys.path[0])
print(handle({{"inputs": open("image.png", "rb").read()}}))
"""


def train(family: str, folder: Path, phantoms: Path, tiny_checkpoint) -> tuple[Path, Path]:
    """Train a run in seconds; return its folder and its images."""
    if family in ("unet", "segformer"):
        data = write_phantoms(folder / "chest", "chest", patients=18, images=2, size=64)
        overrides = {"num_train_epochs": 6}
        if family == "segformer":
            backbone = str(save_segformer(folder / "backbone"))
            overrides |= {"model_name_or_path": backbone, "encoder": None, "encoder_weights": "imagenet"}
            overrides |= {"image_size": None, "learning_rate": 1e-2, "num_train_epochs": 20}
        return run(segmentation_recipe(data, folder / family, **overrides)), data
    backbone = tiny_checkpoint({"several": "vit", "steps": "vit"}.get(family, family))
    overrides = {
        "several": {"dataset": "table", "model_license": "mit"},
        "steps": {"preprocessing": "brain_crop,clahe"},
        "timm": {"learning_rate": 1e-2, "num_train_epochs": 4},
    }.get(family, {})
    data = write_table(folder / "marks", 48) if family == "several" else phantoms
    run_folder = run(Recipe(**options(data, backbone, folder / family, **({"learning_rate": 1e-3} | overrides))))
    return run_folder, data.parent if family == "several" else data


@pytest.fixture(scope="module")
def published(hub, phantoms, tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Publish runs and delete them locally; return family -> folder of its images."""
    parsed = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        run_folder, parsed[family] = train(family, folder, phantoms, tiny_checkpoint)
        if family == "vit":
            export_run(run_folder, "onnx", data_dir=phantoms)
        push(run_folder, NAME.format(family), waive=WAIVED)
        shutil.rmtree(run_folder)
    return parsed


def fetch(family: str, name: str) -> Path:
    return Path(hf_hub_download(NAME.format(family), name, revision="v1"))


def published_predictions(family: str, data: Path) -> tuple[pd.DataFrame, list[Path]]:
    """Return predictions.csv from the Hub, and the images of its rows."""
    rows = pd.read_csv(fetch(family, "predictions.csv"), keep_default_na=False)
    sums = pd.read_csv(fetch(family, "splits.csv")).set_index("image_id")["sha256"]  # names of files are not published
    files = {sha256_of_file(path): path for path in data.rglob("*.png") if path.parent.name != "masks"}
    return rows, [files[sums[image_id]] for image_id in rows["image_id"]]


def snippets(family: str) -> dict[str, str]:
    """Return name -> Python snippets of the card, and code that calls the handler."""
    blocks = re.findall(r"```python\n(.*?)```", fetch(family, "README.md").read_text(), flags=re.DOTALL)
    methods = "Predictor", "timm.create_model", "onnxruntime", "pipeline(", "AutoModel"
    parsed = {next(method for method in methods if method in block): block for block in blocks}
    assert len(parsed) == len(blocks)
    return parsed | {"handler": HANDLER.format(name=NAME.format(family))}


@pytest.fixture(scope="module")
def snippet_outputs(published, tmp_path_factory) -> dict[str, dict]:
    """Return (online or offline) -> FAMILY SNIPPET -> output for each image and its masks, or the error."""
    home = str(tmp_path_factory.mktemp("stranger"))
    offline = {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    parsed = {}
    for mode, env in {"online": {"HF_HOME": home}, "offline": offline}.items():
        jobs: dict[str, dict] = {"stock": {}, "ours": {}}
        for family, data in published.items():
            images = [str(path) for path in published_predictions(family, data)[1]]
            for name, code in snippets(family).items():
                environment = "ours" if name == "Predictor" else "stock"
                jobs[environment][f"{family} {name}"] = code, images[:1] if mode == "online" else images
        parsed[mode] = {}
        for environment, batch in jobs.items():
            isolated = ["-I"] if environment == "stock" else []
            process = run_command(sys.executable, *isolated, "-c", FORKED, environment, input=json.dumps(batch), **env)
            assert process.returncode == 0, process.stderr
            parsed[mode] |= json.loads(process.stdout.splitlines()[-1])
    return parsed


def probabilities(printed: str) -> dict[str, float]:
    """Return label -> probability, from any of the output formats."""
    output = ast.literal_eval(printed)
    if isinstance(output, list):
        return {row["label"]: row["score"] for row in output}
    if "path" in output:
        return {key.removeprefix("p_"): value for key, value in output.items() if key.startswith("p_")}
    return output.get("probabilities", output)


def dice(parsed: list, mask: Path) -> float:
    parsed, true = np.array(parsed) > 0, np.asarray(Image.open(mask)) > 0
    return 2 * (parsed & true).sum() / (parsed.sum() + true.sum())


@pytest.mark.slow  # the first test includes the fixtures' time
@pytest.mark.parametrize("family", FAMILIES)
def test_all_loading_snippets_give_published_predictions(family, published, snippet_outputs):
    rows, images = published_predictions(family, published[family])
    results = json.loads(fetch(family, "results.json").read_text())
    code = snippets(family)
    travels, extra = FAMILIES[family]
    assert set(code) == {"pipeline(", "AutoModel", "Predictor", "handler"} | ({extra} if extra else set())
    for name, text in code.items():
        assert NAME.format(family) in text and ('"v1"' in text or "@v1" in text), name
        assert ("trust_remote_code=True" in text) == (travels and name in ("pipeline(", "AutoModel")), name
    output = {
        name: [ast.literal_eval(line) for line in snippet_outputs["offline"][f"{family} {name}"].get("printed", ())]
        for name in ("Predictor", "handler")
    }
    for mode, outputs in snippet_outputs.items():
        for name in code:
            result = outputs[f"{family} {name}"]
            assert "error" not in result, f"{mode} {name}: {result['error']}"
            assert len(result["printed"]) == (1 if mode == "online" else len(rows))
            if "dice" in rows:
                if name != "handler":
                    masks = [path.parents[1] / "masks" / path.name for path in images]
                    parsed = [dice(*pair) for pair in zip(result["masks"], masks, strict=False)]
                    assert parsed, (mode, name)
                    assert parsed == pytest.approx(rows["dice"][: len(parsed)].tolist(), abs=1e-6), (mode, name)
                continue
            parsed = pd.DataFrame([probabilities(line) for line in result["printed"]])
            for label in results["labels"]:
                assert parsed[label].tolist() == pytest.approx(rows[f"p_{label}"][: len(parsed)].tolist(), abs=1e-5)
            if mode == "offline" and family != "several":
                score, truth = parsed[results["positive_label"]], rows["label"] == results["positive_label"]
                assert roc_auc_score(truth, score) == pytest.approx(results["metrics"]["roc_auc"]["value"])
                accuracy = ((score >= results["threshold"]) == truth).mean()
                assert accuracy == pytest.approx(results["metrics"]["accuracy"]["value"])
    for predicted, handled in zip(output["Predictor"], output["handler"], strict=True):
        if "dice" in rows:
            assert handled["area"]["lungs"] == pytest.approx(predicted["area_lungs"], abs=1e-9)
        else:
            for key in ("label", "decision", "abstain"):
                assert handled[key] == predicted[key]
            assert ", ".join(handled["reasons"]) == predicted["reason"]


@contextlib.contextmanager
def served(folder: Path):
    """Serve a model with its own handler, as described on its card; yield the address."""
    port = free_port()
    command = [sys.executable, "-I", str(folder / "handler.py"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder.parent)
    try:
        for _ in range(1200):
            assert process.poll() is None, process.stderr.read().decode()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cnn", "unet"])
def test_published_model_is_served_over_http(family, published, snippet_outputs, tmp_path):
    line = next(line for line in fetch(family, "README.md").read_text().splitlines() if line.startswith("hf download"))
    process = run_command(Path(sys.executable).with_name("hf"), *line.split()[1:-1], tmp_path / "model")
    assert process.returncode == 0, process.stderr
    assert "--revision v1" in line
    requirements = (tmp_path / "model" / "requirements.txt").read_text()
    assert ("segmentation-models-pytorch" in requirements) == (family == "unet")
    path = published_predictions(family, published[family])[1][0]
    with served(tmp_path / "model") as address:
        output = json.load(urllib.request.urlopen(address, path.read_bytes(), timeout=60))
        deep = encode_image(Image.fromarray(np.full((9, 9), 4000, np.uint16)))
        for content, message in ((b"no image", "not a readable image"), (deep, "apply a window")):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(address, content, timeout=60)
            assert error.value.code == 400
            assert message in json.load(error.value)["error"]
    assert output == ast.literal_eval(snippet_outputs["online"][f"{family} handler"]["printed"][0])


def test_handler_equals_predictor(finished_run, phantoms):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    images = [*(Image.open(path) for path in sorted(phantoms.glob("lesion/*.png"))[:4]), noise]
    handler, predictor = EndpointHandler(str(finished_run)), Predictor.from_pretrained(finished_run)
    for image, expected in zip(images, predictor.predict(images), strict=True):
        content = encode_image(image)
        for payload in (image, content, base64.b64encode(content).decode()):
            output = handler({"inputs": payload})
            assert output["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
            for key in ("label", "decision", "abstain"):
                assert output[key] == getattr(expected, key)
            assert output["candidates"] == list(expected.candidates)
            assert output["reasons"] == list(expected.reasons)
    assert "unlike the training images" in expected.reasons
    for nothing in (None, "", b"", "no base64"):
        with pytest.raises(ValueError, match="not a readable image"):
            handler({"inputs": nothing})


@pytest.mark.slow
def test_card_of_unchanged_run_keeps_tag(hub, finished_run, phantoms, tmp_path):
    """The card names the tag of its push; after another push all references name the new tag."""
    folder = shutil.copytree(finished_run, tmp_path / "ready")
    export_run(folder, "onnx", data_dir=phantoms)
    for name in ("ci-user/first", "ci-user/first", "ci-user/second"):
        push(folder, name, waive=WAIVED)
        assert [tag.name for tag in HfApi().list_repo_refs(name).tags] == ["v1"]
        text = (folder / "README.md").read_text()
        assert text.count(f'"{name}", revision="v1"') == 4
        assert f'name, revision = "{name}", "v1"' in text
    RunFolder(folder).write("results.json", (folder / "results.json").read_text() + "\n")
    HfApi().delete_tag("ci-user/first", tag="v1")  # as if the connection had broken before it was set
    push(folder, "ci-user/second", waive=WAIVED)
    push(folder, "ci-user/first", waive=WAIVED)
    assert [tag.name for tag in HfApi().list_repo_refs("ci-user/second").tags] == ["v1", "v2"]
    assert [tag.name for tag in HfApi().list_repo_refs("ci-user/first").tags] == ["v1"]
    assert '"v2"' not in (folder / "README.md").read_text()
    assert str(ROOT) not in (folder / "README.md").read_text()
