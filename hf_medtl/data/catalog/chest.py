"""Datasets of the chest."""

from hf_medtl.data.dataset_spec import SPLIT_FOLDERS, DatasetSpec

PERSON = r"(person\d+|(?:NORMAL2-)?IM-\d+)"  # Kermany's file names: person12_virus_45, NORMAL2-IM-0095-0001
KERMANY = (
    "Kermany, Zhang, Goldbaum. Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification. "
    "Mendeley Data v2, 2018, doi:10.17632/rscbjbr9sj.2."
)
CHILDREN = "The patients are children aged one to five years from a single hospital (Guangzhou)."
NIH_LABELS = {
    name: name.lower()
    for name in (
        *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
        *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
    )
}
# Without its 14th observation, No Finding: an image without a label has none.
CHEXPERT_LABELS = {
    name: name.lower().replace(" ", "_")
    for name in (
        *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
        *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
        "Support Devices",
    )
}
RSNA = (
    "Shih et al. Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations of "
    "Possible Pneumonia. Radiology: Artificial Intelligence 1(1), 2019, doi:10.1148/ryai.2019180041."
)
RSNA_PAGE = "https://www.kaggle.com/competitions/rsna-pneumonia-detection-challenge"
RSNA_PROBLEMS = (
    "patientId numbers the images, not the patients: images of one patient of NIH ChestX-ray14 (11,452 patients, by "
    "the mapping that RSNA publishes) can be in different splits.",
    "All images are from NIH ChestX-ray14, and covid19-radiography has some of them: neither is external to it.",
    "Pneumonia means a lung opacity that radiologists took for one, without clinical data; the others are normal or "
    "have another abnormality.",
)

ROWS = (
    DatasetSpec(
        name="chest-xray-pneumonia",
        title="Chest X-Ray Images (Pneumonia)",
        public=True,
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
        public=True,
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
        public=True,
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
        public=True,
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
        public=True,
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
        # Of the Shenzhen masks, https://github.com/FoolmanChen/Separate-Right-and-Left-Side-Lung-Masks-for-Shenzhen-
        # Hospital-Chest-X-ray-Set; https://github.com/dataset-ninja/chest-xray says CC0 of all.
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
        public=True,
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
        public=True,
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
        name="nih-chestxray14",
        title="NIH ChestX-ray14",
        public=True,
        reader="table",
        example="Data_Entry_2017.csv, images_001/images/00000001_000.png, train_val_list.txt and test_list.txt",
        labels=tuple(NIH_LABELS.values()),
        several=True,
        values=NIH_LABELS,
        table=r"Data_Entry_2017(_v2020)?\.csv|sample_labels\.csv",
        columns={"file_name": "{Image Index}", "label": "{Finding Labels}", "patient": "{Patient ID}"},
        split_lists={"train": "train_val_list.txt", "test": "test_list.txt"},
        official={"train": "train", "test": "test"},
        kaggle="nih-chest-xrays/data",
        # https://huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset; 86,524 images are for training.
        counts=dict(
            zip(
                NIH_LABELS.values(),
                (11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227),
                strict=True,
            )
        ),
        images=112120,
        licence="cc0-1.0",  # of the Kaggle page; the NIH asks to be named, with its link and the paper
        citation="Wang et al. ChestX-ray8: Hospital-Scale Chest X-Ray Database and Benchmarks on Weakly-Supervised "
        "Classification and Localization of Common Thorax Diseases. CVPR 2017.",
        problems=(
            "The labels were mined from reports by text processing, with an accuracy that its authors expect to be "
            "above 90 %, while a radiologist who looked at 700 images found less (Oakden-Rayner 2019, Exploring large "
            "scale public medical image datasets): a label's absence means that the report does not mention it.",
            "112,120 images of 30,805 patients of one hospital; many are follow-ups of treated patients, so that "
            "drains and tubes can be exploited as shortcuts.",
            "Never external to sets with images from here: rsna-pneumonia, covid19-radiography and pulmonary-edema "
            "among them.",
        ),
    ),
    DatasetSpec(
        name="chexpert",
        title="CheXpert",
        public=True,
        reader="table",
        example="train.csv, valid.csv and train/patient00001/study1/view1_frontal.jpg (CheXpert-v1.0-small)",
        labels=tuple(CHEXPERT_LABELS.values()),
        several=True,
        values=CHEXPERT_LABELS,
        table=r"(train|valid)\.csv",
        columns={"file_name": "{Path}", "label": "+".join(CHEXPERT_LABELS), "source": "{Frontal/Lateral}"},
        patient=r"(patient\d+)/study\d+/",
        # The labels of the official validation split are those of three radiologists, and patients are its own.
        official={"train": "train", "validation": "test"},
        homepage="https://stanfordmlgroup.github.io/competitions/chexpert/",
        images=223648,  # 223,414 in train.csv and 234 in valid.csv; 224,316 with the test images
        licence="other",
        citation="Irvin et al. CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert "
        "Comparison. AAAI 2019, arXiv:1901.07031.",
        problems=(
            "The labels of the training images were mined from reports by text processing; a blank, which means that "
            "the report does not mention it, is read as absent.",
            "Images with an uncertain label (-1) are excluded, which is a selection.",
            "The test split is the official validation split (234 images of 200 patients, labelled by three "
            "radiologists): intervals are wide, and some labels hardly occur. That of the competition (668 images of "
            "500 patients, https://github.com/rajpurkarlab/cheXlocalize) is not read.",
            "Frontal and lateral images are together: to use frontal ones only, --sources Frontal.",
            "223,414 training images of 64,540 patients of one hospital (Stanford).",
        ),
    ),
    DatasetSpec(
        name="rsna-pneumonia",
        title="RSNA Pneumonia Detection Challenge",
        public=True,
        reader="table",
        example="stage_2_train_labels.csv and stage_2_train_images/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm",
        labels=("no_pneumonia", "pneumonia"),
        values={"0": "no_pneumonia", "1": "pneumonia"},
        positive="pneumonia",
        table=r"stage_2_train_labels\.csv",
        columns={"file_name": "stage_2_train_images/{patientId}.dcm", "label": "{Target}"},
        homepage=RSNA_PAGE,
        counts={"no_pneumonia": 20672, "pneumonia": 6012},
        licence="other",
        citation=RSNA,
        problems=RSNA_PROBLEMS,
    ),
    DatasetSpec(
        name="rsna-pneumonia-3",
        title="RSNA Pneumonia Detection Challenge, normal, another abnormality or lung opacity",
        public=True,
        reader="table",
        example="stage_2_detailed_class_info.csv and stage_2_train_images/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm",
        labels=("normal", "not_normal", "lung_opacity"),
        values={
            "Normal": "normal",
            "No Lung Opacity / Not Normal": "not_normal",
            "Lung Opacity": "lung_opacity",
        },
        table=r"stage_2_detailed_class_info\.csv",
        columns={"file_name": "stage_2_train_images/{patientId}.dcm", "label": "{class}"},
        homepage=RSNA_PAGE,
        counts={"normal": 8851, "not_normal": 11821, "lung_opacity": 6012},
        licence="other",
        citation=RSNA,
        problems=RSNA_PROBLEMS,
    ),
)
