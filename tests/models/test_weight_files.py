"""Weights on the Hub are checked before they are downloaded: their headers, and the size of all shards together."""

import json
import struct

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, try_to_load_from_cache
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_medtl.errors import MedtlError
from hf_medtl.models.build import load_trained
from hf_medtl.models.untrusted import check_model
from hf_medtl.models.weight_files import WEIGHTS, check_header, weight_files


def weights(padding: int = 0, **changes: object) -> bytes:
    """Return a safetensors file of one tensor of two numbers with other values in its header."""
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": tensor}).encode() + b" " * padding
    return struct.pack("<Q", len(header)) + header + bytes(8)


HEADERS = {
    "length": (struct.pack("<Q", 2**62) + bytes(100), "expected a header of 1 to 16777216 bytes"),
    "short": (b"abc", "expected a header of 1 to 16777216 bytes, found 0 in a file of 3 bytes"),
    "text": (struct.pack("<Q", 4) + b"abcdefgh", "its header is none of safetensors"),
    "list": (struct.pack("<Q", 2) + b"[]", "its header is none of safetensors"),
    "nested": (struct.pack("<Q", 100_000) + b"[" * 100_000, "its header is none of safetensors"),
    "no_shape": (weights(shape=None), "its header is none of safetensors"),
    "shape": (weights(shape=[10**6, 10**6]), "gives 1 tensors, such as 'a', another size than their shape has"),
    "text_in_shape": (weights(shape=["a" * 1000, 10**9]), "another size than their shape"),
    "dtype": (weights(dtype="F64"), "another size than their shape"),
    "offsets": (weights(shape=[4], data_offsets=[0, 16]), "or more than the"),
    "long_header": (weights(200_000, shape=[3]), "another size than their shape"),
}


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory) -> dict[str, str]:
    """Return header -> commit of a repository on the Hub that has it."""
    api = HfApi()
    api.create_repo("ci-user/headers")
    commits = {}
    for name, content in {**{name: content for name, (content, _) in HEADERS.items()}, "fine": weights()}.items():
        files = {"config.json": b"{}", WEIGHTS: content}
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        commits[name] = api.create_commit("ci-user/headers", operations, commit_message=name).oid
    return commits


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_checked_here_and_on_the_hub_before_the_download(name, published, tmp_path):
    content, message = HEADERS[name]
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(MedtlError, match=f"{WEIGHTS} is damaged: .*{message}"):
        check_header(tmp_path / WEIGHTS)
    with pytest.raises(MedtlError, match=f"ci-user/headers/{WEIGHTS} is damaged: .*{message}"):
        check_model("ci-user/headers", published[name])
    assert try_to_load_from_cache("ci-user/headers", WEIGHTS, revision=published[name]) is None


def test_all_files_of_weights_count_before_the_download(published, monkeypatch, tmp_path):
    commit = published["fine"]
    (tmp_path / WEIGHTS).write_bytes(weights())
    check_header(tmp_path / WEIGHTS)
    size = len(weights())
    shards = [f"model-{i}.safetensors" for i in range(3)]
    index = json.dumps({"weight_map": {str(i): shard for i, shard in enumerate(shards)}}).encode()
    files = {"model.safetensors.index.json": index} | dict.fromkeys(shards, weights())
    api = HfApi()
    api.create_repo("ci-user/shards")
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    commit = api.create_commit("ci-user/shards", operations, commit_message="shards").oid
    for limits, message in (
        ({"MAX_WEIGHTS": 3 * size - 1}, "has 0.0 GB of weights; the most that is supported"),
        ({"MAX_SHARDS": 3}, "has 4 files of weights; the most are 3"),
        ({"shutil.disk_usage": lambda path: type("Usage", (), {"free": 3 * size - 1})}, "has 0.0 GB left"),
    ):
        with monkeypatch.context() as changed, pytest.raises(MedtlError, match=f"ci-user/shards .*{message}"):
            for name, value in limits.items():
                changed.setattr(f"hf_medtl.models.weight_files.{name}", value)
            check_model("ci-user/shards", commit)
    assert check_model("ci-user/shards", commit) == commit
    assert not [shard for shard in shards if try_to_load_from_cache("ci-user/shards", shard, revision=commit)]
    assert check_model("ci-user/headers", published["fine"]) == published["fine"]


def test_a_model_on_the_hub_is_no_larger_than_its_shards(hub, tmp_path):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, num_labels=2
    )
    ViTForImageClassification(config).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    api = HfApi()
    api.create_repo("ci-user/sharded")
    api.upload_folder(repo_id="ci-user/sharded", folder_path=tmp_path)
    assert load_trained(AutoModelForImageClassification, "ci-user/sharded").num_parameters() > 10_000
    config.hidden_size = config.intermediate_size = 6000  # 864 MB
    config.save_pretrained(tmp_path)
    api.upload_folder(repo_id="ci-user/sharded", folder_path=tmp_path)
    with pytest.raises(MedtlError, match="describes a model that is much larger than its weights"):
        load_trained(AutoModelForImageClassification, "ci-user/sharded")


def test_weight_files_are_those_that_the_configuration_and_the_index_name(tmp_path):
    def find(name: str):
        return tmp_path / name if (tmp_path / name).is_file() else None

    assert weight_files(find) == [WEIGHTS]
    index = json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}})
    (tmp_path / f"{WEIGHTS}.index.json").write_text(index, encoding="utf-8")
    assert weight_files(find) == [WEIGHTS, "x-1.safetensors", "x-2.safetensors"]
    for named, files in (("y.safetensors", ["y.safetensors"]), ("z.safetensors.index.json", ["x-1.safetensors"])):
        (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": named}), encoding="utf-8")
        one = json.dumps({"weight_map": {"a": "x-1.safetensors"}})
        (tmp_path / "z.safetensors.index.json").write_text(one, encoding="utf-8")
        assert weight_files(find) == files
