"""What is optimised: the three stages by name, each with its settings."""

from dalle.stages.clip import CLIPStage, CLIPStageConfig
from dalle.stages.dvae import DVAEStage, DVAEStageConfig
from dalle.stages.transformer import TransformerStage, TransformerStageConfig

# in the order in which they are trained: the transformer needs a dVAE
STAGES = {
    "dvae": (DVAEStageConfig, DVAEStage),
    "clip": (CLIPStageConfig, CLIPStage),
    "transformer": (TransformerStageConfig, TransformerStage),
}
