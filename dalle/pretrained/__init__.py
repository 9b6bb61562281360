"""Models of others by name: import=<name> of prepare.py. A new one is a file and a line here.

A reader turns files into a `Published`: sizes and tensors in our names. It knows nothing of our models, which are
built from that one floor up (`DiscreteVAE.from_openai`, prepare.py).
"""

from collections.abc import Callable
from typing import Any

from dalle.pretrained.huggingface_clip import HuggingFaceCLIPConfig, import_huggingface_clip
from dalle.pretrained.openai_clip import OpenAICLIPConfig, read_openai_clip
from dalle.pretrained.openai_dvae import OpenAIDVAEConfig, read_openai_dvae
from dalle.pretrained.published import Published
from dalle.pretrained.settings import PrepareConfig

# name -> (its options, a `PrepareConfig`; what reads the files that they name)
IMPORTS: dict[str, tuple[type[PrepareConfig], Callable[[Any], Published]]] = {
    "openai-dvae": (OpenAIDVAEConfig, lambda config: read_openai_dvae(config.encoder, config.decoder)),
    "openai-clip": (OpenAICLIPConfig, lambda config: read_openai_clip(config.weights, config.merges)),
    "huggingface-clip": (HuggingFaceCLIPConfig, import_huggingface_clip),
}
