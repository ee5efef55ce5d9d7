"""The data sets: each is a row of DATASETS, read by `load.py`."""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

PERSON = r"(person\d+|(?:NORMAL2-)?IM-\d+)"  # Kermany's file names: person12_virus_45, NORMAL2-IM-0095-0001
KERMANY = (
    "Kermany, Zhang, Goldbaum. Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification. "
    "Mendeley Data v2, 2018, doi:10.17632/rscbjbr9sj.2."
)
CHILDREN = "Children of one to five years from one hospital (Guangzhou)."


@dataclass(frozen=True)
class DatasetSpec:
    """What there is to know about a data set.

    Attributes:
        name: key in DATASETS and value of `--dataset`.
        title: what people call it.
        task: name of the `transformers` pipeline that a model of it serves.
        example: paths that fit, for error messages.
        reader: how its files lie: "paths" fit a pattern, "folders" are discovered, "table" lists them (`readers.py`).
        labels: in the order of the model's outputs; () where they are those that are found.
        several: whether a picture can have any number of the labels, none included.
        values: regular expression of what the data call a label -> label; the first that matches.
        positive: the label whose probability the threshold is put on; None where there are more than two, or several.
        pattern: regular expression of a picture's path below a root (with /), whose group `label` says the label and
            whose groups `split` and `source`, where there are any, the official split and the source.
        roots: places below the data folder to look, in this order. The first with a picture that fits is the only one
            read: archives often hold the same pictures twice.
        official: the archive's split -> ours, where the set has an official one that is worth keeping.
        patient: regular expression on the file's name whose first group is the patient; None where nobody knows.
        mask_shows: what the inside of a mask is, as a label; "mask" where nobody says.
        masks: paths of a picture's mask below the data folder, the first that exists: {folder}, {name}, {stem} of the
            picture; several with | between them, such as a left and a right lung, are one mask.
        table: file with the rows, for the reader "table"; None where the user names it.
        columns: ours (file_name, label, patient, source, mask, split) -> format string over the table's.
        keep: the table's column -> regular expression; rows that don't fit are not meant.
        copies_of: data sets whose pictures it holds too small or too cropped to be recognised: never to be tested on
            one another.
        kaggle: `owner/name` on Kaggle.
        phantom: kind of generated pictures (`phantoms.py`), where the data set is synthetic.
        counts: label -> number of files in the complete set.
        licence, citation, url: as far as known.
        problems: what a reader of the numbers must know about the data.
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
    pattern: str = ""
    roots: tuple[str, ...] = ("",)
    official: dict[str, str] = field(default_factory=dict)
    patient: str | None = None
    mask_shows: str = "mask"
    masks: tuple[str, ...] = ()
    table: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    copies_of: tuple[str, ...] = ()
    kaggle: str | None = None
    phantom: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    licence: str = "unknown"
    citation: str = ""
    problems: tuple[str, ...] = ()

    @property
    def of_masks(self) -> bool:
        """Whether a model learns the masks: a picture needs one then, and its labels only tell the kind of picture."""
        return self.task == "image-segmentation"

    @property
    def id(self) -> str:
        """What model cards call the data set: its Kaggle slug, or its name where it has none."""
        return self.kaggle or self.name

    def label(self, found: str) -> str | None:
        """The label that the data call `found`; None if they mean none of ours.

        With several a picture: those of ours, in their order, with | between them; "" if there is none.
        """
        if self.several:
            told = {self._one(part) for part in labels_of(found)}
            return "|".join(label for label in self.labels if label in told)
        return self._one(found)

    def _one(self, found: str) -> str | None:
        return next((label for rule, label in self.values.items() if re.fullmatch(rule, found)), None)

    def patient_of(self, path: str) -> str:
        """The patient whom a file's name tells; "" where nobody knows."""
        match = re.match(self.patient, PurePosixPath(path).name) if self.patient else None
        return match.group(1) if match else ""

    @property
    def hub_id(self) -> str:
        """Its id on the Hub; "" of a set that is elsewhere."""
        return self.name if "/" in self.name else ""

    @property
    def url(self) -> str:
        """Where to read about it and download it by hand; "" of a set of one's own."""
        if self.kaggle:
            return f"https://www.kaggle.com/datasets/{self.kaggle}"
        return f"https://huggingface.co/datasets/{self.hub_id}" if self.hub_id else ""


def labels_of(cell: str) -> tuple[str, ...]:
    """The labels of a cell of the column `label`: one, or with | between them none or several."""
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
                "No patient identifiers: two different slices of one patient can be on both sides of the split.",
                "Web-collected slices of mixed sequences and planes, without a stated reference standard; one, "
                "yes/Y248.JPG, is not a brain but a CT slice of an abdomen.",
                "51 of the 253 pictures are exact, near or cropped copies of another; copies stay on one side.",
                "Size and colour mode differ between the classes and can serve as a shortcut.",
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
                "170 person numbers are in the official train and test; their training pictures are left out here.",
                "The official validation split has 16 pictures; validation is drawn from train by patient instead.",
                "Prevalence is 74 % in train and 62.5 % in test: accuracy at 0.5 suffers, thresholds matter.",
                "Colour mode and size differ between the classes and can serve as a shortcut.",
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
            problems=(CHILDREN, "Bacterial or viral is read from file names; how it was established is not stated."),
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
                "The classes come from different hospitals and ages: all viral pneumonias and 1,341 normals are the "
                "children of chest-xray-pneumonia, the rest adults. A model can tell the source, not the disease.",
                "No patient identifiers; 259 pictures are near copies of another one, most of them COVID-19.",
                "Not external to chest-xray-pneumonia (2,686 shared pictures) nor to covid-chestxray-dataset (268).",
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
                "A cut by number is the official split; 8 of 227 traceable COVID-19 patients are on both sides of it.",
                "Normal and pneumonia are all of chest-xray-pneumonia, split anew: never test one on the other.",
                "File size and resolution differ by class and can serve as a shortcut.",
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
                "Two hospitals with different devices: report results by source.",
                "96 of the Shenzhen pictures have no mask.",
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
            official={"train": "train", "validation": "validation", "test": "test"},
            patient=r"(\d{8})_\d{3}\.png",  # as NIH ChestX-ray14 names its pictures
            kaggle="vishalvrk/pulumnary-edema",
            problems=(
                "The layout of the download is not documented: labels and splits are those that its folders name.",
                "How edema was established, and who the patients are, is not stated.",
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
            licence="of each picture its own",
            citation="Cohen et al. COVID-19 Image Data Collection: Prospective Predictions Are the Future. 2020, "
            "arXiv:2006.11988. https://github.com/ieee8023/covid-chestxray-dataset",
            problems=(
                "Collected from publications and websites: pictures were chosen because they were worth publishing.",
                "Not external to covid19-radiography (268 shared pictures) nor to chest-xray-covid19-pneumonia (374).",
                "Each picture has a licence of its own, or none.",
                "Findings other than COVID-19, pneumonia and none are left out.",
            ),
        ),
        DatasetSpec(
            name="medmnist",
            title="MedMNIST",
            reader="folders",
            example="pneumoniamnist_224.npz",
            official={"train": "train", "validation": "validation", "test": "test"},
            copies_of=(
                *("chest-xray-pneumonia", "chest-xray-pneumonia-3"),
                *("covid19-radiography", "chest-xray-covid19-pneumonia"),
            ),
            citation="Yang et al. MedMNIST v2. Scientific Data 10, 2023, doi:10.1038/s41597-022-01721-8.",
            problems=(
                "No patient identifiers, and small pictures: not all copies can be recognised.",
                "PneumoniaMNIST is chest-xray-pneumonia, cropped and shrunk: no test for a model of that.",
            ),
        ),
        DatasetSpec(
            name="imagefolder",
            title="Folder of pictures",
            reader="folders",
            example="LABEL/picture.png or train/LABEL/picture.png, with or without a metadata.csv",
            official={"train": "train", "validation": "validation", "test": "test"},
        ),
        DatasetSpec(
            name="table",
            title="Table of pictures",
            reader="table",
            example="a CSV or Parquet file: columns file_name, label (of several with | between them) and any of "
            "patient, source, mask, split",
            official={"train": "train", "validation": "validation", "test": "test"},
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
            problems=("Synthetic: says nothing about patients.",),
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
            problems=("Synthetic: says nothing about patients.",),
        ),
    )
}
