"""Datasets of the breast."""

from hf_medtl.data.dataset_spec import DatasetSpec

ROWS = (
    DatasetSpec(
        name="busi",
        title="Breast Ultrasound Images (BUSI)",
        public=True,
        pattern=r"(?P<label>normal|benign|malignant)/(?![^/]*_mask)[^/]+",
        values={name: name for name in ("normal", "benign", "malignant")},
        example="Dataset_BUSI_with_GT/benign/benign (1).png and benign (1)_mask.png",
        labels=("normal", "benign", "malignant"),
        roots=("Dataset_BUSI_with_GT/", "", "Dataset_BUSI/Dataset_BUSI_with_GT/", "Dataset_BUSI/"),
        mask_shows="lesion",
        masks=(  # the first whose files all exist: an image can have up to three lesions
            "{folder}/{stem}_mask.png|{folder}/{stem}_mask_1.png|{folder}/{stem}_mask_2.png",
            "{folder}/{stem}_mask.png|{folder}/{stem}_mask_1.png",
            "{folder}/{stem}_mask.png",
        ),
        kaggle="aryashah2k/breast-ultrasound-images-dataset",
        # https://github.com/dataset-ninja/breast-ultasound-images, which says CC0; others say CC BY 4.0.
        counts={"normal": 133, "benign": 437, "malignant": 210},
        citation="Al-Dhabyani et al. Dataset of breast ultrasound images. Data in Brief 28, 2020, "
        "doi:10.1016/j.dib.2019.104863.",
        problems=(
            "780 images of 600 patients of a single hospital (Baheya, Cairo), without patient identifiers.",
            "Copies, lesions that are in both benign and malignant, and images of the axilla are documented "
            "(Pawłowska et al., Data in Brief 48, 2023, doi:10.1016/j.dib.2023.109247).",
            "Callipers, arrows and text in the images can be exploited as shortcuts.",
            "The masks of normal images are empty.",
        ),
    ),
)
