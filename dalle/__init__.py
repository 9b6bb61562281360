"""DALL-E 1 from scratch. `from dalle import DALLE, DiscreteVAE, CLIP`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.models.clip.model import CLIP
    from dalle.models.dvae.model import DiscreteVAE
    from dalle.sampling.export import push_to_hub
    from dalle.sampling.pipeline import DALLE
    from dalle.sampling.sampling_config import SamplingConfig

__all__ = ["CLIP", "DALLE", "DiscreteVAE", "SamplingConfig", "push_to_hub"]

_HOMES = {
    "CLIP": "dalle.models.clip.model",
    "DALLE": "dalle.sampling.pipeline",
    "DiscreteVAE": "dalle.models.dvae.model",
    "SamplingConfig": "dalle.sampling.sampling_config",
    "push_to_hub": "dalle.sampling.export",
}


def __getattr__(name: str) -> Any:
    # lazy imports, so that `import dalle` alone does not load torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
