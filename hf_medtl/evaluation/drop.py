"""How much lower metrics are on other pictures than on a model's own test split."""

import math
from collections.abc import Mapping
from typing import Any

Metrics = Mapping[str, Mapping[str, Any]]


def drops(inside: Metrics, outside: Metrics) -> dict[str, dict[str, float | None]]:
    """Value inside minus value outside of each metric, with 95 % limits; the two samples have no picture in common.

    The limits come from those of the two values (MOVER: Newcombe 1998, Stat Med 17:873-890, method 10; Zou & Donner
    2008, Stat Med 27:1693-1702), so neither needs its predictions, and a difference of two values without a single
    error has limits, too, which resampling would put at 0. They are those of these models and pictures: how others of
    the same training would fall is not in them.

    Args:
        inside, outside: `metrics` of results.json: name -> value, low, high, and perhaps n_labels.

    Returns:
        name -> value, low, high for metrics that both have; the limits are null where either has none, all is null
        where a value is, or where the values are means over different numbers of labels.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, there in outside.items():
        here = inside.get(name)
        if here is None:
            continue
        if None in (here["value"], there["value"]) or here.get("n_labels") != there.get("n_labels"):
            found[name] = {"value": None, "low": None, "high": None}
            continue
        value = here["value"] - there["value"]
        low = high = None
        if None not in (here["low"], here["high"], there["low"], there["high"]):
            low = value - math.hypot(here["value"] - here["low"], there["high"] - there["value"])
            high = value + math.hypot(here["high"] - here["value"], there["value"] - there["low"])
        found[name] = {"value": value, "low": low, "high": high}
    return found
