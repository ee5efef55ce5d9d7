"""Datasets of the user, MedMNIST and phantoms: the labels, if not the layout, are found in the data."""

from hf_medtl.data.dataset_spec import SPLIT_FOLDERS, DatasetSpec

SYNTHETIC = "Synthetic images: results say nothing about patients."

ROWS = (
    DatasetSpec(
        name="medmnist",
        title="MedMNIST",
        public=True,
        reader="folders",
        example="pneumoniamnist_224.npz",
        official=SPLIT_FOLDERS,
        copies_of=(
            *("chest-xray-pneumonia", "chest-xray-pneumonia-3"),
            *("covid19-radiography", "chest-xray-covid19-pneumonia"),
        ),
        citation="Yang et al. MedMNIST v2. Scientific Data 10, 2023, doi:10.1038/s41597-022-01721-8.",
        problems=(
            "No patient identifiers, and images too small for every copy to be recognized.",
            "PneumoniaMNIST is a cropped and downscaled chest-xray-pneumonia: never test one on the other.",
        ),
    ),
    DatasetSpec(
        name="imagefolder",
        title="Folder of images",
        reader="folders",
        example="LABEL/image.png or train/LABEL/image.png, with or without a metadata.csv",
        official=SPLIT_FOLDERS,
    ),
    DatasetSpec(
        name="table",
        title="Table of images",
        reader="table",
        example="a CSV or Parquet file with the columns file_name, label (multiple labels separated by |) and "
        "optionally patient, source, mask, split",
        official=SPLIT_FOLDERS,
    ),
    DatasetSpec(
        name="brain-phantoms",
        title="Synthetic brain slices (hf_medtl phantoms)",
        public=True,
        pattern=r"(?P<label>no_lesion|lesion)/[^/]+",
        values={"no_lesion": "no_lesion", "lesion": "lesion"},
        example="lesion/brain-0001_0.png",
        labels=("no_lesion", "lesion"),
        positive="lesion",
        patient=r"(.+)_\d+\.png",
        mask_shows="lesion",
        masks=("{folder}/../masks/{name}",),
        phantom="brain",
        licence="cc0-1.0",
        problems=(SYNTHETIC,),
    ),
    DatasetSpec(
        name="chest-phantoms",
        title="Synthetic chest radiographs (hf_medtl phantoms)",
        public=True,
        pattern=r"(?P<label>normal|opacity)/[^/]+",
        values={"normal": "normal", "opacity": "opacity"},
        example="opacity/chest-0001_0.png",
        labels=("normal", "opacity"),
        positive="opacity",
        patient=r"(.+)_\d+\.png",
        mask_shows="lungs",
        masks=("{folder}/../masks/{name}",),
        phantom="chest",
        licence="cc0-1.0",
        problems=(SYNTHETIC,),
    ),
)
