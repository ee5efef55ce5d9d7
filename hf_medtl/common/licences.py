"""Licences: what each allows, and which ones a derived model may have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT = "apache-2.0"  # of a model whose sources restrict nothing
UNKNOWN = "unknown"
# Identifiers of the Hub, https://huggingface.co/docs/hub/repositories-licenses.
_NAMES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
HUB_NAMES = frozenset(_NAMES.split())


@dataclass(frozen=True)
class Licence:
    """What a licence allows.

    Attributes:
        name: Its name.
        link: Page with its text.
        commercial: It allows commercial use.
        share_alike: What is made from the work keeps its terms: share-alike, copyleft, or restrictions of use that
            have to be passed on.
        derivatives: It allows to publish what is made from the work, such as a fine-tuned model.
        redistribution: It allows to pass on the work itself.
    """

    name: str
    link: str
    commercial: bool = True
    share_alike: bool = False
    derivatives: bool = True
    redistribution: bool = True

    @property
    def restrictions(self) -> int:
        """The number of things that it forbids or demands."""
        return sum((not self.commercial, self.share_alike, not self.derivatives, not self.redistribution))

    def describe(self) -> str:
        """Return a phrase such as "no commercial use, same terms for derivatives"."""
        parts = {
            "commercial use allowed": self.commercial,
            "no commercial use": not self.commercial,
            "derivatives keep its terms": self.share_alike,
            "no derivatives": not self.derivatives,
            "no redistribution": not self.redistribution,
        }
        return ", ".join(text for text, holds in parts.items() if holds)


_SPDX = "https://spdx.org/licenses/{}.html"
_LLAMA = "https://www.llama.com/{}/license/"
_CC = {
    f"cc-{kind}-{version}": Licence(
        f"CC {kind.upper()} {version}",
        f"https://creativecommons.org/licenses/{kind}/{version}/",
        commercial="nc" not in kind,
        share_alike="sa" in kind,
        derivatives="nd" not in kind,
    )
    for kind in ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
    for version in ("2.0", "2.5", "3.0", "4.0")
}
_PERMISSIVE = {
    "afl-3.0": "AFL-3.0", "apache-2.0": "Apache-2.0", "artistic-2.0": "Artistic-2.0", "bsd": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause", "bsd-3-clause-clear": "BSD-3-Clause-Clear",
    "bsl-1.0": "BSL-1.0", "cc0-1.0": "CC0-1.0", "cdla-permissive-1.0": "CDLA-Permissive-1.0",
    "cdla-permissive-2.0": "CDLA-Permissive-2.0", "ecl-2.0": "ECL-2.0", "etalab-2.0": "etalab-2.0", "isc": "ISC",
    "mit": "MIT", "ncsa": "NCSA", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0", "postgresql": "PostgreSQL",
    "unlicense": "Unlicense", "wtfpl": "WTFPL", "zlib": "Zlib",
}  # fmt: skip
_COPYLEFT = {
    "agpl-3.0": "AGPL-3.0-only", "cdla-sharing-1.0": "CDLA-Sharing-1.0", "epl-1.0": "EPL-1.0", "epl-2.0": "EPL-2.0",
    "eupl-1.1": "EUPL-1.1", "eupl-1.2": "EUPL-1.2", "gpl": "GPL-3.0-only", "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only", "lgpl": "LGPL-3.0-only", "lgpl-2.1": "LGPL-2.1-only", "lgpl-3.0": "LGPL-3.0-only",
    "mpl-2.0": "MPL-2.0", "ms-pl": "MS-PL", "odbl": "ODbL-1.0", "osl-3.0": "OSL-3.0",
}  # fmt: skip
_OWN_TERMS = {  # commercial use allowed, but with restrictions that have to be passed on
    "bigcode-openrail-m": ("BigCode OpenRAIL-M", "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement"),
    "bigscience-bloom-rail-1.0": ("BigScience RAIL 1.0", "https://huggingface.co/spaces/bigscience/license"),
    "bigscience-openrail-m": ("BigScience OpenRAIL-M", "https://www.licenses.ai/blog/2022/8/26/bigscience-open-rail-m-license"),
    "creativeml-openrail-m": ("CreativeML OpenRAIL-M", "https://huggingface.co/spaces/CompVis/stable-diffusion-license"),
    "dinov3-license": ("DINOv3 License", "https://ai.meta.com/resources/models-and-libraries/dinov3-license"),
    "gemma": ("Gemma Terms of Use", "https://ai.google.dev/gemma/terms"),
    "health-ai-developer-foundations": ("Health AI Developer Foundations Terms of Use",
                                        "https://developers.google.com/health-ai-developer-foundations/terms"),
    "llama2": ("Llama 2 Community License", "https://ai.meta.com/llama/license/"),
    "llama3": ("Llama 3 Community License", _LLAMA.format("llama3")),
    "llama3.1": ("Llama 3.1 Community License", _LLAMA.format("llama3_1")),
    "llama3.2": ("Llama 3.2 Community License", _LLAMA.format("llama3_2")),
    "llama3.3": ("Llama 3.3 Community License", _LLAMA.format("llama3_3")),
    "llama4": ("Llama 4 Community License", _LLAMA.format("llama4")),
    "openrail": ("OpenRAIL", "https://www.licenses.ai/"),
    "openrail++": ("OpenRAIL++", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"),
}  # fmt: skip
LICENCES: dict[str, Licence] = {
    **{key: Licence(name, _SPDX.format(name)) for key, name in _PERMISSIVE.items()},
    **{key: Licence(name, _SPDX.format(name), share_alike=True) for key, name in _COPYLEFT.items()},
    **_CC,
    **{key: Licence(name, link, share_alike=True) for key, (name, link) in _OWN_TERMS.items()},
    "fair-noncommercial-research-license": Licence(
        "FAIR Noncommercial Research License",
        "https://huggingface.co/facebook/fair-noncommercial-research-license/blob/main/LICENSE",
        commercial=False,
        share_alike=True,
    ),
    "msrla": Licence(
        "Microsoft Research License Terms",
        "https://huggingface.co/microsoft/rad-dino-maira-2/blob/main/LICENSE",
        commercial=False,
        share_alike=True,
    ),
    "physionet-credentialed": Licence(
        "PhysioNet Credentialed Health Data License 1.5.0",
        "https://physionet.org/about/licenses/physionet-credentialed-health-data-license-150/",
        redistribution=False,
    ),
}
_ALIASES = {
    "cc0": "cc0-1.0",
    "dinov3": "dinov3-license",
    "hai-def": "health-ai-developer-foundations",
    "msr-la": "msrla",
}


@dataclass(frozen=True)
class Source:
    """A work from which a model is made.

    Attributes:
        title: What it is, such as "the base model google/vit-base-patch16-224".
        licence: Licence as its owner states it; "" if none is stated.
        link: Page with its text; "" if none is stated.
    """

    title: str
    licence: str
    link: str = ""

    @property
    def terms(self) -> Licence | None:
        """What the licence allows; None if that is not known."""
        return LICENCES.get(normalise(self.licence))


def normalise(licence: str) -> str:
    """Return the key of a licence in LICENCES if it has one: `CC BY-NC 4.0` becomes `cc-by-nc-4.0`."""
    key = "-".join(licence.lower().replace("_", " ").split())
    latest = f"{key}-4.0"  # Creative Commons without a version
    return latest if latest in LICENCES else _ALIASES.get(key, key)


def inherit(sources: Sequence[Source]) -> str:
    """Return the licence of what is made from sources: the strictest of theirs, or DEFAULT if none restricts anything.

    Returns:
        A key of LICENCES; UNKNOWN if the terms of a source are, or if no licence keeps those of all.
    """
    if any(source.terms is None for source in sources):
        return UNKNOWN
    keys = {normalise(source.licence) for source in sources}
    strict = sorted((key for key in keys if LICENCES[key].restrictions), key=_strictness, reverse=True)
    fitting = (key for key in strict if not laxer_than(key, sources))
    return next(fitting, UNKNOWN) if strict else DEFAULT


def _strictness(key: str) -> tuple[int, str]:
    return LICENCES[key].restrictions, key


def laxer_than(licence: str, sources: Sequence[Source]) -> list[Source]:
    """Return the sources whose licence allows less than this one, or whose terms it does not keep.

    Args:
        licence: Key of LICENCES, or another name, which is not known to keep the terms of any licence.
        sources: Those whose terms are not known are passed over.
    """
    chosen = LICENCES.get(licence)
    return [
        source
        for source in sources
        if (terms := source.terms) is not None
        and terms.restrictions
        and not _keeps(licence, normalise(source.licence))
        and (chosen is None or terms.share_alike or _allows_more(chosen, terms))
    ]


def _keeps(licence: str, terms: str) -> bool:
    """Return True if a licence is that of the source, or a later version of the same of Creative Commons."""
    (kind, _, version), (other, _, before) = licence.rpartition("-"), terms.rpartition("-")
    return licence == terms or (licence in _CC and kind == other and version >= before)


def _allows_more(chosen: Licence, terms: Licence) -> bool:
    permissions = ("commercial", "derivatives", "redistribution")
    return any(getattr(chosen, name) and not getattr(terms, name) for name in permissions)


def card_metadata(licence: str, sources: Sequence[Source] = ()) -> dict[str, Any]:
    """Return the licence as the front matter of a card on the Hub states it.

    Args:
        licence: Identifier of the Hub, key of LICENCES, or a name.
        sources: Those that may have a link to the text of the licence.

    Returns:
        license; license_name and license_link, too, where the Hub has no identifier.
    """
    if licence in HUB_NAMES - {"other"}:
        return {"license": licence}
    if licence == "other":  # the terms of a source, if they have a name
        unlisted = (source for source in sources if source.terms is None)
        licence = next((source.licence for source in unlisted if source.licence not in ("", UNKNOWN, "other")), "")
    link = next((source.link for source in sources if source.link and _same(source.licence, licence)), "")
    if not link and licence in LICENCES:
        link = LICENCES[licence].link
    fields = {"license": "other", "license_name": licence, "license_link": link}
    return {key: value for key, value in fields.items() if value}


def _same(one: str, other: str) -> bool:
    return normalise(one) == normalise(other)


def stated_licence(metadata: Any) -> tuple[str, str]:
    """Return the licence of a card and the link to its text, "" if there is none.

    Args:
        metadata: Front matter of the card, as a dict.
    """
    if not isinstance(metadata, dict):
        return "", ""
    licence, name, link = (metadata.get(key) for key in ("license", "license_name", "license_link"))
    stated = name if name and licence in (None, "other") else licence
    text = ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")
    return text, str(link or "")


def read_licence(card: Path) -> tuple[str, str]:
    """Return what `stated_licence` does of a README.md; two empty texts if it can't be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return stated_licence(metadata_load(card))
    except (OSError, ValueError, YAMLError):
        return "", ""
