"""The one training loop. A stage only chooses what a `Run` holds: data, model, trained parameters, number K of losses.

    batch of K equal groups ─► model ─► masked MSE per group (K,) ─► sum ─► gradients ─► clipped per expert ─► AdamW

    stage 1, 3   K = 1          one loss, one gradient norm over all trained parameters
    stage 2      K experts      group k meets expert k only, and parameters are stacked (K, ...): no gradient crosses from one
                                expert to another, and neither does clipping, so stacked equals one by one

A step depends on (seed, stage, expert, step), the weights and the number of threads, and on nothing else: the batch and
dropout's masks are derived from them, and the caller's generator is left as it was. Losses stay on the device until they are
logged. Several workers share the windows of a batch (distributed.py): the same steps, up to rounding.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..data.batches import derive_seed
from ..errors import InvalidValueError
from ..model import Routing
from ..model.determinism import seeded
from ..model.dropout import Rows, keyed_dropout
from .checkpoint import Checkpoint, RunState, newest_checkpoint, write_checkpoint
from .conflict import has_peaked, masked_losses, smoothed
from .distributed import ALONE, World
from .logs import LogRecord, OnLog, RunLog, announce
from .run import Run
from .shares import Share, share_of


class Trainer:
    """A run in progress: model and optimizer on their device, and how far they have come. world: the workers that share it.

    Frozen parameters are marked so (`requires_grad` False): their gradients are not computed. In bfloat16 those of the blocks
    are stored so too; what is trained stays float32.
    """

    def __init__(self, run: Run, device: str | torch.device, world: World = ALONE) -> None:
        config = run.config
        self.run, self.world = run, world
        self.device = torch.device(device)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        run.model.to(self.device, self.dtype).train().requires_grad_(False)
        self.parameters = list(run.parameters.values())
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if config.precision == "bfloat16":
            run.model.lower_frozen(torch.bfloat16)
        run.model.lay_out_for_training()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step_count = 0
        self.seconds = 0.0
        self.conflicts: list[float] = []
        self._reset_sums()

    @property
    def is_over(self) -> bool:
        """Whether the last step is done, or gradient conflict has peaked in a run that stops there."""
        config = self.run.config
        stops = (
            isinstance(config, BackboneConfig) and config.early_stop and has_peaked(self.conflicts, config.conflict_patience)
        )
        return self.step_count >= config.steps or stops

    def step(self) -> None:
        """One step of training."""
        hooks, index = self.run.hooks, self.step_count
        started = time.perf_counter()
        share = share_of(self.run.samplers, index, self.world, self.device, self.dtype)
        hooks.before_forward(index, share.batch)
        actions = self._forward(share)
        losses = masked_losses(actions, share.batch, len(self.run.samplers), share.counts)  # (K,)
        (losses.sum() + share.weight * hooks.extra_loss()).backward()  # type: ignore[no-untyped-call]
        losses, kept = self._over_workers(losses.detach(), self._experts_kept() * share.weight)
        norms = self._clip()
        self._set_learning_rate(index)
        hooks.before_update()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        hooks.after_update(index)
        self._sums += torch.stack((losses, norms, kept.expand_as(norms)))
        self._summed += 1
        self.step_count += 1
        self._measure_conflict()
        self.seconds += time.perf_counter() - started

    def require_finite(self) -> None:
        """Checks losses and gradients since the last report.

        Raises:
            InvalidValueError: one is NaN or infinite.
        """
        if not bool(self._sums.isfinite().all()):
            raise InvalidValueError(
                f"{self.run.name}: the loss or its gradient became NaN or infinite by step {self.step_count:,}; checkpoints "
                "from before it stand. A lower learning rate may help, or a look at the data"
            )

    def report(self) -> LogRecord:
        """Means since the last report.

        Raises:
            InvalidValueError: as `require_finite`.
        """
        self.require_finite()
        losses, norms, kept = (self._sums / self._summed).tolist()
        self._reset_sums()
        return LogRecord(
            stage=self.run.config.stage,
            step=self.step_count,
            steps=self.run.config.steps,
            experts=self.run.experts,
            losses=tuple(losses),
            grad_norms=tuple(norms),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            conflict=smoothed(self.conflicts)[-1] if self.conflicts else None,
            seconds=self.seconds,
            experts_kept=kept[0] if isinstance(self.run.choice, Routing) else None,
        )

    def state(self, threads: int) -> RunState:
        """Everything about the run that is not a tensor."""
        return RunState(
            stage=self.run.config.stage,
            run=self.run.name,
            step=self.step_count,
            seconds=self.seconds,
            threads=threads,
            config=dataclasses.asdict(self.run.config),
            built_on=dict(self.run.built_on),
            conflicts=list(self.conflicts),
            sums=self._sums.tolist(),
            summed=self._summed,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: "weights", "optimizer", and "hooks" if the run's have any."""
        moments = {
            f"{name}/{moment}": self.optimizer.state[parameter][moment]
            for name, parameter in self.run.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }
        weights = {name: p.detach() for name, p in self.run.parameters.items()}
        hooks = self.run.hooks.tensors()
        return {"weights": weights, "optimizer": moments, **({"hooks": hooks} if hooks else {})}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from `checkpoint`; tensors keep their layout in memory, whatever the file's.

        Raises:
            BankError: damaged since it was found.
        """
        weights, moments = checkpoint.read("weights"), checkpoint.read("optimizer")
        self._continue_from(checkpoint.state)
        with torch.no_grad():
            for name, parameter in self.run.parameters.items():
                parameter.copy_(weights[name])
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.optimizer.state[parameter][moment].copy_(moments[f"{name}/{moment}"])
        if "hooks.safetensors" in checkpoint.files:
            self.run.hooks.restore(checkpoint.read("hooks"))

    def follow_main(self) -> None:
        """Continues, on every worker, from where worker 0 is; the others need no checkpoint.

        Raises:
            WorkerError: a worker is lost.
        """
        state = self.world.from_main(lambda: self.state(threads=0))
        if not self.world.is_main:
            self._continue_from(state)
        if state.step == 0:
            self.world.copy_from_main([parameter.detach() for parameter in self.parameters])
            return
        tensors = self.tensors()
        self.world.copy_from_main([*tensors["weights"].values(), *tensors["optimizer"].values()])
        if hooks := self.world.from_main(self.run.hooks.tensors):
            self.run.hooks.restore(hooks)

    def _continue_from(self, state: RunState) -> None:
        """Takes over all but tensors, for which there is room afterwards."""
        if state.step:
            for parameter in self.parameters:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step), device=self.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        self.step_count, self.seconds, self.conflicts = state.step, state.seconds, list(state.conflicts)
        self._reset_sums()
        self._sums[: len(state.sums)] = torch.tensor(state.sums, dtype=self.dtype)  # older ones: no share of experts kept
        self._summed = state.summed

    def _forward(self, share: Share) -> Tensor:
        """Actions (B, T, act_dim) of the windows held here, with masks that any worker and any stack of experts would draw."""
        config, run, rows = self.run.config, self.run, share.rows
        seeds = [derive_seed(config.seed, config.stage, e, self.step_count, "dropout") for e in run.experts or (0,)]
        groups = [Rows(seed, rows.start, rows.stop, share.total) for seed in seeds]
        fused = self.world.size == 1 and not run.experts
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        with seeded(seeds[0], self.device), keyed_dropout(groups, self.device, fused_attention=fused), autocast:
            actions: Tensor = run.model(share.batch.window, share.batch.prompt, run.choice)
        return actions

    def _over_workers(self, losses: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (K,) and share of experts kept () of all windows; gradients become those of all windows too."""
        if self.world.size == 1:
            return losses, kept
        trained = [parameter for parameter in self.parameters if parameter.grad is not None]
        *grads, losses, kept = self.world.sum([*(p.grad for p in trained if p.grad is not None), losses, kept])
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.grad = grad
        return losses, kept

    def _clip(self) -> Tensor:
        """Scales gradients down to norm `grad_clip`, per expert, and returns the norms before, (K,)."""
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.run.experts:
            norms: Tensor = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]).norm(dim=0)
        else:
            norms = torch.nn.utils.get_total_norm(grads).view(1)
        scales = (self.run.config.grad_clip / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scales.view(-1, *[1] * (grad.ndim - 1)) if self.run.experts else scales[0])
        return norms

    def _experts_kept(self) -> Tensor:
        """The share of experts that windows used in a block, in the step's forward pass."""
        if not isinstance(self.run.choice, Routing):
            return torch.ones((), dtype=self.dtype, device=self.device)
        return self.run.model.routing_usage().kept.to(self.dtype).mean() / self.run.model.config.n_experts

    def _set_learning_rate(self, index: int) -> None:
        config = self.run.config
        rising = (index + 1) / max(config.warmup_steps, 1)
        falling = (config.steps - index) / max(config.cooldown_steps, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * min(rising, falling, 1.0)

    def _measure_conflict(self) -> None:
        config = self.run.config
        every = config.conflict_every if isinstance(config, BackboneConfig) else 0
        if self.run.conflict is not None and every and self.step_count % every == 0:
            measure = self.run.conflict
            self.conflicts.append(self.world.from_main(lambda: measure(self.step_count)))  # so that all stop together

    def _reset_sums(self) -> None:
        self._sums = torch.zeros(3, len(self.run.samplers), dtype=self.dtype, device=self.device)
        self._summed = 0


def train(
    run: Run,
    bank: Path,
    *,
    device: str | torch.device,
    threads: int,
    progress: bool | None = None,
    on_log: OnLog | None = None,
    world: World = ALONE,
) -> None:
    """Trains `run` to its end, from its newest checkpoint if there is one; on return a checkpoint holds the final state.

    world: the workers that all call this; worker 0 reads and writes checkpoints and logs, and calls `on_log`.

    Raises:
        BankError: every checkpoint is damaged. InvalidValueError: the loss is NaN or infinite; no checkpoint has it.
        DiskSpaceError: no room for a checkpoint; the last one stands.
        ConfigError: fewer windows in a batch than workers. WorkerError: another worker failed or is lost.
    """
    trainer = Trainer(run, device, world)
    world.from_main(lambda: _restore_newest(trainer, bank, progress))
    if world.size > 1:
        trainer.follow_main()
    if not world.is_main:
        while not trainer.is_over:
            trainer.step()
        return
    config = run.config
    with RunLog(bank, run.name, config.stage, run.experts, trainer.step_count, config.steps, progress) as log:
        while not trainer.is_over:
            trainer.step()
            log.advance()
            if trainer.step_count % config.log_every == 0 or trainer.is_over:
                record = trainer.report()
                log.write(record)
                if on_log is not None:
                    on_log(record)
            if trainer.step_count % config.checkpoint_every == 0 or trainer.is_over:
                trainer.require_finite()
                log.flush()
                write_checkpoint(bank, trainer.state(threads), trainer.tensors())


def _restore_newest(trainer: Trainer, bank: Path, progress: bool | None) -> None:
    name = trainer.run.name
    checkpoint, problems = newest_checkpoint(bank, name)
    for problem in problems:
        announce(f"a checkpoint is damaged, falling back to the one before: {problem}", progress)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        announce(f"{name}: continuing from step {trainer.step_count:,}", progress)
