"""Datasets of the chest."""

from hf_medtl.data.dataset_spec import SPLIT_FOLDERS, DatasetSpec

PERSON = r"(person\d+|(?:NORMAL2-)?IM-\d+)"  # Kermany's file names: person12_virus_45, NORMAL2-IM-0095-0001
KERMANY = (
    "Kermany, Zhang, Goldbaum. Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification. "
    "Mendeley Data v2, 2018, doi:10.17632/rscbjbr9sj.2."
)
CHILDREN = "The patients are children aged one to five years from a single hospital (Guangzhou)."

ROWS = (
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
)
