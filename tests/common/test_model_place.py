"""The place of a model: a folder, the cache, the Hub."""

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hf_medtl import MedtlError
from hf_medtl.common.model_place import check_place, nearest_folder

RESPONSE = httpx.Response(404, request=httpx.Request("HEAD", "http://hub"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("404", response=RESPONSE), "no model google/vit on the Hub"),
        (RevisionNotFoundError("404", response=RESPONSE), "no model google/vit at v2 on the Hub"),
        (HTTPError("no route"), r"the Hub can't be reached \(HTTPError\)"),
        (
            GatedRepoError("403", response=RESPONSE),
            r"is gated: accept its terms at http.*/google/vit, .*`hf auth login`",
        ),
        (huggingface_hub.errors.HfHubHTTPError("503", response=RESPONSE), None),
    ],
)
def test_hub_is_asked_once(error, message, monkeypatch):
    calls = []

    def fail(url, timeout):
        calls.append(url)
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    if message is None:
        check_place("google/vit", "v2")
    else:
        with pytest.raises(MedtlError, match=message):
            check_place("google/vit", "v2")
    assert len(calls) == 1


def test_folders_and_cached_models_need_no_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("the Hub was asked"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "config.json")
    check_place("runs/demo")
    check_place("google/vit")
    with pytest.raises(MedtlError, match=r"The folder demo does not exist\. Did you mean 'runs/demo'"):
        check_place("demo")


def test_nearest_folder_is_beside_or_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/demo", "data/brain"):
        (tmp_path / name).mkdir(parents=True)
    assert nearest_folder("data/brian") == " Did you mean 'data/brain'?"
    assert nearest_folder(tmp_path / "runs" / "dmo") == f" Did you mean {str(tmp_path / 'runs' / 'demo')!r}?"
    assert nearest_folder("demo") == " Did you mean 'runs/demo'?"
    assert nearest_folder("nothing_alike") == ""
