"""Registry of metrics: names for evaluate.py, in the order of its page. To add one, add a file and an entry here."""

from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics import (
    alignment,
    bias,
    blur_curve,
    capabilities,
    decoder,
    drawing_edits,
    drawings,
    log_likelihood,
    reconstruction,
    rerank_curve,
    sample_quality,
)
from dalle.registry import Entry, Registry

# built from an `EvaluationContext` and an `EvaluateConfig`; the note is the title on the page
METRICS: Registry[MetricResult] = Registry(
    "metric",
    {
        "reconstruction": Entry(reconstruction.measure, note="Reconstruction"),
        "decoder": Entry(decoder.measure, note="Decoders"),
        "likelihood": Entry(log_likelihood.measure, note="Likelihood"),
        "alignment": Entry(alignment.measure, note="Image-text alignment"),
        "capabilities": Entry(capabilities.measure, note="Capabilities"),
        "drawings": Entry(drawings.measure, note="Drawings"),
        "drawing_edits": Entry(drawing_edits.measure, note="Edits of drawings"),
        "bias": Entry(bias.measure, note="Variants of open captions"),
        "sample_quality": Entry(sample_quality.measure, note="Sample quality"),
        "blur_curve": Entry(blur_curve.measure, note="Sample quality against blur"),
        "rerank_curve": Entry(rerank_curve.measure, note="Best of n against the number of candidates"),
    },
)
OPTIONAL = ("blur_curve", "rerank_curve")  # also enabled by an option of the same name
COMPARED_BY_FEATURES = ("sample_quality", "blur_curve", "rerank_curve", "decoder")
# metrics that read an option; setting it without any of them is an error
OPTIONS_OF_METRICS = {
    "features": COMPARED_BY_FEATURES,
    "weights": COMPARED_BY_FEATURES,
    "scorer": ("rerank_curve",),
    "bias_prompts": ("bias",),
}


def selected_metrics(config: EvaluateConfig) -> list[str]:
    """Return the names of the metrics to compute.

    Raises:
        ValueError: an unknown name, no names, or an option that none of the metrics reads.
    """
    for name in config.metrics:
        METRICS.lookup(name)
    enabled = [name for name in OPTIONAL if getattr(config, name)]
    names = list(dict.fromkeys([*config.metrics, *enabled]))
    if not names:
        raise ValueError("metrics=[] selects no metric; name some, or set blur_curve=true or rerank_curve=true")
    defaults = EvaluateConfig()
    for option, readers in OPTIONS_OF_METRICS.items():
        value = getattr(config, option)
        if value != getattr(defaults, option) and not set(readers) & set(names):
            raise ValueError(f"{option}={value} is read by {', '.join(readers)} only: add one of them to metrics=")
    return names
