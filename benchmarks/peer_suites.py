"""Test suites of transformers for models and image processors, run on the classes whose code travels with weights.

    pip install parameterized
    python benchmarks/peer_suites.py TRANSFORMERS [arguments of pytest]

TRANSFORMERS is a checkout of the installed version, or its source distribution (`pip download --no-deps --no-binary
:all: transformers==VERSION`, unpacked). That lacks helpers of other suites, for which empty ones are written into it.
With RUN_SLOW=1 in the environment the slow tests run, too.
"""

import importlib
import os
import subprocess
import sys
import unittest
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto import modeling_auto

from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.encoder_classifier import EncoderConfig, EncoderForImageClassification
from hf_medtl.models.processor import MedicalImageProcessor
from hf_medtl.models.smp import SmpConfig, SmpForSemanticSegmentation

if __name__ == "__main__":
    os.environ["PEER_CHECKOUT"] = str(Path(sys.argv[1]).resolve())
    os.chdir(sys.argv[1])  # files of the suites are named from there
    settings = ["-c", "pyproject.toml", "-p", "no:cacheprovider", "-q", "--tb=short", "-W", "ignore"]
    sys.exit(pytest.main([str(Path(__file__).resolve()), *settings, *sys.argv[2:]]))

CHECKOUT = Path(os.environ["PEER_CHECKOUT"])
STANDINS = {  # for files that the source distribution lacks
    "tests/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin: ...",
    "tests/generation/test_utils.py": "class GenerationTesterMixin: ...",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}",
    "utils/fetch_hub_objects_for_ci.py": "url_to_local_path = str",
}
for name, text in STANDINS.items():
    if not (CHECKOUT / name).exists():
        (CHECKOUT / name).parent.mkdir(exist_ok=True)
        (CHECKOUT / name).write_text(text, encoding="utf-8")
sys.path.insert(0, str(CHECKOUT))
modeling = importlib.import_module("tests.test_modeling_common")
processing = importlib.import_module("tests.test_image_processing_common")
ConfigTester = importlib.import_module("tests.test_configuration_common").ConfigTester

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
processing.load_test_image = lambda url: IMAGE  # as large as the photograph that it would download

# The suites give labels, and more, to the classes that are listed here.
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES |= {
    "medical_cnn": "MedicalCnnForImageClassification", "medical_encoder": "EncoderForImageClassification",
}  # fmt: skip
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES |= {"medical_smp": "SmpForSemanticSegmentation"}

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": 32,
       "patch_size": 8}  # fmt: skip


class Tester:
    """What the suites ask about a model: its configuration, its inputs and the shapes in it."""

    batch_size, num_channels, is_training = 3, 3, True

    def __init__(self, make_config, image_size=32, maps=2, heads=None, tokens=None, width=None):
        self.get_config, self.image_size = make_config, image_size
        self.num_hidden_layers, self.num_attention_heads, self.number_of_maps = 2, heads, maps
        self.seq_length, self.hidden_size = tokens, width

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.num_channels, self.image_size, self.image_size]
        return self.get_config(), {"pixel_values": modeling.floats_tensor(shape)}


class ModelTests(modeling.ModelTesterMixin):
    """The tests of models, without those that suites of stock image models skip, for the same reason."""

    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def test_config(self):
        config_class = type(self.model_tester.get_config())
        ConfigTester(self, config_class, False, list(self.settings), **self.settings).run_common_tests()

    @unittest.skip("images have no inputs_embeds")
    def test_inputs_embeds(self): ...

    @unittest.skip("no feed-forward chunking")
    def test_feed_forward_chunking(self): ...

    def test_model_get_set_embeddings(self):
        """As in the suites of stock image models: the embeddings are a layer of any class."""
        for model_class in self.all_model_classes:
            model, layer = model_class(self.model_tester.get_config()), torch.nn.Linear(10, 10)
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            model.set_input_embeddings(layer)
            self.assertIs(model.get_input_embeddings(), layer)
            self.assertIsNone(model.get_output_embeddings())


class Convolutional(ModelTests):
    """Hidden states are maps of features, and there are no attentions and no embeddings."""

    has_attentions = False
    test_missing_keys = False  # the base is no model of its own, which could be saved

    def test_hidden_states_output(self):
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            by_argument = model_class(config).eval()(**inputs, output_hidden_states=True).hidden_states
            config.output_hidden_states = True
            by_config = model_class(config).eval()(**inputs).hidden_states
            self.assertEqual([x.shape for x in by_argument], [x.shape for x in by_config])
            self.assertEqual(len(by_config), self.model_tester.number_of_maps)
            size = [self.model_tester.image_size // 2] * 2
            self.assertListEqual(list(by_config[0].shape[-2:]), size)

    @unittest.skip("no embeddings")
    def test_model_get_set_embeddings(self): ...


class CnnTest(Convolutional, unittest.TestCase):
    all_model_classes = (MedicalCnnForImageClassification,)

    def setUp(self):
        self.settings = {"widths": [8, 16], "num_channels": 1}
        self.model_tester = Tester(lambda: MedicalCnnConfig(widths=(8, 16), image_size=32))


class SmpTest(Convolutional, unittest.TestCase):
    all_model_classes = (SmpForSemanticSegmentation,)

    def setUp(self):
        small = {"decoder_channels": [16, 16, 8, 8, 8]}
        self.settings = {"architecture": "fpn", "encoder_name": "resnet18"}
        self.model_tester = Tester(
            lambda: SmpConfig("unet", "tu-test_efficientnet", small, num_labels=3), image_size=64, maps=5
        )

    @unittest.skip("timm draws weights where this test can't seed them; of TimmWrapper it skips them itself")
    def test_can_init_all_missing_weights(self): ...


class EncoderTest(ModelTests):
    all_model_classes = (EncoderForImageClassification,)
    model_type, special_tokens = "", 0

    def setUp(self):
        self.settings = {"pooling": "mean"}
        encoder = {"model_type": self.model_type, **VIT}
        tokens = 16 + self.special_tokens
        self.model_tester = Tester(lambda: EncoderConfig(encoder), heads=4, tokens=tokens, width=32)


class DinoTest(EncoderTest, unittest.TestCase):
    model_type, special_tokens = "dinov3_vit", 1
    test_all_params_have_gradient = False  # the mask token is of pretraining alone


class SiglipTest(EncoderTest, unittest.TestCase):
    model_type = "siglip_vision_model"


class ClipTest(EncoderTest, unittest.TestCase):
    model_type, special_tokens = "clip_vision_model", 1


class ProcessorTester(processing.ImageProcessingTester):
    """What the suites ask about the processor, which is one class, whatever the backend."""

    def __init__(self, parent, **kwargs):
        kwargs = {"size": {"height": 18, "width": 20}, "num_labels": 3, "image_mean": [0.4, 0.5, 0.6],
                  "image_std": [0.2, 0.3, 0.4], "do_resize": True, "do_normalize": True, **kwargs}  # fmt: skip
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": MedicalImageProcessor, "pil": MedicalImageProcessor}


class ProcessorTest(
    processing.ImageProcessingTestMixin, processing.PostProcessSemanticSegmentationTestMixin, unittest.TestCase
):
    image_processor_tester_class = ProcessorTester
    test_cast_dtype = True

    def test_pil_can_run_without_torchvision(self):
        """Give the script of the test `trust_remote_code`, without which no class of ours is loaded by its folder."""
        run = subprocess.run

        def run_trusting(command, **more):
            script = command[2].replace('backend="pil"', 'backend="pil", trust_remote_code=True')
            return run([*command[:2], script, *command[3:]], **more)

        with patch.object(subprocess, "run", run_trusting):
            super().test_pil_can_run_without_torchvision()

    @unittest.skip("images become RGB, whatever the setting: models for medical images have three channels")
    def test_call_numpy_4_channels(self): ...
