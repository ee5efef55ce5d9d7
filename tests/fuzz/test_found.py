"""Small inputs that fuzzing found to end in a traceback, or to print what a terminal obeys."""

import io
import json
import logging
import random
import re
import shutil
import struct
import zipfile

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless
from transformers import AutoModelForImageClassification

from hf_medtl.common.console import make_console
from hf_medtl.common.messages import show_messages
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.yaml_files import read_yaml
from hf_medtl.data import read_image
from hf_medtl.data.download import unpack_medmnist
from hf_medtl.data.fingerprints import compute_fingerprints
from hf_medtl.data.images import encode_image
from hf_medtl.data.label_cells import read_cells, read_indicators
from hf_medtl.data.splits import read_splits
from hf_medtl.data.table_files import read_table_file
from hf_medtl.errors import MedtlError, UnreadableImage
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.models.build import load_trained
from hf_medtl.predict import Predictor
from hf_medtl.publish import handler
from hf_medtl.publish.check import check_card, check_run_files
from hf_medtl.report.blocks import Matrix, Table
from hf_medtl.runs.compare import compare_runs
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.tracking import check_trackers
from tests.support.dicom_files import encode_dicom, make_encapsulated_dicom
from tests.support.fuzz_seeds import array_archive, array_files, image_files, png_bomb, table_files
from tests.support.mutations import mutate

RED = "\x1b[31mred\x1b[0m"


def test_an_error_is_one_line_without_control_characters():
    assert str(MedtlError(f"{RED}:\r\n  no\u202e\u2028 file\x9b.")) == r"\x1b[31mred\x1b[0m: no\u202e\u2028 file\x9b."
    assert str(MedtlError("a × b · ä\u00a0🩻")) == "a × b · ä\u00a0🩻"
    assert len(str(MedtlError("x" * 70_000))) < 5_000


def test_messages_and_tables_print_no_control_characters(capsys):
    logger = logging.getLogger("hf_medtl")
    kept, logger.handlers[:] = [*logger.handlers], []
    propagate, logger.propagate = logger.propagate, False
    hidden, logging.root.handlers[:] = [*logging.root.handlers], []
    try:
        show_messages(logging.INFO)
        logger.info("%s is read.", RED)
        make_console().print(RED)
    finally:
        logger.handlers[:], logger.propagate, logging.root.handlers[:] = kept, propagate, hidden
    printed = capsys.readouterr()
    assert printed.err == "\\x1b[31mred\\x1b[0m is read.\n"
    assert printed.out == "\\x1b[31mred\\x1b[0m\n"


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_a_big_tiff_whose_directory_is_nowhere(offset):
    content = bytearray(image_files()["big.tif"])
    content[8:16] = struct.pack("<Q", offset)
    with pytest.raises(UnreadableImage, match="the TIFF is damaged"):
        read_image(bytes(content))


@pytest.mark.parametrize(
    "line", ["a: 2024-13-45", "a: " + "[" * 3000, "a: &x [*x]", "a: &x [1, 1, 1]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i) if i else chr(120)}'] * 9)}]\n" for i in range(8)
    )],
    ids=["no date", "brackets", "holds itself", "repeats billions"],
)  # fmt: skip
def test_yaml_that_is_no_options(line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(line)
    with pytest.raises(MedtlError, match=r"--config .*recipe\.yaml"):
        read_yaml(tmp_path / "recipe.yaml", "--config")


def test_a_cell_of_brackets_is_a_label():
    cells = ["[" * 3000, "[" * 3000 + "]" * 3000, "[" * 150 + "]" * 150]
    assert read_cells(cells, "table")[0][:2] == cells[:2]


def write_sheet(path, cell="A3", merged=""):
    book = openpyxl.Workbook()
    for row in (["file_name", "label"], ["0.png", "a"]):
        book.active.append(row)
    book.active[cell] = "1.png"
    book.save(path)
    if merged:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        sheet = members["xl/worksheets/sheet1.xml"]
        ranges = f'</sheetData><mergeCells count="1"><mergeCell ref="{merged}"/></mergeCells>'.encode()
        members["xl/worksheets/sheet1.xml"] = sheet.replace(b"</sheetData>", ranges)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)


@pytest.mark.parametrize("where", [{"cell": "XFD1048576"}, {"merged": "A1:XFD1048576"}])
def test_a_sheet_of_billions_of_cells(where, tmp_path):
    write_sheet(tmp_path / "table.xlsx", **where)
    with pytest.raises(MedtlError, match=r"table\.xlsx has 1,048,576 rows and 16,384 columns"):
        read_table_file(tmp_path / "table.xlsx")


def test_a_merged_cell_is_still_read(tmp_path):
    write_sheet(tmp_path / "table.xlsx", merged="B2:B3")
    assert read_table_file(tmp_path / "table.xlsx")["label"].tolist() == ["a", "a"]


def test_parquet_of_millions_of_equal_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_medtl.data.table_files.MAX_CELLS", 1000)
    pq.write_table(pa.table({"file_name": ["0.png"] * 600, "label": ["a"] * 600}), tmp_path / "table.parquet")
    with pytest.raises(MedtlError, match="has 600 rows and 2 columns, more than 1,000 cells"):
        read_table_file(tmp_path / "table.parquet")


def test_a_packed_table_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_medtl.data.table_files.MAX_UNPACKED", 100)
    (tmp_path / "table.csv.gz").write_bytes(table_files()["packed.csv.gz"])
    with pytest.raises(MedtlError, match="when unpacked"):
        read_table_file(tmp_path / "table.csv.gz")


@pytest.mark.parametrize("name", sorted(table_files()))
def test_damaged_tables(name, tmp_path):
    for number in range(10):
        path = tmp_path / name
        path.write_bytes(mutate(random.Random(number), name, table_files(), text=True))
        try:
            assert len(read_table_file(path))
        except MedtlError as error:
            assert str(error).replace("\u00a0", "").isprintable()


def test_splits_that_list_an_image_twice(tmp_path):
    table = pd.DataFrame({"image_id": ["a", "b"], "sha256": ["1", "2"], "group": ["g", "h"]})
    (tmp_path / "splits.csv").write_text("image_id,split,sha256\na,train,1\na,train,1\nb,test,2\n")
    with pytest.raises(MedtlError, match="more than one row for a"):
        read_splits(table, tmp_path / "splits.csv")


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": np.array([[9], *[[0]] * 7], np.uint8)},  # label_names[9]
        {"train_labels": np.full((8, 1), -1)},  # label_names[-1]
        {"train_labels": np.full((8, 1), np.nan)},
        {"train_labels": np.array(1)},
        {"train_labels": np.array(["a"] * 8)},
        {"train_images": np.zeros((0, 28, 28), np.uint8)},
        {"train_images": np.zeros((8, 0, 28), np.uint8)},
    ],
)
def test_arrays_that_are_no_images_with_labels(changes, tmp_path):
    with np.load(io.BytesIO(array_files()["breastmnist.npz"])) as arrays:
        content = array_archive(**dict(arrays) | changes)
    (tmp_path / "breastmnist.npz").write_bytes(content)
    with pytest.raises(MedtlError, match=r"breastmnist\.npz: expected"):
        unpack_medmnist(tmp_path / "breastmnist.npz")


@pytest.mark.parametrize("name", ["objects.npz", "lying.npz", "truncated.npz", "text.npz"])
def test_damaged_array_files(name, tmp_path):
    whole = array_files()["breastmnist.npz"]
    content = {"truncated.npz": whole[:3000], "text.npz": whole.replace(b"test_images.npy", b"test_images.txt")}
    (tmp_path / name).write_bytes(content.get(name) or array_files()[name])
    with pytest.raises(MedtlError, match="is not a MedMNIST file"):
        unpack_medmnist(tmp_path / name)


def test_the_handler_refuses_large_images_before_it_decodes_them():
    with pytest.raises(ValueError, match="expected at most 100,000,000 pixels"):
        handler.read(png_bomb(10_001))
    with pytest.raises(ValueError, match="expected JSON"):
        handler.parse("application/json", b"[" * 100_000)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\0", b"image_id,path\na,\xff\n", b'image_id\n"a\n', b"a\nb,c\n1,2,3,4\n"]
)
def test_a_damaged_table_of_a_run(content, tmp_path):
    (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(MedtlError, match=r"predictions\.csv is damaged"):
        RunFolder(tmp_path).predictions  # noqa: B018


@pytest.mark.parametrize("content", ["1", "[]", '"a"', "null", "[" * 100_000])
def test_results_that_are_no_object(content, tmp_path):
    for name in ("README.md", "config.json", "recipe.yaml"):
        (tmp_path / name).write_text("---\nlicense: mit\npipeline_tag: x\nlibrary_name: y\n---\n{}")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "results.json").write_text(content)
    for check in (check_run_files, check_card):
        with pytest.raises(MedtlError, match=r"results\.json is damaged"):
            check(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results.json", '"labels"', '"names"'),
        ("results.json", '"dataset"', '"data"'),
        ("results.json", '"threshold": ', '"threshold": "|", "old_threshold": '),
        ("predictions.csv", "lesion,", "lesions,"),
        ("splits.csv", "sha256", "sha512"),
    ],
)
def test_a_run_with_values_that_no_run_writes(name, old, new, publishable_run, finished_run):
    path = publishable_run / name
    assert old in path.read_text("utf-8")
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(MedtlError, match="has a value that no run writes"):
        compare_runs([publishable_run, finished_run]).facts  # noqa: B018


@pytest.mark.parametrize("option", ["model_name_or_path", "data_dir", "output_dir", "dataset", "splits"])
def test_an_option_with_a_name_that_no_file_has(option):
    with pytest.raises(MedtlError, match=rf"--{option} has a name of 1000 bytes; files and folders have 255 at most"):
        Recipe(**{"data_dir": "images", option: f"a/{'9' * 1000}"})


def test_trackers_in_a_list_of_their_own():
    with pytest.raises(MedtlError, match=r"--report_to must be none, all, or one of .*, but is \['tensorboard'\]"):
        check_trackers([["tensorboard"]])


@pytest.mark.parametrize("results", ["{}", '{"task": ["image-classification"]}'])
def test_results_without_a_task(results, tmp_path):
    (tmp_path / "results.json").write_text(results, encoding="utf-8")
    with pytest.raises(MedtlError, match=r"results\.json is damaged: "):
        RunFolder(tmp_path).task  # noqa: B018


def test_architectures_in_lists_of_their_own():
    rule = DecisionRule.from_config({"id2label": {"0": "a", "1": "b"}, "architectures": [["X"], 3]})
    assert rule.labels == ("a", "b")


def test_cells_of_a_report_that_are_no_text():
    assert Table("", ("name", "value"), [["a", 3]]).rows == [["a", "3"]]


def test_weights_beyond_the_model_are_said_without_codes_of_the_terminal(finished_run, tmp_path, caplog, capfd):
    shutil.copytree(finished_run, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"num_hidden_layers": 1}), encoding="utf-8")
    load_trained(AutoModelForImageClassification, tmp_path / "model")
    assert "tensors that its model does not use, such as 'vit.layers.1." in caplog.text
    assert "LOAD REPORT" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("option", ["model_name_or_path", "dataset"])
def test_an_option_that_yaml_reads_as_no_text(option):
    with pytest.raises(MedtlError, match=rf"--{option} must be a text, but is False"):
        Recipe(**{"data_dir": "images", option: False})


def test_columns_that_are_no_text():
    with pytest.raises(MedtlError, match=r"--columns takes pairs such as .*, found True"):
        Recipe(data_dir="images", columns=True)


@pytest.mark.parametrize("counts", [[[1, 2]], [[1, 2], [3]], [[1, 2], [3, "4"]], [[1, 2], True], True])
def test_a_confusion_matrix_that_is_none(counts):
    with pytest.raises((TypeError, ValueError)):  # which reports say as a damaged run
        Matrix("", ("a", "b"), counts)


def test_a_number_of_a_card_that_no_float_holds(publishable_run):
    card = publishable_run / "README.md"
    card.write_text(re.sub(r"value: 0\.\d+", f"value: {'9' * 400}", card.read_text("utf-8"), count=1), "utf-8")
    assert "9" * 400 in card.read_text("utf-8")
    check_card(publishable_run)
    card.write_text(card.read_text("utf-8").replace("9" * 400, ".inf"), "utf-8")
    with pytest.raises(MedtlError, match="model-index"):
        check_card(publishable_run)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"id2label": {"0": "a", "1": None}}, "id2label in config.json must name each label by a text"),
        ({"conformal": {"level": 0.9}}, "conformal.lowest in config.json must give a probability for each label"),
        ({"conformal": {"lowest": {}}}, "conformal.lowest in config.json gives no probability for a, b"),
    ],
)
def test_a_rule_for_labels_that_are_none(settings, match):
    with pytest.raises(MedtlError, match=match):
        DecisionRule.from_config({"id2label": {"0": "a", "1": "b"}} | settings)


def test_wording_that_is_no_object(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"wording": "a"}), "utf-8")
    with pytest.raises(MedtlError, match=r"wording in config\.json must be an object"):
        Predictor.from_pretrained(tmp_path / "model", device="cpu")


def test_a_file_name_with_a_null_character(tmp_path):
    assert "null" in compute_fingerprints([tmp_path / "a\0.png"], "fuzz-found")[0].error


def test_a_column_of_labels_without_a_name():
    frame = pd.DataFrame({"NaN": ["0", "1"], "ill": ["1", "0"]})
    with pytest.raises(MedtlError, match="the column 'NaN' states a label, but has no name"):
        read_indicators(frame, ["NaN", "ill"], "exclude", "x.csv")


def test_a_box_without_length_in_jpeg_2000():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    code = encode_image(Image.fromarray(pixels), "JPEG2000", no_jp2=False)
    elements = {"PhotometricInterpretation": "YBR_RCT"}
    whole = encode_dicom(make_encapsulated_dicom(code, pixels, JPEG2000Lossless, **elements))
    assert np.array_equal(read_image(whole, name="a.dcm"), pixels)
    endless = whole.replace(code[12:20], b"\0\0\0\0" + code[16:20])  # the box after the signature; pydicom never ended
    assert endless != whole
    with pytest.raises(UnreadableImage, match="the compressed image differ in size"):
        read_image(endless, name="a.dcm")
