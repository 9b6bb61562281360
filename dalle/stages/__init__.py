"""Registry of the training stages.

A new one is a file with a stage and its config, which names the model; an entry here; its name in `bundled.KINDS`; and
a section in each preset. docs/contributing.md has the steps.
"""

from dalle.registry import Entry, Registry
from dalle.stages.clip import CLIPStage, CLIPStageConfig
from dalle.stages.decoder import DecoderStage, DecoderStageConfig
from dalle.stages.dvae import DVAEStage, DVAEStageConfig
from dalle.stages.transformer import TransformerStage, TransformerStageConfig
from dalle.training.stage import Stage

# in the order in which they are trained: the transformer and the decoder need a dVAE
STAGES: Registry[Stage] = Registry(
    "stage",
    {
        "dvae": Entry(DVAEStage, DVAEStageConfig),
        "clip": Entry(CLIPStage, CLIPStageConfig),
        "transformer": Entry(TransformerStage, TransformerStageConfig),
        "decoder": Entry(DecoderStage, DecoderStageConfig),
    },
)
ALL_STAGES = ("dvae", "clip", "transformer")  # trained by stage=all, as in the paper; the decoder is optional
