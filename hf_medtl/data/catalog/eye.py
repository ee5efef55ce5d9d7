"""Datasets of the eye."""

from hf_medtl.data.dataset_spec import DatasetSpec

APTOS_GRADES = {"0": "no_dr", "1": "mild", "2": "moderate", "3": "severe", "4": "proliferative"}

ROWS = (
    DatasetSpec(
        name="kermany-oct",
        title="Labeled Optical Coherence Tomography Images (OCT2017)",
        public=True,
        pattern=r"(?P<split>train|val|test)/(?P<label>CNV|DME|DRUSEN|NORMAL)/[^/]+",
        values={name: name.lower() for name in ("NORMAL", "CNV", "DME", "DRUSEN")},
        example="OCT2017/train/CNV/CNV-1016042-1.jpeg",
        labels=("normal", "cnv", "dme", "drusen"),
        roots=("OCT2017/", "OCT2017 /", "oct2017/OCT2017 /", "CellData/OCT/", "OCT/", ""),
        official={"train": "train", "val": "train", "test": "test"},
        patient=r"[A-Z]+-(\d+)-\d+",
        kaggle="paultimothymooney/kermany2018",
        # Train 26,315, 37,205, 11,348 and 8,616; test 242 and val 8 of each. The licence also in medmnist/info.py of
        # https://github.com/MedMNIST/MedMNIST.
        counts={"normal": 26565, "cnv": 37455, "dme": 11598, "drusen": 8866},
        licence="cc-by-4.0",
        citation="Kermany et al. Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning. "
        "Cell 172(5), 2018; Mendeley Data v2 and v3, doi:10.17632/rscbjbr9sj.",
        problems=(
            "Patients are in both official splits, which inflates published results (Tampu et al., Scientific Data 9, "
            "2022, doi:10.1038/s41597-022-01618-6); their training images are excluded.",
            "The official validation split has only 32 images; ours is sampled from train by patient instead.",
            "The official test split has as many images of each label, unlike train: see the prevalence.",
            "The counts are those of Kaggle; version 3 on Mendeley has more normal images (51,140 in train) and a test "
            "split of 1,000.",
        ),
    ),
    DatasetSpec(
        name="aptos2019",
        title="APTOS 2019 Blindness Detection (diabetic retinopathy)",
        public=True,
        reader="table",
        example="train.csv and train_images/000c1434d8d7.png",
        labels=tuple(APTOS_GRADES.values()),
        values=APTOS_GRADES,
        table=r"train\.csv",
        columns={"file_name": "train_images/{id_code}", "label": "{diagnosis}"},
        homepage="https://www.kaggle.com/competitions/aptos2019-blindness-detection",
        # https://github.com/AtharvaPatil-Data/Diabetic-Retinopathy-Cascade-Classification, Data/README.md
        counts=dict(zip(APTOS_GRADES.values(), (1805, 370, 999, 193, 295), strict=True)),
        licence="other",
        citation="Asia Pacific Tele-Ophthalmology Society. APTOS 2019 Blindness Detection. Kaggle, 2019.",
        problems=(
            "No patient identifiers: both eyes of one patient can be in different splits.",
            "Graded by one clinician per image; the page of the competition warns of noise in images and grades.",
            "Images are from multiple clinics and cameras: where these differ between the grades, they can be "
            "exploited as shortcuts.",
            "Grades are read as labels without an order. The competition's test images have no public grades.",
        ),
    ),
)
