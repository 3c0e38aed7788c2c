"""One training step, the same for all stages: a stage only chooses what its `Run` holds (data, model, trained parameters).

    batch of K equal groups ─► model ─► masked MSE per group (K,) ─► sum ─► gradients ─► clipped per expert ─► AdamW

    stages 1, 3  K = 1          one loss, and one gradient norm over all trained parameters
    stage 2      K experts      group k goes through expert k only, and parameters are stacked (K, ...). No gradient crosses
                                from one expert to another and each is clipped by its own norm, so experts trained together
                                get the weights that they would get alone

A step depends only on (seed, stage, expert, step), the weights and the number of threads: the batch and dropout's masks are
derived from these, and the caller's random generator is left as it was. Losses stay on the device until they are logged.
Several workers can share the windows of a batch (distributed.py); their steps are the same up to rounding.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..config import BackboneConfig
from ..data.batches import derive_seed
from ..errors import InvalidValueError
from ..model import M3DT, ExpertChoice, Routing
from ..model.determinism import seeded
from ..model.dropout import WindowGroup, keyed_dropout
from ..model.tensors import is_finite
from .averaging import WeightAverage
from .checkpoint import Checkpoint, RunState
from .conflict import has_peaked, masked_losses, smoothed
from .distributed import ALONE, World
from .logs import LogRecord
from .run import Run
from .shares import Share, distinct_prompts, share_of


class Trainer:
    """A run in progress: its model and optimizer on their device, and the number of steps done.

    Frozen parameters have `requires_grad` False, so that their gradients are not computed. In bfloat16 the blocks' frozen
    parameters are also stored in bfloat16; trained parameters stay float32.

    Args:
        world: the workers that share the run.
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
        # not in stage 3, whose losses look at the router's weights of every window's prompt; nor in models of others
        self._shares_prompts = type(run.model) is M3DT and not run.model.config.dropout and _is_of_groups(run.choice)
        self._average = WeightAverage(run.parameters, config.ema) if config.ema else None
        self._reset_sums()

    @property
    def is_over(self) -> bool:
        """Whether the last step is done, or the run stops early and gradient conflict has peaked."""
        config = self.run.config
        stops = (
            isinstance(config, BackboneConfig) and config.early_stop and has_peaked(self.conflicts, config.conflict_patience)
        )
        return self.step_count >= config.steps or stops

    def step(self) -> None:
        """Does one step of training."""
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
        if self._average is not None:
            self._average.update(index)
        self._sums += torch.stack((losses, norms, kept.expand_as(norms)))
        self._summed += 1
        self.step_count += 1
        self._measure_conflict()
        self.seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Gives the model the weights that the bank gets. Checkpoints keep those with which training could go on."""
        if self._average is not None:
            self._average.write_to_parameters()

    def require_finite(self) -> None:
        """Checks the losses and gradients since the last report, and the weights.

        Raises:
            InvalidValueError: one is NaN or infinite.
        """
        if not bool(self._sums.isfinite().all()) or not all(is_finite(parameter.detach()) for parameter in self.parameters):
            raise InvalidValueError(
                f"{self.run.name}: the loss, its gradient or a weight became NaN or infinite by step {self.step_count:,}; "
                "earlier checkpoints are kept. Try a lower learning rate, or check the data"
            )

    def report(self) -> LogRecord:
        """Means over the steps since the last report.

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
        """Everything about the run except tensors."""
        return RunState(
            stage=self.run.config.stage,
            run=self.run.name,
            step=self.step_count,
            seconds=self.seconds,
            threads=threads,
            config=self.run.config.to_dict(),
            built_on=dict(self.run.built_on),
            conflicts=list(self.conflicts),
            sums=self._sums.tolist(),
            summed=self._summed,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint: "weights", "optimizer", and "hooks" and "average" if the run has them."""
        moments = {
            f"{name}/{moment}": self.optimizer.state[parameter][moment]
            for name, parameter in self.run.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }
        weights = {name: p.detach() for name, p in self.run.parameters.items()}
        average = {} if self._average is None else self._average.tensors()
        more = {"hooks": self.run.hooks.tensors(), "average": average}
        return {"weights": weights, "optimizer": moments, **{name: tensors for name, tensors in more.items() if tensors}}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from `checkpoint`. Tensors keep their memory layout, whatever the file's is.

        Raises:
            BankError: the checkpoint was damaged after it was found.
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
        if self._average is not None:
            self._average.restore(checkpoint.read("average"))

    def follow_main(self) -> None:
        """Brings every worker to where worker 0 is; the others need no checkpoint.

        Raises:
            WorkerError: a worker is lost.
        """
        state = self.world.from_main(lambda: self.state(torch.get_num_threads()))
        if not self.world.is_main:
            self._continue_from(state)
        if state.step == 0:
            self.world.copy_from_main([parameter.detach() for parameter in self.parameters])
            return
        tensors = self.tensors()
        copied = (tensors.get(name, {}) for name in ("weights", "optimizer", "average"))
        self.world.copy_from_main([tensor for part in copied for tensor in part.values()])
        if hooks := self.world.from_main(self.run.hooks.tensors):
            self.run.hooks.restore(hooks)

    def _continue_from(self, state: RunState) -> None:
        """Takes over everything except tensors, and makes tensors for the optimizer to be overwritten."""
        if state.step:
            for parameter in self.parameters:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step), device=self.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        self.step_count, self.seconds, self.conflicts = state.step, state.seconds, list(state.conflicts)
        self._reset_sums()
        self._sums[: len(state.sums)] = torch.tensor(state.sums, dtype=self.dtype)  # older checkpoints lack the third row
        self._summed = state.summed

    def _forward(self, share: Share) -> Tensor:
        """Actions (B, T, act_dim) of this worker's windows; dropout's masks depend neither on workers nor on stacking."""
        config, run, rows = self.run.config, self.run, share.rows
        seeds = [derive_seed(config.seed, config.stage, e, self.step_count, "dropout") for e in run.experts or (0,)]
        groups = [WindowGroup(seed, rows.start, rows.stop, share.total) for seed in seeds]
        fused = self.world.size == 1 and not run.experts
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
        with seeded(seeds[0], self.device), keyed_dropout(groups, self.device, fused_attention=fused), autocast:
            batch = share.batch
            prompts = distinct_prompts(batch, len(run.samplers)) if self._shares_prompts else None
            if prompts is None:
                actions: Tensor = run.model(batch.window, batch.prompt, run.choice)
                return actions
            return run.model.forward_shared(batch.window, *prompts, run.choice)

    def _over_workers(self, losses: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Sums losses (K,), share of experts kept () and, in place, gradients over the workers."""
        if self.world.size == 1:
            return losses, kept
        trained = [parameter for parameter in self.parameters if parameter.grad is not None]
        *grads, losses, kept = self.world.sum([*(p.grad for p in trained if p.grad is not None), losses, kept])
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.grad = grad
        return losses, kept

    def _clip(self) -> Tensor:
        """Scales gradients down to norm `grad_clip`, per expert, and returns their norms before that, (K,)."""
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
        """The mean share of its experts that a block used for a window in the step's forward pass."""
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
            # worker 0's number, so that all workers stop at the same step
            self.conflicts.append(self.world.from_main(lambda: measure(self.step_count)))

    def _reset_sums(self) -> None:
        self._sums = torch.zeros(3, len(self.run.samplers), dtype=self.dtype, device=self.device)
        self._summed = 0


def _is_of_groups(choice: ExpertChoice) -> bool:
    """Whether windows pass through the backbone alone or through one expert, as in stages 1 and 2."""
    return choice != "mixture" and not isinstance(choice, Routing)
