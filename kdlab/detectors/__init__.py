"""One file a detector family: how it is configured, and how methods see into it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import kdlab.mmcv_ops  # isort: skip # noqa: F401 - before anything imports mmdet
import mmdet.models  # noqa: F401 - fills the registry
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from kdlab import plugins
from kdlab.detectors import exact_places, kept_priors, registered
from kdlab.detectors.base import Adapter
from kdlab.detectors.mmdet_config import from_json
from kdlab.detectors.sizing import set_classes
from kdlab.errors import UsageError
from kdlab.jobs.spec import ModelSpec

init_default_scope("mmdet")
__path__ += plugins.of("detectors")
# a line for every weight that is drawn helps nobody
MMLogger.get_instance("kdlab", log_level="WARNING")


def family(detector: str) -> type[Adapter]:
    """The adapter class of a detector family, by the name of its file."""
    module = importlib.import_module(f"kdlab.detectors.{detector}")
    return module.FAMILY  # type: ignore[no-any-return]


def adapt(model: nn.Module) -> Adapter:
    """How methods see an mmdet detector, by its head; of an unknown head they see the neck's maps alone.

    From here on its places are fp32 also where it computes in 16 bits, and its priors are kept.
    """
    exact_places.keep(model)
    kept_priors.keep(model)
    return next((one for one in families() if one.fits(model)), Adapter)(model)


@cache
def families() -> tuple[type[Adapter], ...]:
    """The adapter classes of all families."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def build(spec: ModelSpec, num_classes: int) -> nn.Module:
    """The mmdet model of a detector with freshly drawn weights.

    Args:
        spec: the detector and its sizes.
        num_classes: K of the dataset.
    """
    model = assembled(spec, config(spec, num_classes).model)
    model.init_weights()
    return model


def assembled(spec: ModelSpec, model: ConfigDict) -> nn.Module:
    """The mmdet model of a detector's config: of names without a registry mmengine imports its own alone."""
    own = {str(value) for _, value in registered.leaves(spec.config or {}, "")}
    with registered.importing_only(own):
        return MODELS.build(model)


def config(spec: ModelSpec, num_classes: int) -> Config:
    """The mmdet config of a detector, with `overrides` applied.

    It is the family's, resized as the settings say, or the one that a plan read from an mmdet config file and
    put into the settings, with the dataset's number of classes.

    Raises:
        UsageError: an override would import, run or load something.
    """
    if spec.config is not None:
        for module in spec.imports:
            importlib.import_module(module)
        cfg = Config({"model": from_json(spec.config)})
        set_classes(cfg.model, num_classes)
    else:
        cfg = Config({"model": family(spec.detector).config(spec, num_classes)})
    if spec.overrides and (faults := registered.faults(spec.overrides)):
        raise UsageError(faults=faults)
    cfg.merge_from_dict(spec.overrides)
    return cfg
