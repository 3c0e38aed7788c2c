"""Several workers that train one run together: processes that each hold a share of every batch's windows.

    every worker   the whole batch (a pure function of the step) ─► its rows ─► loss over the *batch's* count ─► gradients
    all            one sum over workers per step: gradients, losses, share of experts kept, in one flat buffer
    every worker   clip ─► AdamW, the same everywhere
    worker 0       lock, checkpoints, logs, commits, messages; it tells the others what it decides

Workers are processes of torch.distributed, which uses gloo on CPUs and NCCL on GPUs. torchrun starts them and sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in their environment; Ray Train also makes the process group. All workers
see the folders of the bank and the data. A run can continue with more or fewer workers.

A step waits at most `TIMEOUT` for a worker; other work of worker 0 (packing data, grouping) may take up to `PATIENCE`. If a
worker dies while its machine keeps running, the others notice at once, because its connections break.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from ..errors import ConfigError, M3DTError, WorkerError
from ..system.machine import torch_device

TIMEOUT = timedelta(minutes=5)
PATIENCE = timedelta(hours=12)
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class World:
    """The workers of a run, as number `rank` of `size` sees them. control: the process group for Python objects."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is worker 0, the only one that writes files."""
        return self.rank == 0

    def rows(self, n: int) -> range:
        """The windows of a batch of n that this worker holds: consecutive, split as `np.array_split` does.

        Raises:
            ConfigError: fewer windows than workers.
        """
        if n < self.size:
            raise ConfigError(f"batch_size={n} cannot be shared by {self.size} workers: each needs at least one window")
        each, longer = divmod(n, self.size)
        first = self.rank * each + min(self.rank, longer)
        return range(first, first + each + (self.rank < longer))

    def from_main(self, action: Callable[[], R]) -> R:
        """Runs `action` on worker 0 and returns its result on every worker.

        Raises:
            WorkerError: on the other workers, if `action` raises; worker 0 raises the error itself.
        """
        if self.size == 1:
            return action()
        if not self.is_main:
            return self._hear()  # type: ignore[no-any-return]
        try:
            result = action()
        except Exception as error:
            with contextlib.suppress(WorkerError):
                self._tell(None, f"{type(error).__name__}: {error}")
            raise
        self._tell(result, None)
        return result

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block on worker 0, then on the others; all leave it together.

        Raises:
            WorkerError: on the other workers, if the block raises on worker 0; on all, if a worker is lost.
        """
        if not self.is_main:
            self._hear()
            yield
        else:
            try:
                yield
            except Exception as error:
                if self.size > 1:
                    with contextlib.suppress(WorkerError):
                        self._tell(None, f"{type(error).__name__}: {error}")
                raise
            if self.size > 1:
                self._tell(None, None)
        self.wait()

    def wait(self) -> None:
        """Waits until every worker is here.

        Raises:
            WorkerError: one is lost.
        """
        if self.size > 1:
            with _watched():
                dist.barrier(group=self.control)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums tensors of one dtype over the workers, in one collective; the result has the same bits everywhere.

        Raises:
            WorkerError: a worker is lost.
        """
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _watched():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors with those of worker 0, which have the same shapes.

        Raises:
            WorkerError: a worker is lost.
        """
        if self.size == 1:
            return
        with _watched(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def _tell(self, result: object, problem: str | None) -> None:
        with _watched():
            dist.broadcast_object_list([result, problem], src=0, group=self.control, device=torch.device("cpu"))

    def _hear(self) -> Any:
        heard: list[Any] = [None, None]
        with _watched():
            dist.broadcast_object_list(heard, src=0, group=self.control, device=torch.device("cpu"))
        result, problem = heard
        if problem is not None:
            raise WorkerError(f"worker 0 failed: {problem}")
        return result


ALONE = World()
"""A process that trains without others."""

_here: World | None = None  # set by the outermost `joined` of this process


@contextlib.contextmanager
def joined(device: str | torch.device) -> Iterator[World]:
    """Gives the block the workers that this process trains with.

    These are the workers of an enclosing `joined`, else of the process group that the process is in, else those that torchrun
    started. A process without others is `ALONE`. A process group that is made for the block ends with it; the others notice.

    Raises:
        ConfigError: the environment has WORLD_SIZE but not the variables that say where workers meet.
        WorkerError: the others do not come, or are lost.
    """
    global _here
    if _here is not None:
        yield _here
        return
    made = not dist.is_initialized() and _started_by_torchrun()
    if made:
        _make_group(device)
    try:
        _here = _world()
        yield _here
    finally:
        _here = None
        if made:
            dist.destroy_process_group()


def own_device(device: str | torch.device) -> torch.device:
    """`device`; "cuda" without a number becomes the GPU with this worker's LOCAL_RANK.

    Raises:
        ConfigError: torch cannot use it here; the message lists the devices that it can.
    """
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch_device(device)


def require_one_worker(world: World) -> None:
    """Checks that stage 2 has one worker: its experts are trained independently, so that workers would have nothing to share.

    Raises:
        ConfigError: it has several.
    """
    if world.size > 1:
        raise ConfigError(
            f"stage 'experts' does not share its batches between workers; got {world.size}. Its experts are independent: "
            f"train them on several machines with --ray, or some on each with --only-experts (experts=[…])"
        )


def _started_by_torchrun() -> bool:
    size = os.environ.get("WORLD_SIZE", "1")
    if size in ("", "1"):
        return False
    if missing := [name for name in _TORCHRUN if not os.environ.get(name)]:
        raise ConfigError(f"WORLD_SIZE={size} is set without {', '.join(missing)}; start workers with torchrun, or unset it")
    return True


def _make_group(device: str | torch.device) -> None:
    backend = "gloo"
    if (own := own_device(device)).type == "cuda":
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    with _watched():
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        meeting = PrefixStore(agreed_name(store, rank, size), store)
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=TIMEOUT)


def agreed_name(store: Store, rank: int, size: int) -> str:
    """A name that these workers agree on, and that no earlier workers with the same store have used.

    torchrun keeps its store when it restarts workers (torch 2.13), and the earlier workers' entries would lead to ports on
    which nobody listens. So worker 0 proposes a name, every worker answers with a name of its own, and worker 0 publishes the
    answers. A worker that finds its own answer among them knows that the proposal is not an old one.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("proposal", own)
        answers = [store.get(f"{own}/{other}").decode() for other in range(1, size)]
        store.set(f"{own}/answers", json.dumps(answers))
        return own
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        proposal: str = store.get("proposal").decode()
        store.set(f"{proposal}/{rank}", own)
        if store.check([f"{proposal}/answers"]) and own in json.loads(store.get(f"{proposal}/answers")):
            return proposal
        time.sleep(0.02)
    raise WorkerError(f"worker 0 of {size} did not come for {TIMEOUT.seconds // 60} minutes")


def _world() -> World:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    with _watched():
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    return World(dist.get_rank(), dist.get_world_size(), control)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Turns torch.distributed's errors into `WorkerError`."""
    try:
        yield
    except M3DTError:
        raise
    except RuntimeError as error:  # the class of all errors of torch.distributed
        raise WorkerError(
            f"a worker was lost, or did not answer for {TIMEOUT.seconds // 60} minutes: {error}; "
            f"when it is started again, the run continues from its last checkpoint"
        ) from error
