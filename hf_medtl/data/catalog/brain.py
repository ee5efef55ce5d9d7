"""Datasets of the brain."""

from hf_medtl.data.dataset_spec import DatasetSpec

ROWS = (
    DatasetSpec(
        name="brain-tumor-mri",
        title="Brain MRI Images for Brain Tumor Detection",
        pattern=r"(?P<label>yes|no)/[^/]+",
        values={"no": "no_tumor", "yes": "tumor"},
        example="yes/Y1.jpg and no/1 no.jpeg",
        labels=("no_tumor", "tumor"),
        positive="tumor",
        roots=("", "brain_tumor_dataset/"),
        kaggle="navoneel/brain-mri-images-for-brain-tumor-detection",
        counts={"no_tumor": 98, "tumor": 155},
        citation="Navoneel Chakrabarty. Brain MRI Images for Brain Tumor Detection. Kaggle, 2019.",
        problems=(
            "No patient identifiers: different slices of one patient can be in different splits.",
            "Slices of mixed sequences and planes collected from the web, without a stated reference standard; one "
            "(yes/Y248.JPG) is not a brain but a CT slice of an abdomen.",
            "51 of the 253 images are exact, near or cropped copies of another one; copies stay in the same split.",
            "Image size and colour mode differ between the classes and can be exploited as shortcuts.",
        ),
    ),
)
