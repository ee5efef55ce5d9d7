"""The data sets: each is a row of DATASETS, read by `load.py`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetSpec:
    """What there is to know about a data set.

    Attributes:
        name: key in DATASETS and value of `--dataset`.
        title: what people call it.
        task: name of the `transformers` pipeline that a model of it serves.
        folders: folder below a root -> label.
        labels: in the order of the model's outputs.
        positive: the label whose probability the threshold is put on; None where there are more than two.
        roots: places below the data folder to look for `folders`, in this order. The first that fits is the only one
            read: archives often hold the same pictures twice.
        patient: regular expression on the file's name whose first group is the patient; None where nobody knows.
        kaggle: `owner/name` on Kaggle.
        phantom: kind of generated pictures (`phantoms.py`), where the data set is synthetic.
        counts: label -> number of files in the complete set.
        licence, citation, url: as far as known.
        problems: what a reader of the numbers must know about the data.
    """

    name: str
    title: str
    task: str
    folders: dict[str, str]
    labels: tuple[str, ...]
    positive: str | None = None
    roots: tuple[str, ...] = (".",)
    patient: str | None = None
    kaggle: str | None = None
    phantom: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    licence: str = "unknown"
    citation: str = ""
    url: str = ""
    problems: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """What model cards call the data set: its Kaggle slug, or its name where it has none."""
        return self.kaggle or self.name

    @property
    def positive_index(self) -> int | None:
        """Output of the positive label."""
        return None if self.positive is None else self.labels.index(self.positive)


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="brain-tumor-mri",
            title="Brain MRI Images for Brain Tumor Detection",
            task="image-classification",
            folders={"no": "no_tumor", "yes": "tumor"},
            labels=("no_tumor", "tumor"),
            positive="tumor",
            roots=(".", "brain_tumor_dataset"),
            kaggle="navoneel/brain-mri-images-for-brain-tumor-detection",
            counts={"no_tumor": 98, "tumor": 155},
            citation="Navoneel Chakrabarty. Brain MRI Images for Brain Tumor Detection. Kaggle, 2019.",
            url="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
            problems=(
                "No patient identifiers: two different slices of one patient can be on both sides of the split.",
                "Web-collected slices of mixed sequences and planes, without a stated reference standard.",
                "44 of the 253 pictures are exact or near copies of another one; copies stay on one side of the split.",
                "Size and colour mode differ between the classes and can serve as a shortcut.",
            ),
        ),
        DatasetSpec(
            name="brain-phantoms",
            title="Synthetic brain slices (hf_medtl phantoms)",
            task="image-classification",
            folders={"no_lesion": "no_lesion", "lesion": "lesion"},
            labels=("no_lesion", "lesion"),
            positive="lesion",
            patient=r"^(.+)_\d+\.png$",
            phantom="brain",
            licence="cc0-1.0",
            problems=("Synthetic: says nothing about patients.",),
        ),
        DatasetSpec(
            name="chest-phantoms",
            title="Synthetic chest radiographs (hf_medtl phantoms)",
            task="image-classification",
            folders={"normal": "normal", "opacity": "opacity"},
            labels=("normal", "opacity"),
            positive="opacity",
            patient=r"^(.+)_\d+\.png$",
            phantom="chest",
            licence="cc0-1.0",
            problems=("Synthetic: says nothing about patients.",),
        ),
    )
}
