"""Registry of importers of published weights, for prepare.py import=<name>. A new one is a file and a line here.

An importer converts files to `PretrainedWeights`: a model config, and a state dict with our keys. It does not depend on
our models, which are built from the result elsewhere (`DiscreteVAE.from_openai`, prepare.py).
"""

from dalle.pretrained.huggingface_clip import HuggingFaceCLIPConfig, import_huggingface_clip
from dalle.pretrained.openai_clip import OpenAICLIPConfig, read_openai_clip
from dalle.pretrained.openai_dvae import OpenAIDVAEConfig, read_openai_dvae
from dalle.pretrained.pretrained_weights import PretrainedWeights
from dalle.registry import Entry, Registry

# each entry reads the files named in its options
IMPORTS: Registry[PretrainedWeights] = Registry(
    "import",
    {
        "openai-dvae": Entry(lambda config: read_openai_dvae(config.encoder, config.decoder), OpenAIDVAEConfig),
        "openai-clip": Entry(lambda config: read_openai_clip(config.weights, config.merges), OpenAICLIPConfig),
        "huggingface-clip": Entry(import_huggingface_clip, HuggingFaceCLIPConfig),
    },
)
