"""Dataset specifications: `DATASETS` has one entry for each supported dataset, read by `loading.py`."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

PERSON = r"(person\d+|(?:NORMAL2-)?IM-\d+)"  # Kermany's file names: person12_virus_45, NORMAL2-IM-0095-0001
KERMANY = (
    "Kermany, Zhang, Goldbaum. Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification. "
    "Mendeley Data v2, 2018, doi:10.17632/rscbjbr9sj.2."
)
CHILDREN = "The patients are children aged one to five years from a single hospital (Guangzhou)."
SYNTHETIC = "Synthetic images: results say nothing about patients."
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class DatasetSpec:
    """Description of a dataset: file layout, labels, masks, patients, origin and known problems.

    Attributes:
        name: Key in `DATASETS` and value of `--dataset`.
        title: Human-readable name.
        example: Example paths that match the layout, for error messages.
        task: `transformers` pipeline task of a model trained on the dataset.
        reader: File layout: "paths" match a pattern, "folders" are discovered, "table" lists files (`readers.py`).
        labels: Labels in the order of the model's outputs; () if they are discovered in the data.
        several: True for multilabel data, where an image has any number of the labels, including none.
        values: Regular expression of a label in the data -> label; the first match wins.
        positive: Label whose probability is thresholded; None with more than two labels or multilabel data.
        positive_source: How it was chosen: a key of `positive_label.SOURCES`.
        pattern: Regular expression of an image's POSIX path below a root. Group `label` is the label; optional groups
            `split` and `source` are the official split and the source.
        roots: Folders below the data folder to search. Only the first one with the most labels is read, because
            archives often contain the same images twice.
        official: Split name in the archive -> our split name, if the official split is worth keeping.
        patient: Regular expression of a file name whose first group is the patient; None if patients are unknown.
        mask_shows: Name of the structure inside the masks; "mask" if unknown.
        masks: Patterns of mask paths below the data folder with the image's {folder}, {name} and {stem}; the first
            one that exists is used. Parts separated by | (such as left and right lung) form one mask.
        table: Table file for the "table" reader; None if the user specifies it.
        columns: Our column (file_name, label, patient, source, mask, split) -> column of the table, or format string
            over its columns such as `images/{filename}`. Labels can be columns of 0 and 1 whose names they are, joined
            by +: `Edema+Mass`.
        uncertain: What -1 (uncertain) means in columns of 0 and 1: "exclude" (the image), "negative" or "positive".
        keep: Table column -> regular expression; rows that do not match are dropped.
        copies_of: Datasets whose images it contains too small or too cropped to be recognized. Neither dataset may be
            used to test a model of the other.
        kaggle: `owner/name` on Kaggle.
        phantom: Kind of synthetic images (`phantoms.py`); None for real data.
        counts: Label -> number of files in the complete dataset.
        licence: Licence identifier as on the Hub, or "unknown".
        citation: Reference to cite.
        problems: Known limitations that affect how results should be interpreted.
        notes: How the reader understood a table, as sentences for the plan: columns, merged rows, uncertain labels.
    """

    name: str
    title: str
    example: str
    task: str = "image-classification"
    reader: str = "paths"
    labels: tuple[str, ...] = ()
    several: bool = False
    values: dict[str, str] = field(default_factory=dict)
    positive: str | None = None
    positive_source: str = "dataset"
    pattern: str = ""
    roots: tuple[str, ...] = ("",)
    official: dict[str, str] = field(default_factory=dict)
    patient: str | None = None
    mask_shows: str = "mask"
    masks: tuple[str, ...] = ()
    table: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    uncertain: str = "exclude"
    keep: dict[str, str] = field(default_factory=dict)
    copies_of: tuple[str, ...] = ()
    kaggle: str | None = None
    phantom: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    licence: str = "unknown"
    citation: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def multilabel(self) -> bool:
        """True if an image can have any number of the labels; the constructor field is called `several`."""
        return self.several

    @property
    def is_segmentation(self) -> bool:
        """True if a model learns the masks: every image then needs one, and labels only describe the image."""
        return self.task == "image-segmentation"

    @property
    def id(self) -> str:
        """Dataset name in model cards: the Kaggle slug, or `name` if there is none."""
        return self.kaggle or self.name

    @property
    def hub_id(self) -> str:
        """Repository id on the Hub; "" for datasets from elsewhere."""
        return self.name if "/" in self.name else ""

    @property
    def url(self) -> str:
        """Web page of the dataset; "" for a user's own data."""
        if self.kaggle:
            return f"https://www.kaggle.com/datasets/{self.kaggle}"
        return f"https://huggingface.co/datasets/{self.hub_id}" if self.hub_id else ""

    def map_label(self, value: str) -> str | None:
        """Return the label for `value`, as the data spell it; None if it matches no label.

        Multilabel values give the matching labels in the order of `labels`, joined by |, or "" if none matches.
        """
        if self.several:
            mapped = {self._map_one(part) for part in split_labels(value)}
            return "|".join(label for label in self.labels if label in mapped)
        return self._map_one(value)

    def _map_one(self, value: str) -> str | None:
        return next((label for rule, label in self.values.items() if re.fullmatch(rule, value)), None)

    def parse_patient(self, path: str) -> str:
        """Return the patient encoded in a file name; "" if unknown."""
        match = re.match(self.patient, PurePosixPath(path).name) if self.patient else None
        return match.group(1) if match else ""


def split_labels(cell: str) -> tuple[str, ...]:
    """Return the labels in a cell of the column `label`: one, or any number separated by |."""
    return tuple(dict.fromkeys(part for part in cell.split("|") if part))


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
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
        DatasetSpec(
            name="chest-xray-pneumonia",
            title="Chest X-Ray Images (Pneumonia)",
            pattern=r"(?P<split>train|val|test)/(?P<label>NORMAL|PNEUMONIA)/[^/]+",
            values={"NORMAL": "normal", "PNEUMONIA": "pneumonia"},
            example="chest_xray/train/NORMAL/IM-0115-0001.jpeg",
            labels=("normal", "pneumonia"),
            positive="pneumonia",
            roots=("chest_xray/", "", "chest_xray/chest_xray/"),
            official={"train": "train", "val": "train", "test": "test"},
            patient=PERSON,
            kaggle="paultimothymooney/chest-xray-pneumonia",
            counts={"normal": 1583, "pneumonia": 4273},
            licence="cc-by-4.0",
            citation=KERMANY,
            problems=(
                CHILDREN,
                "170 person numbers occur in both official splits; their training images are excluded.",
                "The official validation split has only 16 images; ours is sampled from train by patient instead.",
                "Prevalence is 74 % in train and 62.5 % in test: accuracy at a threshold of 0.5 suffers.",
                "Colour mode and image size differ between the classes and can be exploited as shortcuts.",
            ),
        ),
        DatasetSpec(
            name="chest-xray-pneumonia-3",
            title="Chest X-Ray Images (Pneumonia), normal, bacterial or viral",
            pattern=r"(?P<split>train|val|test)/(?:NORMAL|PNEUMONIA)/"
            r"(?:person\d+_)?(?P<label>IM|NORMAL2|bacteria|virus)[-_][^/]+",
            values={"IM": "normal", "NORMAL2": "normal", "bacteria": "bacterial", "virus": "viral"},
            example="chest_xray/train/PNEUMONIA/person1_bacteria_2.jpeg",
            labels=("normal", "bacterial", "viral"),
            roots=("chest_xray/", "", "chest_xray/chest_xray/"),
            official={"train": "train", "val": "train", "test": "test"},
            patient=PERSON,
            kaggle="paultimothymooney/chest-xray-pneumonia",
            counts={"normal": 1583, "bacterial": 2780, "viral": 1493},
            licence="cc-by-4.0",
            citation=KERMANY,
            problems=(
                CHILDREN,
                "Bacterial or viral is taken from the file names; how it was established is not documented.",
            ),
        ),
        DatasetSpec(
            name="covid19-radiography",
            title="COVID-19 Radiography Database",
            pattern=r"(?P<label>COVID|Lung_Opacity|Normal|NORMAL|Viral Pneumonia)/(?:images/)?[^/]+",
            values={
                "Normal": "normal",
                "NORMAL": "normal",
                "COVID": "covid19",
                "Lung_Opacity": "lung_opacity",
                "Viral Pneumonia": "viral_pneumonia",
            },
            example="COVID-19_Radiography_Dataset/COVID/images/COVID-1.png",
            labels=("normal", "covid19", "lung_opacity", "viral_pneumonia"),
            roots=(
                "COVID-19_Radiography_Dataset/",
                "",
                "COVID-19_Radiography_Dataset/COVID-19_Radiography_Dataset/",
                "COVID-19 Radiography Database/",
            ),
            mask_shows="lungs",
            masks=("{folder}/../masks/{name}",),
            kaggle="tawsifurrahman/covid19-radiography-database",
            counts={"normal": 10192, "covid19": 3616, "lung_opacity": 6012, "viral_pneumonia": 1345},
            citation="Chowdhury et al., IEEE Access 8, 2020; Rahman et al., Comput Biol Med 132, 2021.",
            problems=(
                "The classes come from different hospitals and age groups: all viral pneumonias and 1,341 normals are "
                "the children of chest-xray-pneumonia, the rest are adults. A model can learn the source instead of "
                "the disease.",
                "No patient identifiers; 259 images are near copies of another one, most of them COVID-19.",
                "Not external to chest-xray-pneumonia (2,686 shared images) or to covid-chestxray-dataset (268).",
            ),
        ),
        DatasetSpec(
            name="chest-xray-covid19-pneumonia",
            title="Chest X-ray (Covid-19 & Pneumonia)",
            pattern=r"(?P<split>train|test)/(?P<label>COVID19|NORMAL|PNEUMONIA)/[^/]+",
            values={"NORMAL": "normal", "COVID19": "covid19", "PNEUMONIA": "pneumonia"},
            example="Data/train/COVID19/COVID19(0).jpg",
            labels=("normal", "covid19", "pneumonia"),
            roots=("Data/", ""),
            official={"train": "train", "test": "test"},
            kaggle="prashant268/chest-xray-covid19-pneumonia",
            counts={"normal": 1583, "covid19": 576, "pneumonia": 4273},
            problems=(
                "The official split cuts by file number; 8 of 227 traceable COVID-19 patients are in both splits.",
                "All normal and pneumonia images are those of chest-xray-pneumonia with a new split: never test a "
                "model of one dataset on the other.",
                "File size and resolution differ between the classes and can be exploited as shortcuts.",
            ),
        ),
        DatasetSpec(
            name="lung-masks",
            title="Chest X-ray Masks and Labels (Shenzhen and Montgomery)",
            pattern=r"(?:Montgomery/|MontgomerySet/|ChinaSet_AllFiles/)*CXR_png/"
            r"(?P<source>CHNCXR|MCUCXR)_\d+_(?P<label>[01])\.[^/]+",
            values={"0": "normal", "1": "tuberculosis"},
            example="data/Lung Segmentation/CXR_png/CHNCXR_0001_0.png",
            labels=("normal", "tuberculosis"),
            positive="tuberculosis",
            roots=("data/Lung Segmentation/", "Lung Segmentation/", ""),
            patient=r"((?:CHN|MCU)CXR_\d+)",
            mask_shows="lungs",
            masks=(
                "{folder}/../masks/{stem}_mask.png",
                "{folder}/../masks/{stem}.png",
                "{folder}/../ManualMask/leftMask/{name}|{folder}/../ManualMask/rightMask/{name}",
                "mask/{stem}_mask.png",
                "mask/mask/{stem}_mask.png",
            ),
            kaggle="nikhilpandey360/chest-xray-masks-and-labels",
            counts={"normal": 406, "tuberculosis": 394},
            licence="cc-by-nc-sa-4.0",
            citation="Jaeger et al., Quant Imaging Med Surg 4(6), 2014; Candemir et al., IEEE TMI 33(2), 2014.",
            problems=(
                "Two hospitals with different devices: report results for each source.",
                "96 of the Shenzhen images have no mask.",
            ),
        ),
        DatasetSpec(
            name="pulmonary-edema",
            title="Pulmonary edema on chest radiographs",
            reader="folders",
            example="train/edema/1.png and train/normal/2.png",
            labels=("no_edema", "edema"),
            values={r"(?i)(?!no|without).*o?edema.*": "edema", r".*": "no_edema"},
            positive="edema",
            official=SPLIT_FOLDERS,
            patient=r"(\d{8})_\d{3}\.png",  # file names of NIH ChestX-ray14
            kaggle="vishalvrk/pulumnary-edema",
            problems=(
                "The layout of the download is not documented: labels and splits are taken from its folder names.",
                "How edema was established and who the patients are is not documented.",
            ),
        ),
        DatasetSpec(
            name="covid-chestxray",
            title="COVID-19 image data collection",
            reader="table",
            example="metadata.csv and images/",
            labels=("normal", "covid19", "pneumonia"),
            values={
                "No Finding": "normal",
                r"(?:Pneumonia/Viral/)?COVID-19(?:, ARDS)?": "covid19",
                r"Pneumonia.*|Pneumocystis|Streptococcus|Klebsiella|Legionella|E\.Coli|Varicella|Lipoid|Influenza|SARS"
                r"|MERS.*|Mycoplasma.*|Chlamydophila|Aspergillosis|Nocardia|Herpes ?|H1N1|Staphylococcus": "pneumonia",
            },
            mask_shows="lungs",
            masks=("masks_v7labs/{stem}.png", "masks_v7labs/{name}"),
            table="metadata.csv",
            columns={"file_name": "images/{filename}", "label": "{finding}", "patient": "{patientid}"},
            keep={"modality": "X-ray", "view": "PA|AP.*"},
            licence="different for each image",
            citation="Cohen et al. COVID-19 Image Data Collection: Prospective Predictions Are the Future. 2020, "
            "arXiv:2006.11988. https://github.com/ieee8023/covid-chestxray-dataset",
            problems=(
                "Collected from publications and websites, so the images were selected for being worth publishing.",
                "Not external to covid19-radiography (268 shared images) or to chest-xray-covid19-pneumonia (374).",
                "Each image has its own licence, or none.",
                "Images with findings other than COVID-19, pneumonia or none are excluded.",
            ),
        ),
        DatasetSpec(
            name="medmnist",
            title="MedMNIST",
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
}
