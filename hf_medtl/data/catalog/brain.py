"""Datasets of the brain."""

from hf_medtl.data.dataset_spec import DatasetSpec

ROWS = (
    DatasetSpec(
        name="brain-tumor-mri",
        title="Brain MRI Images for Brain Tumor Detection",
        public=True,
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
        name="brain-tumor-mri-4",
        title="Brain Tumor MRI Dataset (four classes)",
        public=True,
        pattern=r"(?P<split>Training|Testing)/(?P<label>glioma|meningioma|notumor|pituitary)/[^/]+",
        values={"notumor": "no_tumor", "glioma": "glioma", "meningioma": "meningioma", "pituitary": "pituitary"},
        example="Training/glioma/Tr-gl_0010.jpg and Testing/notumor/Te-no_0010.jpg",
        labels=("no_tumor", "glioma", "meningioma", "pituitary"),
        roots=("", "brain-tumor-mri-dataset/", "Brain Tumor MRI Dataset/"),
        official={"Training": "train", "Testing": "test"},
        kaggle="masoudnickparvar/brain-tumor-mri-dataset",
        # Public code of 2026 that reads this page: 5,600 and 1,600. Before: 5,712 and 1,311, in the same folders
        # (1321, 1339, 1595, 1457 and 300, 306, 405, 300; https://github.com/begumarici/BrainTumorDetection-DeepLearning).
        counts={"no_tumor": 1800, "glioma": 1800, "meningioma": 1800, "pituitary": 1800},
        citation="Msoud Nickparvar. Brain Tumor MRI Dataset. Kaggle, 2021, doi:10.34740/kaggle/dsv/2645886 (the first "
        "version, of 7,023 images).",
        problems=(
            "Two versions are in use: what Kaggle has now, 7,200 images (1,800 of each label), and the one of most "
            "publications, 7,023 images (2,000 no_tumor, 1,621 glioma, 1,645 meningioma, 1,757 pituitary). Say which.",
            "No patient identifiers, and slices of one patient can be in both official splits: the tumours of figshare "
            "alone (Cheng 2017, https://figshare.com/articles/dataset/brain_tumor_dataset/1512427) are 3,064 slices of "
            "233 patients.",
            "Put together from figshare (tumours), SARTAJ and Br35H (all images without a tumour): a model can learn "
            "the source instead of the tumour. SARTAJ is known for wrong labels.",
            "Never external to br35h, nor to other sets with images of figshare, SARTAJ or Br35H.",
            "The licence that its page states is not that of its sources.",
        ),
    ),
    DatasetSpec(
        name="br35h",
        title="Br35H: Brain Tumor Detection 2020",
        public=True,
        # The folders pred (images without a label) and Br35H-Mask-RCNN (tumours of yes, again) are left out.
        pattern=r"(?P<label>yes|no)/[^/]+",
        values={"no": "no_tumor", "yes": "tumor"},
        example="yes/y0.jpg and no/no0.jpg",
        labels=("no_tumor", "tumor"),
        positive="tumor",
        roots=("", "Br35H/", "brain-tumor-detection/"),
        kaggle="ahmedhamada0/brain-tumor-detection",
        counts={"no_tumor": 1500, "tumor": 1500},  # https://github.com/gfnnnb/MM-NeuroOnco, docs/data_sources.md: 3,000
        citation="Ahmed Hamada. Br35H: Brain Tumor Detection 2020. Kaggle, 2020.",
        problems=(
            "No patient identifiers: different slices of one patient can be in different splits.",
            "Images of mixed origin without a stated reference standard; an audit shows which are copies.",
            "Not external to brain-tumor-mri-4, whose images without a tumour are from here, and likely not to "
            "brain-tumor-mri.",
        ),
    ),
)
