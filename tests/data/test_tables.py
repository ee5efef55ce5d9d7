"""Tables of images: columns by their usual names, paths, labels and repeated rows as public datasets have them."""

import json

import pandas as pd
import pytest

from hf_medtl import MedtlError
from hf_medtl.data.columns import parse_columns
from hf_medtl.data.readers import read_folders
from hf_medtl.data.specs import DATASETS
from hf_medtl.data.tables import read_listing, read_metadata, read_table
from tests.support.specs import with_columns


def write(root, rows, files=(), name="t.csv"):
    """Write a table, and an empty file for each path; return the table's path."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    root.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(root / name, index=False)
    return root / name


def read(file, columns="", dataset="table", **changes):
    """Read a table as `survey` does, without opening its images; return the dataset and path -> row."""
    spec, rows = read_table(with_columns(DATASETS[dataset], columns, **changes), file)
    return spec, {row["path"]: row for row in rows}


FOUR = ["1.png", "2.png", "3.png", "4.png"]


@pytest.mark.parametrize("column", ["patient", "Patient", "patient_id", "PatientID", "patientId", "Patient ID",
                                   "subject_id", "Subject", "participant_id", "MRN", "pid", "Case",
                                   "lesion_id"])  # fmt: skip
def test_patients_are_read_from_a_column_of_any_usual_name(tmp_path, column):
    rows = {"file_name": FOUR, "label": list("aabb"), column: ["P1", "P2", "P3", "P3"], "age": [1, 2, 3, 4]}
    spec, images = read(write(tmp_path, rows, FOUR))
    assert [images[name]["patient"] for name in FOUR] == ["P1", "P2", "P3", "P3"]
    used = "patient" if column == "patient" else f"patient from {column}"
    assert spec.notes[0] == (f"t.csv: file_name, label, {used}; not used: age.")


@pytest.mark.parametrize("column", ["ID", "eid", "Hospital number", "anon_id", "Subject code no.", "id_paciente",
                                    "病人", "pacijent", "mouse", "Fall-ID"])  # fmt: skip
def test_column_that_repeats_and_may_be_the_patient_is_named(tmp_path, column):
    files = [*FOUR, "5.png"]
    rows = {"file_name": files, "label": list("aabba"), column: ["X1", "X2", "X3", "X3", "X3"], "sex": list("mmffm")}
    spec, images = read(write(tmp_path, rows, files))
    assert not any(row["patient"] for row in images.values())
    assert spec.notes[-1].startswith(f"t.csv: the column {column} may be the patient but is not used.")


@pytest.mark.parametrize("column", ["case", "study"])
def test_case_and_control_or_a_few_projects_are_no_patients(tmp_path, column):
    rows = {"file_name": FOUR, "label": list("aabb"), column: list("0011")}
    assert not any(row["patient"] for row in read(write(tmp_path, rows, FOUR))[1].values())


def test_rows_without_a_patient_are_counted(tmp_path):
    spec, _ = read(write(tmp_path, {"file_name": FOUR, "label": list("aabb"), "patient": ["p", "", "q", ""]}, FOUR))
    assert "t.csv: 2 of 4 rows have no patient; each is taken for a patient of its own." in spec.notes


@pytest.mark.parametrize("column", ["is_train", "Test", "fold"])
def test_columns_of_splits_with_other_values_are_named_with_advice_that_works(tmp_path, column):
    spec, _ = read(write(tmp_path, {"file_name": FOUR, "label": list("aabb"), column: list("0101")}, FOUR))
    assert (
        f"the column {column} may be the split but is not used. To use one, write train, validation" in spec.notes[-1]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,a\n2.png,a\n3.png,b\n4.png,b\n", "the first row names the file 1.png instead of the columns"),
        ("file_name label\n1.png a\n2.png b\n", "found only one, 'file_name label'. Save the table as CSV"),
    ],
)
@pytest.mark.parametrize("columns", ["", "file_name=1.png,label=a"])
def test_tables_without_a_header_or_columns_lose_no_image(tmp_path, text, message, columns):
    file = write(tmp_path, {}, FOUR)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MedtlError, match=message):
        read(file, columns)


def test_studies_and_lesions_are_named_where_they_stand_for_patients(tmp_path, caplog):
    rows = {"file_name": FOUR, "label": list("aabb"), "StudyInstanceUID": list("xxyy")}
    _, images = read(write(tmp_path, rows, FOUR))
    assert [row["patient"] for row in images.values()] == list("xxyy")
    assert "one patient with more than one StudyInstanceUID can be in different splits" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("Path", "Finding", "Subject", "Split", "Site", "Mask"),
        ("Image Index", "Finding Labels", "Patient ID", "subset", "hospital", "mask_path"),
        ("image_id", "dx", "lesion_id", "dataset_type", "Center", "segmentation"),
        ("filename", "diagnosis", "PATIENT_ID", "SET", "SOURCE", "MaskFile"),
    ],
)
def test_all_columns_have_usual_names_in_any_case(tmp_path, names):
    masks = [f"m/{name}" for name in FOUR]
    cells = (FOUR, list("aabb"), list("wxyz"), ["Train", "VAL", "test", "Training"], list("ssuu"), masks)
    _, images = read(write(tmp_path, dict(zip(names, cells, strict=True)), [*FOUR, *masks]))
    assert images["2.png"] == {
        "image_id": "2.png", "path": "2.png", "label": "a", "patient": "x", "official": "validation", "source": "s",
        "mask": "m/2.png",
    }  # fmt: skip


def test_columns_option_names_columns(tmp_path, caplog):
    rows = {"id": list("1234"), "kind": list("aabb"), "label": list("xxyy"), "who": list("PQRS"), "p": list("AABB")}
    file = write(tmp_path, rows, [f"images/{name}" for name in FOUR])
    _, images = read(file, "file_name=images/{id}.png,label=Kind,patient=who")
    assert [row["label"] for row in images.values()] == list("aabb")
    assert images["images/3.png"]["patient"] == "R"
    for text, message in (
        ("patients=who", "expected one of file_name, label, patient.*found 'patients'. Did you mean 'patient'"),
        ("patient", "takes pairs such as"),
        ("patient=who,patient=p", "gives patient twice"),
    ):
        with pytest.raises(MedtlError, match=message):
            parse_columns(text)
    with pytest.raises(MedtlError, match=r"no column 'whom' for patient. The most similar one is 'who'"):
        read(file, "file_name=id,patient=whom")
    with pytest.raises(MedtlError, match=r"only labels can be spread over several columns"):
        read(file, "file_name=id,patient=who+p")
    with pytest.raises(MedtlError, match=r"expected a column 'file_name'.*such as --columns file_name=id"):
        read(write(tmp_path, {"id": FOUR, "label": list("aabb")}, FOUR))


def test_german_names_are_read_and_labels_suggested_that_are_no_other_column(tmp_path):
    rows = {"Patienten-Nr.": list("wwxy"), "Dateiname": FOUR, "Befund": list("aabb"), "Klinik": list("stst")}
    spec, images = read(write(tmp_path, rows, FOUR))
    assert spec.notes[0].endswith(
        "file_name from Dateiname, label from Befund, patient from Patienten-Nr., source from Klinik."
    )
    assert [row["patient"] for row in images.values()] == list("wwxy")
    rows["Resultat"] = rows.pop("Befund")
    with pytest.raises(MedtlError, match=r"expected a column 'label'.*such as --columns label=Resultat\."):
        read(write(tmp_path, rows, FOUR))
    with pytest.raises(MedtlError, match=r"The column Diagnosis is empty: fill it"):
        read(write(tmp_path, {"image": FOUR, "Diagnosis": [""] * 4, "site": list("stst")}, FOUR))


def test_files_named_after_patients_tell_the_patients(tmp_path):
    rows = {"patientId": ["p1", "p2", "p2"], "Target": [0, 1, 1]}
    _, images = read(write(tmp_path, rows, ["x/p1.dcm", "x/p2.dcm"]), "file_name=patientid")
    assert {path: row["patient"] for path, row in images.items()} == {"x/p1.dcm": "p1", "x/p2.dcm": "p2"}


def test_columns_that_may_have_been_meant_are_named(tmp_path, caplog):
    rows = {
        "file_name": FOUR,
        "label": list("aabb"),
        "patient name": list("WXYZ"),
        "fold": [0, 1, 2, 3],
        "set": list("kkll"),
    }
    spec, images = read(write(tmp_path, rows, FOUR))
    assert {row["patient"] + row["official"] for row in images.values()} == {""}
    assert "the column patient name may be the patient but is not used. To use one: --columns patient=" in caplog.text
    assert "the columns fold, set may be the split but are not used" in caplog.text
    assert sum("may be" in note for note in spec.notes) == 2
    assert "WXYZ"[0] not in "".join(spec.notes).replace("file_name", "")  # no cell


def test_two_columns_that_may_be_the_label_are_refused_unless_they_agree(tmp_path):
    rows = {"image": FOUR, "diagnosis": ["nv", "nv", "mel", "bcc"], "target": [0, 0, 1, 1]}
    with pytest.raises(MedtlError, match=r"the columns diagnosis, target may all be the label. Choose one"):
        read(write(tmp_path, rows, FOUR))
    assert read(write(tmp_path, rows, FOUR), "label=target")[0].labels == ("0", "1")
    rows["class_id"], rows["class_name"] = [2, 2, 5, 5], ["x", "x", "y", "y"]
    del rows["diagnosis"], rows["target"]
    assert read(write(tmp_path, rows, FOUR))[0].labels == ("x", "y")


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("./images/a.png", "images/a.png"),
        ("images\\a.png", "images/a.png"),
        (r"C:\Users\me\data\images\a.png", "images/a.png"),
        ("/home/other/data/images/a.png", "images/a.png"),
        ("{root}/images/a.png", "images/a.png"),
        ("../data/images/a.png", "images/a.png"),
        ("../{name}/images/a.png", "images/a.png"),
        ("CheXpert-v1.0/train/p1/view1.jpg", "train/p1/view1.jpg"),
        ("A.PNG", "a.png"),
        ("ISIC_01", "part_2/ISIC_01.jpg"),
        ("00000001_000.png", "images_001/images/00000001_000.png"),
        ("1.2.840.113", "dicom/1.2.840.113.dcm"),
        ("a.jpg", "a.png"),
        ("7", "007.png"),
        ("my%20scan.png", "my scan.png"),
        ("100%25.png", "100%25.png"),
        ("https://host/data/a%2B.png?raw=1", "a+.png"),
    ],
)
def test_paths_as_tables_have_them(tmp_path, cell, file):
    others = ["images/b.png", "train/p2/view1.jpg", "b.png", "masks/ISIC_01.png", "masks/00000001_000.png"]
    rows = {"file_name": [cell.format(root=tmp_path, name=tmp_path.name), "b.png"], "label": ["x", "y"]}
    spec, images = read(write(tmp_path, rows, [file, *others]))
    assert list(images) == [file, "b.png"]
    assert len(spec.notes) == 1 or "1 files are found by name" in spec.notes[1]


def test_paths_that_are_doubtful_missing_or_outside_are_refused(tmp_path):
    def refused(cells, files, message):
        rows = {"file_name": cells, "label": ["x", "y"] * (len(cells) // 2)}
        with pytest.raises(MedtlError, match=message):
            read(write(tmp_path / "data", rows, files))

    (tmp_path / "data").mkdir()
    (tmp_path / "c.png").touch()
    refused(["../c.png", "b.png"], ["b.png"], "paths must be inside the folder of the file, found ../c.png. Move the")
    refused([f"{tmp_path}/c.png", "b.png"], [], "paths must be inside")
    refused(["x/1.png", "1.png"], ["1.png"], "1.png, x/1.png would all be the file 1.png")
    refused(["n.png", "m.png"], [], "none of its 2 files is in .*such as m.png, n.png. Move the table")
    refused(["", "b.png"], [], "1 rows name no file")


def test_missing_and_ambiguous_files_are_counted_and_named(tmp_path, caplog):
    rows = {"file_name": ["d", "b.png", "gone.png"], "label": ["x", "y", "y"]}
    spec, _ = read(write(tmp_path, rows, ["p/d.png", "q/d.png", "b.png"]))
    assert "t.csv: 2 of 3 files are missing: d, gone.png." in caplog.text
    assert "2 of 3 files are missing" in spec.notes[-1]
    rows = {"file_name": ["b.png", "p/d.png"], "label": ["x", "y"], "mask": ["", "m.png"]}
    with pytest.raises(MedtlError, match=r"1 of 1 masks are missing: m.png"):
        read(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("cells", "labels", "multilabel"),
    [
        (["Edema | Mass", "No Finding", "Mass", ""], ["Edema|Mass", "", "Mass", ""], True),
        (['["a", "b"]', "['b']", "[]", "[]"], ["a|b", "b", "", ""], True),
        (["a, b", "a", "b", "a"], ["a|b", "a", "b", "a"], True),
        (["a;b", "a", "b", "a"], ["a|b", "a", "b", "a"], True),
        (["COVID-19, ARDS", "COVID-19", "SARS", "SARS"], ["COVID-19, ARDS", "COVID-19", "SARS", "SARS"], False),
        (["0", "1.0", "1", "0.0"], ["0", "1", "1", "0"], False),
        ([0, 1, 4, 3], ["0", "1", "4", "3"], False),
    ],
)
def test_label_cells(tmp_path, caplog, cells, labels, multilabel):
    spec, images = read(write(tmp_path, {"file_name": FOUR, "label": cells}, FOUR))
    assert [row["label"] for row in images.values()] == labels
    assert spec.multilabel == multilabel
    separated = any("," in str(cell) or ";" in str(cell) for cell in cells) and "[" not in str(cells[0])
    assert any("are read as" in note for note in spec.notes) == ("are read as" in caplog.text) == separated


def test_columns_of_0_and_1_are_labels(tmp_path, caplog):
    single = {"image": ["1", "2", "3", "4"], "MEL": [1.0, 0, 0, 0], "NV": [0, 1.0, 1.0, 0], "BCC": [0, 0, 0, 1.0]}
    spec, images = read(write(tmp_path, single, FOUR))
    assert [row["label"] for row in images.values()] == ["MEL", "NV", "NV", "BCC"]
    assert not spec.multilabel
    assert "the columns MEL, NV, BCC are read as labels, one for each image." in spec.notes[1]
    assert spec.notes[0] == "t.csv: file_name from image, label from MEL + NV + BCC."
    several = {"image": FOUR, "sex": [0, 1, 1, 0], "Edema": [1, 0, 1, ""], "Mass": [1, 0, 0, 1]}
    file = write(tmp_path, several, FOUR)
    with pytest.raises(MedtlError, match=r"expected a column 'label'.*--columns label=sex\+Edema\+Mass"):
        read(file)
    spec, images = read(file, "label=Edema+mass")
    assert spec.labels == ("Edema", "Mass")
    assert [row["label"] for row in images.values()] == ["Edema|Mass", "", "Edema", "Mass"]
    several["Mass"] = [2, 0, 0, 1]
    with pytest.raises(MedtlError, match=r"expected 0, 1 or blank .* in the column 'Mass'.*found '2'"):
        read(write(tmp_path, several, FOUR), "label=Edema+Mass")


@pytest.mark.parametrize(
    ("policy", "first"), [("exclude", "?uncertain: Edema"), ("negative", "Mass"), ("positive", "Edema|Mass")]
)
def test_uncertain_labels_follow_the_policy(tmp_path, policy, first):
    rows = {"Path": FOUR, "No Finding": ["", "", "", 1.0], "Edema": [-1.0, 1, "", ""], "Mass": [1, 1, 1, 0]}
    file = write(tmp_path, rows, FOUR)
    spec, images = read(file, "label=No Finding+Edema+Mass", uncertain=policy)
    assert [row["label"] for row in images.values()] == [first, "Edema|Mass", "Mass", ""]
    assert spec.labels == ("Edema", "Mass")
    assert "1 images have an uncertain label (-1), " in spec.notes[1]


def test_repeated_rows_are_merged_if_they_agree(tmp_path):
    boxes = {"image_id": ["1", "1", "2", "3"], "x": [5, 9, 0, 0], "Target": [1, 1, 0, 0], "patientId": list("AABC")}
    spec, images = read(write(tmp_path, boxes, FOUR))
    assert [(path, row["label"], row["patient"]) for path, row in sorted(images.items())] == [
        ("1.png", "1", "A"), ("2.png", "0", "B"), ("3.png", "0", "C"),
    ]  # fmt: skip
    assert "2 rows of 1 images are merged, because they agree." in spec.notes[-1]
    parts = {"file_name": ["1.png", "1.png", "2.png"], "label": ["a", "a", "b"], "mask": ["3.png", "4.png", ""]}
    assert read(write(tmp_path, parts, FOUR))[1]["1.png"]["mask"] == "3.png|4.png"


def test_rows_that_contradict_each_other_are_refused_or_united(tmp_path):
    rows = {"file_name": ["1.png", "1.png", "2.png", "3.png"], "class_name": ["Mass", "Edema", "Mass", "No finding"]}
    file = write(tmp_path, rows, FOUR)
    with pytest.raises(MedtlError, match=r"1 images have rows with a different label: 1.png \(Mass, Edema\). Keep one"):
        read(file)
    _, images = read(file, "label={class_name}|")  # a | makes them multilabel
    assert [images[name]["label"] for name in FOUR[:3]] == ["Edema|Mass", "Mass", ""]
    rows = {"file_name": ["1.png", "1.png", "2.png"], "label": ["a", "a", "b"], "patient": ["Ann", "Bob", "Cy"]}
    with pytest.raises(MedtlError, match=r"different patient: 1.png. Keep one row") as error:
        read(write(tmp_path, rows, FOUR))
    assert "Ann" not in str(error.value)


@pytest.mark.parametrize("values", [["cohort a", "cohort b"], ["0", "1"], ["train", "fold_1"]])
def test_unknown_splits_are_refused(tmp_path, values):
    rows = {"file_name": FOUR, "label": list("aabb"), "Split": values * 2}
    with pytest.raises(MedtlError, match=f"expected splits such as train, .*found .*{values[1]} in the column"):
        read(write(tmp_path, rows, FOUR))


@pytest.mark.parametrize(
    ("values", "splits"),
    [
        (["tr", "ts"], ["train", "test"]),
        (["Training set", "hold-out"], ["train", "test"]),
        (["development", "holdout"], ["train", "test"]),
        (["train", "development"], ["train", "validation"]),
        (["TRAIN", ""], ["train", ""]),
    ],
)
def test_usual_names_of_splits_are_understood(tmp_path, values, splits):
    rows = {"file_name": FOUR, "label": list("aabb"), "split": values * 2}
    assert [row["official"] for row in read(write(tmp_path, rows, FOUR))[1].values()] == splits * 2


def test_spellings_of_an_unknown_patient_are_none(tmp_path):
    rows = {"file_name": FOUR, "label": list("aabb"), "patient": ["12.0", "Unknown", "nan", "n/a"]}
    assert [row["patient"] for row in read(write(tmp_path, rows, FOUR))[1].values()] == ["12", "", "", ""]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "Metadata.xlsx"])
def test_metadata_beside_folders_has_the_same_rules(tmp_path, name):
    rows = [{"file_name": f"{label}/{n}.png", "PatientID": f"P{n}", "diagnosis": "x"} for label in "ab" for n in "12"]
    write(tmp_path, rows, [row["file_name"] for row in rows])
    table = pd.DataFrame(rows)
    {
        "csv": lambda path: table.to_csv(path, index=False, encoding="utf-8-sig", sep=";"),
        "jsonl": lambda path: path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8"),
        "parquet": table.to_parquet,
        "xlsx": lambda path: table.to_excel(path, index=False),
    }[name.rpartition(".")[2]](tmp_path / name)
    paths = [*table["file_name"], name]
    spec, listing = read_listing(DATASETS["imagefolder"], tmp_path, [name], paths)
    assert listing.set_index("file_name")["patient"].to_dict() == {row["file_name"]: row["PatientID"] for row in rows}
    assert set(listing["label"]) == {""}  # folders are the labels; the column is named
    assert "the column diagnosis may be the label but is not used" in spec.notes[-1]
    metadata = read_metadata(DATASETS["imagefolder"], tmp_path)
    assert metadata.loc["b/2.png"].to_dict() == {"file_name": "b/2.png", "PatientID": "P2", "diagnosis": "x"}


def test_tables_beside_folders_that_are_not_read_are_named(tmp_path):
    rows = {"file": ["1.png", "2.png"], "grade": ["x", "y"]}
    write(tmp_path, rows, ["a/1.png", "b/2.png"], "grades.csv")
    spec, images = read_folders(DATASETS["imagefolder"], tmp_path)
    assert [row["label"] for row in images] == ["a", "b"]
    assert spec.notes == ("Not read: grades.csv. Only a metadata.csv is, or a table with --dataset table.",)
    write(tmp_path / "flat", rows, ["1.png", "2.png"], "grades.csv")
    with pytest.raises(MedtlError, match=r"2 images have no label.*--dataset table --data_dir .*grades.csv"):
        read_folders(DATASETS["imagefolder"], tmp_path / "flat")


def test_uncertain_labels_of_folders_are_excluded_too(tmp_path):
    rows = {"file_name": FOUR, "Edema": [-1, 1, 0, 1], "Mass": [1, 1, 0, 0]}
    write(tmp_path, rows, FOUR, "metadata.csv")
    _, images = read_folders(with_columns(DATASETS["imagefolder"], "label=Edema+Mass"), tmp_path)
    assert [row["label"] for row in images] == ["?uncertain: Edema", "Edema|Mass", "", "Edema"]


@pytest.mark.parametrize("cell", ["", "nan", "N/A", "n.a.", "<NA>", "#NV", "-", "--", "?", "missing", "not available"])
def test_cells_without_a_label_are_no_label_of_that_name(tmp_path, cell):
    file = write(tmp_path, {"file_name": FOUR, "label": ["a", cell, "b", "b"]}, FOUR)
    with pytest.raises(MedtlError, match="1 rows have no label"):
        read(file)


@pytest.mark.parametrize("cell", ["NA", "None", "unknown", "unlabeled"])
def test_labels_that_may_mean_none_are_named(tmp_path, cell):
    spec, _ = read(write(tmp_path, {"file_name": FOUR, "label": ["a", cell, "b", "b"]}, FOUR))
    assert f"t.csv: 1 of 4 images have the label {cell!r}. If it is not known what they show" in spec.notes[-1]


@pytest.mark.parametrize("cell", ["missing", "not available", "NA", "anon", "anonymised", "n.a.", "no id", "XXX", "--"])
def test_unknown_patients_are_not_one_patient(tmp_path, cell):
    rows = {"file_name": FOUR, "label": list("aabb"), "patient": [cell, "p", cell, cell]}
    assert [row["patient"] for row in read(write(tmp_path, rows, FOUR))[1].values()] == ["", "p", "", ""]


def test_a_patient_of_most_images_is_named(tmp_path):
    files = [f"{i}.png" for i in range(8)]
    rows = {"file_name": files, "label": list("aabbaabb"), "patient": ["000", "p", "q", *["000"] * 5]}
    spec, images = read(write(tmp_path, rows, files))
    assert "6 of 8 rows have the patient '000'. If that stands for unknown patients" in spec.notes[-1]
    assert images["0.png"]["patient"] == "000"


def test_an_image_is_not_its_own_mask(tmp_path):
    rows = {"file_name": FOUR, "label": list("aabb"), "mask": ["2.png", "2.png", "", ""]}
    with pytest.raises(MedtlError, match="1 images are their own masks"):
        read(write(tmp_path, rows, FOUR))


@pytest.mark.parametrize("other", ["1.png", "./1.png", "x/../1.png"])
def test_one_file_with_two_labels_is_refused(tmp_path, other):
    rows = {"file_name": [*FOUR, other], "label": list("aabbb")}
    with pytest.raises(MedtlError, match=r"1 images have rows with a different label: 1\.png \(a, b\)"):
        read(write(tmp_path, rows, FOUR))
