"""Monitor of a training run: one object through which the loop calls the other files of this folder."""

import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from torch import Tensor

from dalle import distributed
from dalle.precision import has_tf32, matmul_format
from dalle.training.flops import ImageCost
from dalle.training.monitor.gradient_norms import GradientNorms
from dalle.training.monitor.loss_spikes import LossSpikes, Update
from dalle.training.monitor.profiler import UpdateProfiler
from dalle.training.monitor.stall_watchdog import COMPUTING, LOADING, StallWatchdog
from dalle.training.monitor.throughput import Throughput
from dalle.training.run import Run
from dalle.training.stage import Stage, StageConfig
from dalle.training.state import TrainState

log = logging.getLogger(__name__)


class RunMonitor:
    """Monitor of one run, a context of its training loop.

    It reads losses and gradients but changes nothing, and draws no random numbers. It synchronises with the device only
    in `metrics`, which the loop calls when it logs.
    """

    def __init__(
        self,
        cost: ImageCost | None,
        stage: Stage,
        config: StageConfig,
        run: Run,
        state: TrainState,
        print_line: Callable[[str], None],
    ):
        """Prepare to watch the run from `state.step` on.

        cost: result of `image_cost`.
        print_line: prints a line, on the first rank only.
        """
        products = matmul_format(state.precision, config.float32_matmul_precision, has_tf32(run.device))
        self.throughput = Throughput(cost, run.device, products)
        print_line(self.throughput.message)
        self.gradient_norms = GradientNorms(stage.model, run.device) if config.log_gradient_norms else None
        self.spikes = LossSpikes(config.spike_deviations, run.folder, state.step, print_line)
        self.watchdog = StallWatchdog(config.stall_minutes, run.folder, state.step, print_line)
        profiled = config.profile_steps if config.profile and distributed.is_main_process() else None
        self.profiler = UpdateProfiler(profiled, run.folder, run.device, print_line)
        self.keys: list[str] = []  # of the records in this rank's micro-batches since the last update

    def __enter__(self) -> "RunMonitor":
        self.watchdog.start()
        return self

    def __exit__(self, error: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.watchdog.stop()
        self.profiler.stop()

    def begin(self, phase: str) -> None:
        """Note the phase that the loop begins, one of `stall_watchdog.PHASES`."""
        self.watchdog.begin(phase)

    def watch_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the micro-batches unchanged, and note the keys of their records."""
        while True:
            self.begin(LOADING)
            batch = next(batches)
            self.begin(COMPUTING)
            self.keys += getattr(batch, "keys", [])
            yield batch

    def begin_update(self) -> None:
        self.profiler.begin_update()

    def watch_update(self, step: int, loss: Tensor, gradient_norm: Tensor, finite: Tensor) -> None:
        """Note loss and gradients of update number `step`, before gradients are clipped. All arguments are scalars."""
        keys, self.keys = self.keys, []
        self.spikes.add(Update(step, loss, gradient_norm, keys))
        if self.gradient_norms is not None:
            self.gradient_norms.update(finite)

    def end_update(self, step: int) -> None:
        self.watchdog.finished(step)
        self.profiler.end_update()

    def metrics(self, images_per_second: float) -> dict[str, float]:
        """Return metrics for the log, and report loss spikes since the last call. All ranks must call it."""
        self.spikes.report()
        norms = {} if self.gradient_norms is None else self.gradient_norms.compute_and_reset()
        return self.throughput.metrics(images_per_second) | norms


def image_cost(stage: Stage) -> ImageCost | None:
    """Return the stage's cost of an image. Call it before the model is wrapped, and before its hooks are attached."""
    try:
        return stage.image_cost()
    except Exception as error:  # any error: a number in the log must not end a training run
        log.warning("the FLOPs of the model could not be counted, so mfu is not logged: %s", error)
        return None
