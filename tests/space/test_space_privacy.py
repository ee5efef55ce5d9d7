"""A Space in a separate process: no visitor data stays on disk or in its output."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_medtl.data.images import encode_image
from hf_medtl.space.security.middleware import API
from hf_medtl.space.serve import create_temp_folder, remove_abandoned_folders
from tests.support.commands import ROOT
from tests.support.dicom_files import encode_dicom, make_dicom
from tests.support.process_pool import free_port
from tests.support.space_fixtures import META, Visitor, write_models

NAME = "Mustermann_Erika"
SERVE = """
import sys
from hf_medtl.space.serve import create_app, serve
serve(create_app(sys.argv[2:]), port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Return the URL, folder and process of a Space whose temporary, home and working folders lie in that folder."""
    folder = tmp_path_factory.mktemp("served")
    models = write_models(folder / "models")
    for name in ("tmp", "home", "work"):
        (folder / name).mkdir()
    port = free_port()
    environment = {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home")}
    command = [sys.executable, "-c", SERVE, str(port), str(models["vit"]), str(models["cnn"]), str(models["lungs"])]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder / "work",
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(url + "/config", trust_env=False)
            break
        except httpx.TransportError:
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.1)
    yield url, folder, process
    process.terminate()
    process.wait(30)


def noise(seed: int) -> np.ndarray:
    """Return incompressible pixels, so that their bytes can be searched for."""
    return np.random.default_rng(seed).integers(1, 256, (64, 64), dtype=np.uint8)


def make_png_with_name(seed: int) -> bytes:
    """Return an uncompressed PNG with a name in its header."""
    header = PngInfo()
    header.add_text("Patient", NAME)
    return encode_image(Image.fromarray(noise(seed)), compress_level=0, pnginfo=header)


def make_dicom_with_name(seed: int) -> bytes:
    return encode_dicom(make_dicom(noise(seed).astype(np.uint16) * 16, PatientName=NAME))


def find_traces(folder: Path, images: list[bytes]) -> list[str]:
    """Return the files below a folder that contain the name or rows of an image."""
    rows = [noise(seed)[30, :40].tobytes() for seed in range(9)]
    signs = [NAME.encode(), *(image[2000:2040] for image in images), *rows]
    matches = []
    for path in folder.rglob("*"):
        if NAME in path.name:
            matches.append(f"{path} by its name")
        if path.is_file() and any(sign in path.read_bytes() for sign in signs):
            matches.append(f"{path} by its content")
    return matches


@pytest.mark.slow
def test_nothing_of_a_visitor_stays_on_disk_or_in_logs(served, tmp_path):
    url, folder, process = served
    contents = {
        f"{NAME}.png": make_png_with_name(1),
        f"{NAME}.dcm": make_dicom_with_name(2),
        f"{NAME}.txt": NAME.encode(),
        f"{NAME}-cut.png": make_png_with_name(3)[:3000],
    }
    paths = {name: tmp_path / name for name in contents}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    images = [content for content in contents.values() if len(content) > 2000]
    assert len(find_traces(tmp_path, images)) == 8  # the search detects them

    client = Client(url, verbose=False, analytics_enabled=False, download_files=tmp_path / "down")
    for path in paths.values():
        for name, more in (
            ("classify", ["vit"]), ("explain", ["vit", "gradcam", ""]), ("segment", ["lungs"]),
            ("compare", ["vit", "cnn"]), ("classify", [NAME]),
        ):  # fmt: skip
            try:
                client.predict(handle_file(path), *more, api_name=f"/{name}")
            except AppError as error:
                assert "Something went wrong" not in str(error)
    files = [handle_file(path) for path in paths.values()]
    assert len(client.predict(files, "vit", api_name="/batch")["rows"]) == 4
    with pytest.raises(AppError, match="no model of that name"):
        client.predict(files, NAME, api_name="/batch")

    page = Visitor(url, "somebody")
    page.load_page()
    page.drop_files(*contents.items())
    tabs = [event for event in page.events if event["targets"][0][1] == "select"]
    shown = []
    for tab in tabs[:3]:
        page.fire(tab)
        shown.append(page.read_page())
    assert len(set(shown)) == 3
    assert all("viewer" in event for event in shown)
    many = page.upload(*contents.items())
    shown = page.fire(page.after(page.event("start", "click")), {page.ids["many"]: many})
    assert NAME in str(shown)  # the visitor sees the name
    page.client.post(API + "queue/join", json={"data": [NAME], "fn_index": 999, "session_hash": NAME})
    page.client.post(API + "call/classify", json={"data": [{"path": f"/{NAME}", **META}, ""]})
    page.client.post(API + "call/classify", json={"data": [NAME, {"orig_name": NAME}]})
    page.client.get(f"/{NAME}", params={"name": NAME})

    assert process.poll() is None
    assert find_traces(folder, images) == []
    uploads = next((folder / "tmp").glob("hf_medtl-space-*"))
    assert [path for path in uploads.rglob("*") if path.is_file() and "incoming" in path.parts] == []
    assert "Traceback" not in (folder / "log.txt").read_text()


def test_start_removes_abandoned_folders(tmp_path, monkeypatch):
    """Folders in use, new folders and targets of links stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
    killed, running, new = (tmp_path / f"hf_medtl-space-{name}" for name in ("killed", "running", "new"))
    other = tmp_path / "other"
    for folder in (killed, running, new, other):
        (folder / "incoming").mkdir(parents=True)
        (folder / "incoming" / "upload.png").write_bytes(make_png_with_name(1))
    (tmp_path / "hf_medtl-space-link").symlink_to(other)
    for folder in (killed, running, other):
        os.utime(folder, (0, 0))
    code = "import sys; from pathlib import Path; from hf_medtl.space.serve import lock_folder\n"
    code += "print(lock_folder(Path(sys.argv[1])), flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(running)], **pipes) as process:
        assert process.stdout.readline() == b"True\n"
        own = create_temp_folder()
        assert {path for path in tmp_path.iterdir() if not path.is_symlink()} == {running, new, other, own}
        assert (other / "incoming" / "upload.png").exists()
        process.kill()
    remove_abandoned_folders(tmp_path)
    assert not running.exists()
    assert own.exists()


@pytest.mark.slow
def test_shutdown_removes_folder(served):
    _, folder, process = served
    process.terminate()
    assert process.wait(30) == 0
    assert list((folder / "tmp").glob("hf_medtl-space-*")) == []
