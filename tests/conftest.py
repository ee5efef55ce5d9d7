"""Set before any Hugging Face module is imported: a Hub on the loopback address and empty caches."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

_WORK = Path(tempfile.mkdtemp(prefix="hf_medtl-tests-"))
atexit.register(shutil.rmtree, _WORK, ignore_errors=True)
with socket.socket() as _s:
    _s.bind(("127.0.0.1", 0))
    _PORT = _s.getsockname()[1]
_SERVER = subprocess.Popen(
    [sys.executable, Path(__file__).with_name("localhub.py"), "--root", _WORK / "hub", "--port", str(_PORT)]
)
atexit.register(_SERVER.terminate)
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{_PORT}",
    "HF_TOKEN": "hf_ci",
    "HF_HOME": str(_WORK / "hf"),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_MEDTL_CACHE": str(_WORK / "cache"),
    "TRACKIO_DIR": str(_WORK / "trackio"),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
WAIVED = dict.fromkeys(  # what --model_card would give
    ("intended_use", "out_of_scope", "limits", "population", "reference_standard"), "a test"
)
COMMAND = Path(sys.executable).with_name("hf-medtl")  # the environment need not be activated


@pytest.fixture(scope="session")
def hub() -> str:
    """Address of the loopback Hub."""
    for _ in range(1200):
        try:
            urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/__log", timeout=1)
            return os.environ["HF_ENDPOINT"]
        except OSError:
            time.sleep(0.05)
    pytest.fail("the loopback Hub did not start")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real pictures and weights."""
    folder = os.environ.get("HF_MEDTL_SHARED")
    if not folder:
        pytest.skip("HF_MEDTL_SHARED is not set: no real pictures and weights here")
    return Path(folder)


@pytest.fixture(scope="session")
def real_brain(shared: Path) -> Path:
    return shared / "data" / "brain-mri-images-for-brain-tumor-detection"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 synthetic brain slices of 24 patients."""
    from hf_medtl.data.phantoms import write

    return write(tmp_path_factory.mktemp("data") / "brain", "brain", patients=24, pictures=2, size=64)


def save_tiny(family: str, folder: Path) -> Path:
    """A tiny checkpoint with random weights and labels of its own, as it would come from the Hub."""
    from transformers import (
        AutoModelForImageClassification,
        BitImageProcessor,
        ConvNextConfig,
        DeiTConfig,
        Dinov2Config,
        Dinov2Model,
        SwinConfig,
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
        ViTConfig,
        ViTImageProcessor,
    )

    from hf_medtl.models.cnn import MedicalCnnConfig

    torch.manual_seed(0)
    labels = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    mean_std = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    if family.startswith("timm"):
        cfg = {"input_size": [3, 64, 64], "crop_pct": 0.875, "interpolation": "bicubic", "classifier": "fc"}
        cfg |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
        name = family.partition("-")[2] or "resnet"
        more = {"model_args": {"img_size": 64}} if name == "vit" else {}
        config = TimmWrapperConfig(architecture=f"test_{name}", pretrained_cfg=cfg, num_labels=3, **more, **labels)
        TimmWrapperForImageClassification(config).save_pretrained(folder)
        return folder
    if family == "rad-dino":  # microsoft/rad-dino: a body without a head, and a processor that crops the centre
        Dinov2Model(Dinov2Config(mlp_ratio=2, **layers)).save_pretrained(folder)
        sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        BitImageProcessor(**sides, **mean_std).save_pretrained(folder)
        return folder
    config = {
        "vit": ViTConfig(intermediate_size=64, hidden_dropout_prob=0.1, **layers, **labels),
        "deit": DeiTConfig(intermediate_size=64, **layers, **labels),
        "dinov2": Dinov2Config(mlp_ratio=2, **layers, **labels),
        "swin": SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, **labels
        ),
        "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32, **labels),
        "cnn": MedicalCnnConfig(widths=(8, 16), image_size=32, **labels),
    }[family]
    config.architectures = []  # without a list AutoModel fails for families of two classes, such as DeiT
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, **mean_std).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """Folder of the tiny checkpoint of a family, made when first asked for."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(family, tmp_path_factory.mktemp("backbones") / f"tiny-{family}")
        return made[family]

    return folder


def options(phantoms: Path, backbone: Path, output: Path, **more: object) -> dict[str, object]:
    """A Recipe's arguments for a run of seconds."""
    return {
        "dataset": "brain-phantoms",
        "data_dir": str(phantoms),
        "model_name_or_path": str(backbone),
        "output_dir": str(output),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        **more,
    }


def flags(**values: object) -> list[str]:
    """The same as command-line flags."""
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


@pytest.fixture
def trainer_of(phantoms, tiny, tmp_path):
    """Make a trainer of a family on phantoms."""
    from hf_medtl import Recipe, load
    from hf_medtl.runs.train import pictures
    from hf_medtl.tasks import TASKS
    from hf_medtl.training.trainer import MedicalTrainer

    def make(family: str = "vit", **more: object):
        recipe = Recipe(**options(phantoms, tiny(family), tmp_path / "run", **more))
        loaded = load("brain-phantoms", phantoms)
        torch.manual_seed(0)
        task = TASKS[loaded.spec.task]
        model, processor = task.build(recipe, loaded.labels)
        loss = task.loss(recipe, loaded.labels, task.targets(loaded, "train"))
        split = pictures(recipe, loaded, processor)
        return MedicalTrainer(recipe, model, processor, **split, loss=loss, metrics=task.validation_metrics)

    return make


@pytest.fixture(scope="session")
def finished(phantoms: Path, tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny ViT on phantoms."""
    from hf_medtl import Recipe, run

    card = ROOT / "model_cards" / "brain.md"
    output = tmp_path_factory.mktemp("runs") / "finished"
    return run(Recipe(**options(phantoms, tiny("vit"), output, model_card=str(card))))


@pytest.fixture
def ready(finished: Path, tmp_path: Path) -> Path:
    """A finished run that can be published."""
    return shutil.copytree(finished, tmp_path / "ready")


@pytest.fixture
def failing(hub: str, monkeypatch: pytest.MonkeyPatch):
    """Let requests with something in their path fail; waits are noted instead of waited for."""
    from hf_medtl.publish.hub import patiently

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(patiently, "__defaults__", (5, waits.append))

    def fail(*faults: dict) -> list[float]:
        tell(hub, "__fail", list(faults))
        return waits

    yield fail
    fail()


@pytest.fixture
def serving(hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Let the Hub keep files so: "lfs", "multipart" or "xet"."""

    def serve(store: str) -> None:
        parts, cas = (30_000 if store == "multipart" else 0), (f"local://{tmp_path}/cas" if store == "xet" else "")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", store != "xet")
        tell(hub, "__set", {"multipart": parts, "xet": cas})

    yield serve
    serve("lfs")


@pytest.fixture
def written(hub: str):
    """What the Hub has been asked to change since."""

    def changes() -> list[str]:
        log = json.load(urllib.request.urlopen(f"{hub}/__log"))
        return [path for method, path, *_ in log if method in ("POST", "PUT", "DELETE") and "validate" not in path]

    before = len(changes())
    return lambda: changes()[before:]


def tell(hub: str, path: str, what: object) -> None:
    """Tell the loopback Hub how to behave."""
    request = urllib.request.Request(f"{hub}/{path}", json.dumps(what).encode(), method="POST")
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="session")
def results(finished: Path) -> dict:
    return json.loads((finished / "results.json").read_text())


def script(*command: object, timeout: float = 600, input: str | None = None, **env: str) -> subprocess.CompletedProcess:
    """Run a command at the project's root and capture what it prints."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        input=input,
        timeout=timeout,
    )
