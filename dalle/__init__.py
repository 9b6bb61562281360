"""DALL-E 1 from scratch. `from dalle import DALLE, DiscreteVAE, CLIP`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.models.clip.model import CLIP
    from dalle.models.dvae.model import DiscreteVAE
    from dalle.models.transformer.model import Transformer
    from dalle.sampling.export import push_to_hub
    from dalle.sampling.pipeline import DALLE
    from dalle.sampling.results import Result
    from dalle.sampling.sampling_config import SamplingConfig

__all__ = ["CLIP", "DALLE", "DiscreteVAE", "Result", "SamplingConfig", "Transformer", "push_to_hub"]

_HOMES = {
    "CLIP": "dalle.models.clip.model",
    "DALLE": "dalle.sampling.pipeline",
    "DiscreteVAE": "dalle.models.dvae.model",
    "Result": "dalle.sampling.results",
    "SamplingConfig": "dalle.sampling.sampling_config",
    "Transformer": "dalle.models.transformer.model",
    "push_to_hub": "dalle.sampling.export",
}


def __getattr__(name: str) -> Any:
    # lazy imports, so that `import dalle` alone does not load torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
