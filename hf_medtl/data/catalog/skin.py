"""Datasets of the skin."""

from hf_medtl.data.dataset_spec import DatasetSpec

HAM10000_LABELS = {
    "akiec": "actinic_keratosis",
    "bcc": "basal_cell_carcinoma",
    "bkl": "benign_keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular_lesion",
}

ROWS = (
    DatasetSpec(
        name="ham10000",
        title="HAM10000 (training images of ISIC 2018)",
        public=True,
        reader="table",
        example="HAM10000_metadata.csv, HAM10000_images_part_1/ISIC_0024306.jpg and HAM10000_images_part_2/",
        labels=tuple(HAM10000_LABELS.values()),
        values=HAM10000_LABELS,
        table=r"HAM10000_metadata\.(csv|tab)",
        columns={"file_name": "{image_id}", "label": "{dx}", "patient": "{lesion_id}"},
        mask_shows="lesion",
        masks=(
            "{folder}/../HAM10000_segmentations_lesion_tschandl/{stem}_segmentation.png",
            "HAM10000_segmentations_lesion_tschandl/{stem}_segmentation.png",
        ),
        kaggle="kmader/skin-cancer-mnist-ham10000",
        # https://doi.org/10.7910/DVN/DBW86T; the licence also in medmnist/info.py of https://github.com/MedMNIST/MedMNIST.
        counts=dict(zip(HAM10000_LABELS.values(), (327, 514, 1099, 115, 1113, 6705, 142), strict=True)),
        licence="cc-by-nc-4.0",
        citation="Tschandl, Rosendahl, Kittler. The HAM10000 dataset, a large collection of multi-source dermatoscopic "
        "images of common pigmented skin lesions. Scientific Data 5, 2018, doi:10.1038/sdata.2018.161.",
        problems=(
            "10,015 images of 7,470 lesions. Images of one lesion stay in one split; patients, who can have several "
            "lesions, are unknown.",
            "4,675 of the 10,015 labels are not confirmed by histopathology (column dx_type); 4,207 of these are nevi.",
            "Rulers, hairs, ink and dark corners can be exploited as shortcuts; dark skin is rare.",
            "Never external to other sets of the ISIC archive, which contain its images.",
        ),
    ),
)
