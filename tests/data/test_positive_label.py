"""Positive label: names that mean an absence, pairs whose names do not tell, and what the user specifies."""

import io
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from hf_medtl import DATASETS, MedtlError, Recipe, load
from hf_medtl.data.leakage import load_external
from hf_medtl.data.positive_label import choose_positive, guess_positive, is_absence
from hf_medtl.runs import preflight
from hf_medtl.runs.cross_validation import cross_validate
from hf_medtl.runs.positive_label import settle_positive_label
from tests.support.image_files import write_noise_image

# Positive / negative, as folders and tables of public datasets and of users spell them.
TOLD = """
glioma/notumor glioma/no_tumor tumor/NoTumor Parasitized/Uninfected infected/uninfected Demented/NonDemented
cancer/noncancer hemorrhage/nohemorrhage fracture/unfractured fractured/not_fractured AD/CN PD/HC ASD/TD mutant/wt
IDH_mut/IDH_wt opacity/normal malignant/benign benign/normal malignant/normal_or_benign covid/clear 1/0 01/00 1/-1
class_1/class_0 true/false yes/no +/- tumor+/tumor- unhealthy/healthy not_normal/normal abnormal/normal
unstable/stable nonunion/union uncontrolled/controlled atypical/typical patients/controls malignant/nevus
COVID/non-COVID COVID-19/Non-COVID-19 COVID19/notCOVID TB/noTB displaced/nondisplaced ruptured/unruptured
pneumonia_positive/pneumonia_negative 1_pneumonia/0_normal symptomatic/asymptomatic melanoma/other present/absent
glaucoma/non_glaucoma referable/non-referable opacity/without dr/nodr DR/No_DR amd/amd-free abnormal/brain_normal
true_positive/false_positive Tumor_Yes/Tumor_No MI/nonMI Malignant_cases/Normal_cases
detected/undetected tumor/tumorless unfavorable/favorable ungradable/gradable dead/alive Recurrence/NED
oui/non ja/nein da/ne sim/não krank/gesund Tumor/kein_Tumor mit_Fraktur/ohne_Fraktur bösartig/gutartig
auffällig/unauffällig malade/sain tumeur/sans_tumeur malin/bénin enfermo/sano tumor/sin_tumor maligno/benigno
positivo/negativo positif/négatif bolestan/zdrav tumor/bez_tumora болен/здоров патология/норма hasta/sağlıklı
肺炎/正常 患病/健康 恶性/良性 阳性/阴性 陽性/陰性
肿瘤/无肿瘤 폐렴/정상
"""


def make_folder(root, labels, number=6):
    """Write `number` images of noise for each label."""
    for k, label in enumerate(labels):
        for i in range(number):
            write_noise_image(root / label / f"{label}{i}.png", 100 * k + i)
    return root


@pytest.mark.parametrize("pair", TOLD.split())
def test_name_of_an_absence_is_negative(pair):
    positive, negative = pair.split("/")
    assert guess_positive([positive, negative]) == (positive, "names")
    assert guess_positive([negative, positive]) == (positive, "names")
    decomposed = [unicodedata.normalize("NFD", label) for label in (negative, positive)]  # as macOS has folders
    assert guess_positive(decomposed) == (decomposed[1], "names")


@pytest.mark.parametrize("pair", ["cat/dog", "left/right", "a/b", "x/y", "covid/pneumonia", "1/2", "no_a/no_b",
                                  "mass/nodule", "inflammation/necrosis", "mel/nv"])  # fmt: skip
def test_other_names_do_not_tell(pair):
    assert guess_positive(pair.split("/")) == (pair.split("/")[1], "order")


def test_words_that_only_begin_like_a_negation_are_none():
    for label in ("nodule", "necrosis", "node", "unilateral", "notch", "not normal", "unhealthy", "novel"):
        assert not is_absence(label), label


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.positive])
def test_datasets_define_what_their_names_tell(name):
    spec = DATASETS[name]
    assert guess_positive(spec.labels)[0] == spec.positive
    assert choose_positive(spec, spec.labels).positive_source == "dataset"


def test_folder_tells_how_the_positive_label_was_chosen(tmp_path, caplog):
    told = load("imagefolder", make_folder(tmp_path / "a", ("Uninfected", "Parasitized")))
    assert (told.positive, told.spec.positive_source) == ("Parasitized", "names")
    assert told.labels == ("Parasitized", "Uninfected")  # the order of the outputs, which checkpoints keep
    assert "--positive_label" not in caplog.text
    ambiguous = load("imagefolder", make_folder(tmp_path / "b", ("left", "right")))
    assert (ambiguous.positive, ambiguous.spec.positive_source) == ("right", "order")
    assert "--positive_label left or --positive_label right" in caplog.text
    caplog.clear()
    chosen = load("imagefolder", tmp_path / "b", positive="left")
    assert (chosen.positive, chosen.spec.positive_source, chosen.positive_index) == ("left", "option", 0)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_dataset_of_more_labels_of_which_two_have_images_gets_a_positive_one():
    spec = DATASETS["covid19-radiography"]
    assert choose_positive(spec, ("normal", "covid19")).positive == "covid19"
    assert choose_positive(spec, spec.labels).positive is None
    assert choose_positive(replace(spec, task="image-segmentation"), ("normal", "covid19")).positive is None


def test_wrong_positive_label_is_an_error_before_images_are_read(tmp_path, monkeypatch):
    root = make_folder(tmp_path, ("healthy", "sick"))
    monkeypatch.setattr("hf_medtl.data.loading.compute_fingerprints", lambda *_: pytest.fail("images were read"))
    with pytest.raises(MedtlError, match=r"found 'Sikc' for healthy, sick\. Did you mean 'sick'\?"):
        load("imagefolder", root, positive="Sikc")
    make_folder(tmp_path, ("odd",))
    with pytest.raises(MedtlError, match="'sick' for healthy, odd, sick"):
        load("imagefolder", root, positive="sick")


def test_wrong_positive_label_of_a_named_dataset_is_an_error_before_the_data_are_looked_for(tmp_path):
    def check(dataset, label):
        preflight.check_options(
            Recipe(
                dataset=dataset,
                positive_label=label,
                model_name_or_path="cnn",
                output_dir=str(tmp_path),
                report_to="none",
                use_cpu=True,
            )
        )

    with pytest.raises(MedtlError, match="Did you mean 'tumor'"):
        check("brain-tumor-mri", "Tumor")
    check("brain-tumor-mri", "no_tumor")
    with pytest.raises(MedtlError, match='write them as positive_label: "yes"'):
        check("imagefolder", True)


def test_external_labels_are_suggested_absence_to_absence(tmp_path):
    loaded = load("imagefolder", make_folder(tmp_path / "a", ("Uninfected", "Parasitized")))
    other = make_folder(tmp_path / "b", ("healthy", "malaria"))
    with pytest.raises(MedtlError, match="--external_labels healthy=Uninfected,malaria=Parasitized"):
        load_external(loaded, "imagefolder", other)
    external = load_external(
        loaded, "imagefolder", other, labels={"healthy": "Uninfected", "malaria": "Parasitized"}, drop_overlap=True
    )
    assert (external.positive, external.spec.positive_source) == ("Parasitized", "names")
    make_folder(tmp_path / "c", ("Uninfected", "Parasitized", "normal"))
    with pytest.raises(MedtlError, match="--external_labels normal=Uninfected"):
        load_external(loaded, "imagefolder", tmp_path / "c", drop_overlap=True)


class Terminal(io.StringIO):
    """Standard input or output at a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def ambiguous(tmp_path):
    """Return a recipe and its dataset, with labels whose names do not tell which is positive."""
    folder = make_folder(tmp_path / "data", ("left", "right"))
    recipe = Recipe(dataset="imagefolder", data_dir=str(folder), output_dir=str(tmp_path / "run"), report_to="none",
                    use_cpu=True)  # fmt: skip
    return recipe, recipe.load_data()


def test_terminal_is_asked_for_the_positive_label_and_the_recipe_keeps_it(ambiguous, monkeypatch):
    recipe, loaded = ambiguous
    assert settle_positive_label(recipe, loaded, None).positive == "right"  # nobody to ask
    monkeypatch.setattr("sys.stdin", Terminal("\nboth\n1\n"))
    monkeypatch.setattr("sys.stdout", Terminal())
    settled = settle_positive_label(recipe, loaded, None)
    assert (settled.positive, settled.spec.positive_source) == ("left", "option")
    assert "positive_label: left" in recipe.to_yaml()
    monkeypatch.setattr("sys.stdin", Terminal(""))
    with pytest.raises(MedtlError, match="--positive_label left or --positive_label right"):
        settle_positive_label(recipe.variant(positive_label=None), loaded, None)


def test_folds_ask_and_warn_once(ambiguous, monkeypatch, caplog):
    recipe = ambiguous[0].variant(folds=3)
    caplog.clear()
    cross_validate(recipe.variant(dry_run=True), lambda single: single.load_data())
    assert caplog.text.count("--positive_label left or --positive_label right") == 1
    monkeypatch.setattr("sys.stdin", Terminal("left\n"))
    monkeypatch.setattr("sys.stdout", Terminal())
    chosen = []

    def stop(single):
        chosen.append(single.load_data().positive)
        raise MedtlError("one is enough")

    with pytest.raises(MedtlError, match="one is enough"):
        cross_validate(recipe, stop)
    assert chosen == ["left"]
    assert "positive_label: left" in recipe.of_fold(1).to_yaml()
    fold = Path(str(recipe.output_dir)) / "fold-0"
    fold.mkdir(parents=True, exist_ok=True)
    (fold / "config.json").write_text('{"positive_label": "left"}', encoding="utf-8")
    with pytest.raises(MedtlError, match="one is enough"):  # it is not asked again
        cross_validate(ambiguous[0].variant(folds=3), stop)
    assert chosen == ["left", "left"]


def test_resumed_run_and_repeated_split_keep_the_positive_label(ambiguous, tmp_path):
    recipe, loaded = ambiguous
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"positive_label": "left"}', encoding="utf-8")
    settled = settle_positive_label(recipe, loaded, str(checkpoint))
    assert (settled.positive, settled.spec.positive_source) == ("left", "model")
    assert "positive_label: left" in recipe.to_yaml()
    with pytest.raises(MedtlError, match="--positive_label is right, but left in "):
        settle_positive_label(recipe.variant(positive_label="right"), loaded, str(checkpoint))
    recipe = recipe.variant(positive_label=None, splits=str(checkpoint / "splits.csv"))
    assert settle_positive_label(recipe, loaded, None).positive == "left"
    (checkpoint / "config.json").write_text('{"positive_label": "cat"}', encoding="utf-8")
    recipe = recipe.variant(positive_label=None)
    assert settle_positive_label(recipe, loaded, str(checkpoint)).positive == "right"
