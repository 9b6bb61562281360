"""A small stage whose plans can be checked by hand."""

from dalle.models.transformer.model import TransformerConfig
from dalle.planning.cards import CARDS
from dalle.planning.plan import Plan, Planner
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.stage import StageConfig

SMALL = TransformerConfig(
    text_positions=8, text_vocabulary=50, image_vocabulary=64, grid=4, width=32, depth=2, heads=2, patterns=["dense"]
)
H100 = CARDS["h100"]
STAGE = TransformerStageConfig(model=SMALL, batch_size=64, steps=1000, precision="float32")


def plan_of(stage: StageConfig, world: int, mode: str = "ddp", image_size: int = 32) -> Plan:
    """Return the plan of `stage` on so many H100."""
    return Planner(image_size, world, H100).plan(stage, mode)
