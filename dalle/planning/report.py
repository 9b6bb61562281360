"""Formatting of a plan as text, for train.py plan=true."""

from dalle.planning.cards import GIGABYTE
from dalle.planning.plan import ASSUMED_MFU, RESERVED_BYTES, Plan
from dalle.precision import matmul_format

SECONDS_PER_DAY = 86_400


def format_plan(plan: Plan) -> str:
    """Format a plan as text: a line for each of memory, communication, computation, speed and time."""
    memory, config = plan.memory, plan.config
    tokens = getattr(config.model, "text_positions", 0) + getattr(config.model, "grid", 0) ** 2
    images_per_second = config.batch_size / plan.seconds
    placement = f"sharded over {plan.shards} ranks" if plan.shards > 1 else "whole on each rank"
    lines = [
        f"{plan.world} x {plan.card.name}, {plan.parameters:,} parameters, {placement}",
        f"micro-batch      {plan.images} images x {config.accumulate} on each rank, {config.batch_size} in all",
        "memory of a rank",
    ]
    bytes_by_use = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "moments": memory.moments,
        "error buffers": memory.errors,
        "bases": memory.bases,
        "EMA": memory.ema,
        "buffers": memory.buffers,
        "frozen dVAE": memory.encoder,
        "gathered weights": memory.gathered,
        "unsharded blocks": memory.unsharded,
        "activations": memory.activations,
        "encoding": memory.encoding,
        "soft targets": memory.targets,
        "update": memory.update,
        "peak": memory.peak,
    }
    lines += [f"  {name:<16} {value / GIGABYTE:9.3f} GB" for name, value in bytes_by_use.items() if value]
    lines += [
        f"  {'of the card':<16} {plan.card.memory / GIGABYTE:9.3f} GB, {RESERVED_BYTES / GIGABYTE:.1f} GB of it "
        "reserved",
        f"sent per update  {plan.bytes_sent / GIGABYTE:.2f} GB by each rank, {plan.network_seconds:.3f} s",
        f"computation      {plan.flops / 1e12:.1f} TFLOP on each rank, {plan.compute_seconds:.3f} s at "
        f"{ASSUMED_MFU:.0%} MFU",
        *encoding_lines(plan),
        f"speed            {images_per_second:,.0f} images/s"
        + (f", {images_per_second * tokens:,.0f} tokens/s" if config.name == "transformer" else ""),
        f"time             {plan.seconds * config.steps / SECONDS_PER_DAY:.1f} days for {config.steps:,} updates",
    ]
    return "\n".join(lines)


def encoding_lines(plan: Plan) -> list[str]:
    """Return a line about the frozen dVAE, none if it does not encode the images of each update."""
    if not plan.encoding_flops:
        return []
    number_format = matmul_format("float32", plan.config.float32_matmul_precision, plan.card.has_bfloat16)
    return [
        f"encoding         {plan.encoding_flops / 1e12:.1f} TFLOP of the frozen dVAE on each rank, in {number_format}, "
        f"{plan.encoding_seconds:.3f} s"
    ]
