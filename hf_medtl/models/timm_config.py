"""Configurations of timm models, which the Auto classes of `transformers` read without opening or calling anything.

`transformers` hands `model_args` and names on to timm, which opens a `checkpoint_path` and a `local-dir:`, and calls
the Hub for a `hf-hub:`. TRAP: both classes have the names of those they replace, by which Auto classes find models.
"""

from typing import Any

import transformers

from hf_medtl.models.untrusted import check_config


class TimmWrapperConfig(transformers.TimmWrapperConfig):
    """Configuration of a timm classifier whose `architecture` is a name and whose `model_args` are sizes and rates.

    timm writes the number of classes into `model_args`, too, where `transformers` would pass it on a second time.

    Raises:
        MedtlError: it asks for anything else.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        asked = {"architecture": self.architecture, "model_args": self.model_args}
        check_config(asked | {"num_labels": kwargs.get("num_labels")}, "The model")
        if self.model_args:
            self.model_args = {key: value for key, value in self.model_args.items() if key != "num_classes"}
        super().__post_init__(**kwargs)


class TimmBackboneConfig(transformers.TimmBackboneConfig):
    """Configuration of a timm encoder inside another model, whose `backbone` is a name.

    Raises:
        MedtlError: it asks for anything else.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        check_config({"backbone_config": {"backbone": self.backbone}}, "The model")
        super().__post_init__(**kwargs)
