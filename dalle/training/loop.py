"""Training loop of all stages: in each iteration periodic jobs first, then one optimizer update."""

import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from dalle import distributed
from dalle.atomic_files import atomic_folder
from dalle.precision import autocast, describe_float32_matmul_precision, float32_matmul_precision
from dalle.seeds import seed_global_generators, torch_generator
from dalle.signals import Interrupted, StopRequest
from dalle.training import state_files
from dalle.training.background_save import Saver, raised_together
from dalle.training.compilation import compile_blocks
from dalle.training.logger import Logger, open_logger
from dalle.training.monitor.run_monitor import RunMonitor, image_cost
from dalle.training.monitor.stall_watchdog import PREVIEWING, SAVING, VALIDATING
from dalle.training.parameter_storage import for_inference
from dalle.training.progress_bar import ProgressBar
from dalle.training.run import Run
from dalle.training.sharding import SHARD, total_norm
from dalle.training.stage import Stage, StageConfig
from dalle.training.state import TrainState

log = logging.getLogger(__name__)
CHECKPOINTS, BEST = "checkpoints", "best"  # folders in the run folder for copies of the checkpoint
MAX_PRINTED_METRICS = 5  # validation metrics printed; all are in metrics.jsonl


class DivergenceError(ValueError):
    """Too many consecutive updates with a non-finite loss or gradient."""


def train(stage: Stage, config: StageConfig, run: Run) -> None:
    """Train `stage` until `config.steps` updates are done, resuming `run` if it has a saved state.

    Raises Interrupted after a request to stop, once the state is saved; DivergenceError after
    `config.max_skipped_steps` consecutive skipped updates; and CheckpointError if the run cannot be resumed or saved.
    The last checkpoint stays valid in each case. On a GPU the number of skipped updates is read once in
    `max_skipped_steps` updates and with the log, so up to twice as many may be skipped.
    """
    if run.resume_point.step < config.steps:
        trainer = Trainer(stage, config, run)
        try:
            trainer.train()
        finally:
            trainer.close()


class Trainer:
    """Training of one stage: the state and the methods of one call of `train`.

    Ranks wait over gloo for work that only the first rank does: NCCL would end a wait of ten minutes.
    """

    def __init__(self, stage: Stage, config: StageConfig, run: Run):
        """Prepare training of `stage` with `config`, and restore the saved state of `run`, if it has one."""
        self.stage, self.config, self.run = stage, config, run
        self.is_main_process = distributed.is_main_process()
        cost = image_cost(stage)  # before the model is wrapped or sharded
        compiled = compile_blocks(stage.model, run.device) if config.compile else ""
        self.state = state = TrainState(stage.model, config, run.device, run.mesh)
        self.model = state.parallel_model.train()
        self.parameters = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
        if run.resume_point.step:
            state.restore(run.folder)
        self.saved_step = state.step  # of the latest checkpoint, complete or in flight
        self.saver = Saver(config.async_save)
        self.logger = Logger()
        if self.is_main_process:
            self.logger = open_logger(run.folder, state.step, run.wandb, state.wandb_id, run.config)
        self.progress = ProgressBar(
            stage.name, state.step, config.steps, config.batch_size, state.seconds, shown=self.is_main_process
        )
        self.progress.print(f"precision {state.precision}: {state.precision_reason}")
        if compiled:
            self.progress.print(compiled)
        if run.mesh is not None:
            shards = run.mesh[SHARD].size()
            copies = f", with {run.mesh.size() // shards} copies of each shard" if run.mesh.ndim > 1 else ""
            self.progress.print(f"weights are sharded over {shards} ranks{copies}")
        tf32 = describe_float32_matmul_precision(config.float32_matmul_precision, run.device)
        for message in (tf32, state.reducer.message, state.scaler.advice(config.max_skipped_steps)):
            if message:
                self.progress.print(message)
        self.monitor = RunMonitor(cost, stage, config, run, state, self.progress.print)
        self.batches = self.monitor.watch_batches(stage.batches(state.step * config.accumulate))

    def train(self) -> None:
        """Run the periodic jobs that are due, then one update, until all steps are done or a stop is requested."""
        state, config = self.state, self.config
        with StopRequest() as request, self.monitor:
            while True:
                stopping = distributed.all_reduce_any(request.signum != 0 or self.saver.failed)
                finished = state.step == config.steps

                if state.step > state.evaluated_step and (finished or not stopping):
                    self.validate_and_preview()
                if state.step > self.saved_step and (stopping or self.is_due(config.save_every)):
                    self.save()
                if config.keep_every and state.step and state.step % config.keep_every == 0:
                    self.monitor.begin(SAVING)
                    self.keep_copy(self.run.folder / CHECKPOINTS / f"{state.step:08d}")
                if stopping or finished:
                    self.monitor.begin(SAVING)
                    self.saver.wait()
                if stopping:
                    where = f"step {state.step} of {config.steps}, saved in {self.run.folder}"
                    signum = request.signum or signal.SIGTERM  # another rank received the signal
                    raise Interrupted(
                        f"stopped at {where}: run the same command again, without resume=false, to resume", signum
                    )
                if finished:
                    return

                begin = time.perf_counter()
                self.monitor.begin_update()
                self.update()
                log_due = self.is_due(config.log_every)
                # reading the counter synchronises with the device, which is free on a CPU only
                if log_due or self.run.device.type == "cpu" or self.is_due(config.max_skipped_steps):
                    self.check_nonfinite()
                means = state.metrics.compute_and_reset() if log_due else {}
                state.seconds += time.perf_counter() - begin

                self.progress.advance()
                self.monitor.end_update(state.step)
                if log_due:
                    speed = self.progress.speed(state.seconds)
                    skipped = int(state.metrics.skipped.item())
                    means |= {"skipped": skipped, "images_per_second": speed, "seconds": state.seconds}
                    means |= self.monitor.metrics(speed)
                    self.progress.report(means)
                    self.logger.metrics(state.step, "train", means)

    def is_due(self, every: int) -> bool:
        """Return True if a job that runs every `every` updates, and after the last one, is due now."""
        step = self.state.step
        return step == self.config.steps or (every > 0 and step % every == 0)

    def validate_and_preview(self) -> None:
        """Validate and write a preview, each if due, with the averaged weights."""
        state, device = self.state, self.run.device
        seed_global_generators("validation", self.run.seed, state.step, distributed.get_rank(), device=device)
        validate, preview = self.is_due(self.config.validate_every), self.is_due(self.config.preview_every)
        state.evaluated_step = state.step
        if validate:
            self.monitor.begin(VALIDATING)
            self.validate()
        if preview:
            self.monitor.begin(PREVIEWING)
            self.preview()

    def validate(self) -> None:
        """Log the stage's validation metrics, and save the best checkpoint with `keep_best`."""
        ema = self.state.ema
        sharded = self.run.mesh is not None and self.config.validates_sharded
        averaged_model = ema.average_parameters() if sharded else nullcontext(ema.whole_model())
        with torch.no_grad(), autocast(self.state.precision, self.run.device), averaged_model as model:
            metrics = self.stage.validate(model)
        self.logger.metrics(self.state.step, "val", metrics)
        printed = [f"{name} {value:.4g}" for name, value in metrics.items()][:MAX_PRINTED_METRICS]
        self.progress.print(f"validation: {', '.join(printed)}")
        loss = metrics[self.stage.validation_loss] if self.config.keep_best else math.inf
        if distributed.all_reduce_any(self.is_main_process and loss < self.state.best_loss):
            self.state.best_loss = loss
            self.keep_copy(self.run.folder / BEST)

    def preview(self) -> None:
        """Log a preview image. An error, such as too little memory, is logged as a warning; training goes on."""
        model = self.state.ema.main_process_model()
        with raised_together():
            if model is None:
                return
            try:
                with torch.no_grad():
                    image = self.stage.preview(for_inference(model.to(self.run.device)))
            except Exception as error:  # any error: a failed preview must not end the training run
                log.warning("the preview of step %d failed: %s", self.state.step, error)
                return
            if image is not None:
                self.logger.image(self.state.step, image)

    def save(self) -> None:
        """Write the checkpoint, then the training state; a run killed in between resumes from the previous one, if any.

        With `async_save` both are copied, and written while training goes on.
        """
        state, folder, meta = self.state, self.run.folder, self.meta()
        self.monitor.begin(SAVING)
        self.saver.wait()
        model = state.ema.main_process_model(copied=self.saver.background)
        write_state = state.prepare_save(folder, self.run.config, self.saver.background, self.saver.group)

        def write() -> None:
            with raised_together(self.saver.group):
                if model is not None:
                    state_files.begin_first_save(folder)
                    self.stage.save(folder, model, meta)
            write_state()

        self.saver.run(write)
        self.saved_step = state.step

    def keep_copy(self, folder: Path) -> None:
        """Write a copy of the checkpoint to `folder`, in place of what is there."""
        model = self.state.ema.main_process_model()
        with raised_together():
            if model is not None:
                with atomic_folder(folder) as partial_folder:
                    self.stage.save(partial_folder, model, self.meta())

    def meta(self) -> dict[str, Any]:
        """Return the meta of a checkpoint: updates done, images seen and the run's seed."""
        images_seen = self.state.step * self.config.batch_size
        return {"step": self.state.step, "images": images_seen, "seed": self.run.seed}

    def update(self) -> None:
        """Do one optimizer update without device syncs. All ranks skip it if loss or gradient is not finite."""
        state, config = self.state, self.config
        with float32_matmul_precision(config.float32_matmul_precision, self.run.device):
            batches = [next(self.batches) for _ in range(config.accumulate)]
            self.stage.before_update(state.step, batches)
            loss, metrics = self.gradients(batches)
        state.scaler.unscale()
        state.reducer.reduce(state.step)
        norm = total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        finite = (torch.isfinite(loss) & torch.isfinite(norm)).float()
        self.monitor.watch_update(state.step + 1, loss, norm, finite)
        if config.clip_norm is not None:
            clip_grads_with_norm_(self.parameters, config.clip_norm, norm)

        rate = config.optimizer.learning_rate_at(state.step) * state.plateau.factor
        state.optimizer.step_if_finite(finite, rate, seeds=(self.run.seed, state.step))
        state.optimizer.zero_grad(set_to_none=True)  # frees memory for validation and for encoding the next images
        metrics |= state.scaler.metrics()
        state.scaler.update()
        state.step += 1
        state.ema.update(state.step)
        state.plateau.update(loss, finite, state.step)
        state.metrics.update({**metrics, "loss": loss, "gradient_norm": norm, "learning_rate": rate}, finite)

    def gradients(self, batches: Sequence[Any]) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Accumulate gradients over the micro-batches of an update. No parameter may have a gradient before.

        Returns the mean loss of all ranks and this rank's metrics.
        """
        state, run, count = self.state, self.run, len(batches)
        rank = distributed.get_rank()
        seed_global_generators("dropout", run.seed, state.step, rank, device=run.device)
        total = torch.zeros((), device=run.device)
        means: dict[str, float | Tensor] = {}
        for micro_batch, batch in enumerate(batches):
            generator = torch_generator("loss", run.seed, state.step, rank, micro_batch, device=run.device)
            synchronised = state.reducer.in_backward and micro_batch == count - 1
            with nullcontext() if synchronised else distributed.no_sync(self.model):
                with autocast(state.precision, run.device):
                    loss, metrics = self.stage.loss(self.model, batch, state.step, generator)
                state.scaler.scale_loss(loss / count).backward()
            total += loss.detach() / count
            for name, value in metrics.items():
                value = value.detach() if isinstance(value, Tensor) else value
                means[name] = means.get(name, 0.0) + value / count
        return distributed.all_reduce_mean(total), means

    def check_nonfinite(self) -> None:
        """Report the latest update if it was skipped; raise DivergenceError after too many skipped updates in a row."""
        step, folder = self.state.step, self.run.folder
        skipped = int(self.state.metrics.consecutive_skipped.item())
        if skipped:
            self.progress.print(f"update {step} skipped: loss or gradient not finite ({skipped} in a row)")
        if skipped >= self.config.max_skipped_steps:
            self.monitor.spikes.report()
            self.saver.wait()
            saved = (
                f"the last checkpoint, of step {self.saved_step}, is in {folder}"
                if self.saved_step
                else "no checkpoint was saved"
            )
            advice = self.state.scaler.advice(self.config.max_skipped_steps)
            raise DivergenceError(
                f"training diverged: loss or gradient was not finite in the last {skipped} updates, up to"
                f" step {step}; {saved}. Try a lower learning rate or precision=float32, with another run=<name>"
                + (advice and f"; {advice}")
            )

    def close(self) -> None:
        self.saver.close()
        self.progress.close()
        self.logger.close()
