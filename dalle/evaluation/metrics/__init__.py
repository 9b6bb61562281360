"""Registry of metrics: names for evaluate.py, in the order of its page. To add one, add a file and an entry here."""

from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics import abilities, blur_curve, fit, likelihood, quality, reconstruction, rerank_curve
from dalle.evaluation.settings import EvaluateConfig
from dalle.registry import Entry, Registry

# built from a `Subject` and an `EvaluateConfig`; the note is the title on the page
METRICS: Registry[Measured] = Registry(
    "metric",
    {
        "reconstruction": Entry(reconstruction.measure, note="Reconstruction"),
        "likelihood": Entry(likelihood.measure, note="Likelihood"),
        "fit": Entry(fit.measure, note="Fit to captions"),
        "abilities": Entry(abilities.measure, note="Abilities"),
        "quality": Entry(quality.measure, note="Sample quality"),
        "blur_curve": Entry(blur_curve.measure, note="Sample quality against blur"),
        "rerank_curve": Entry(rerank_curve.measure, note="Quality against candidates"),
    },
)
SWITCHED = ("blur_curve", "rerank_curve")  # also switched on by a setting of that name


def asked_for(config: EvaluateConfig) -> list[str]:
    """Return the names of the metrics to measure. Raises ValueError for an unknown name, or for no names."""
    for name in config.metrics:
        METRICS.choose(name)
    switched = [name for name in SWITCHED if getattr(config, name)]
    names = list(dict.fromkeys([*config.metrics, *switched]))
    if not names:
        raise ValueError("metrics=[] leaves nothing to measure; name some, or set blur_curve=true or rerank_curve=true")
    return names
