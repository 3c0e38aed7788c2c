"""Several workers training one run: processes that each hold a share of every batch's windows.

    every worker   the whole batch (a pure function of the step) ─► its rows ─► loss over the *batch's* count ─► gradients
    all            one sum over workers per step: gradients, losses, share of experts kept, in one flat buffer
    every worker   clip ─► AdamW, the same everywhere
    worker 0       lock, checkpoints, logs, commits, messages; the others are told what it decides

Workers are processes of torch.distributed, over gloo on CPUs and NCCL on GPUs. torchrun starts them and puts RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT into their environment; Ray Train also makes the process group. The bank and the data
are in folders that all of them see. How many there are is no part of a run: it continues with more, or fewer.

Steps wait at most `TIMEOUT` for a worker, and what takes worker 0 longer (packing data, grouping) may take `PATIENCE`. A worker
that dies is noticed at once, where its machine lives on: its connections break.
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

TIMEOUT = timedelta(minutes=5)
PATIENCE = timedelta(hours=12)
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class World:
    """The workers of a run as one of them sees them: number `rank` of `size`. control: the group for what is no tensor."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is worker 0, the only one that writes."""
        return self.rank == 0

    def rows(self, n: int) -> range:
        """The windows that this worker holds of a batch of n: consecutive, as `np.array_split` cuts them.

        Raises:
            ConfigError: fewer windows than workers.
        """
        if n < self.size:
            raise ConfigError(f"batch_size={n} cannot be shared by {self.size} workers: each needs at least one window")
        each, longer = divmod(n, self.size)
        first = self.rank * each + min(self.rank, longer)
        return range(first, first + each + (self.rank < longer))

    def from_main(self, action: Callable[[], R]) -> R:
        """What `action` returns on worker 0, on every worker; the others wait.

        Raises:
            WorkerError: elsewhere than on worker 0, if it raises there, where its own error goes on.
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
        """The block on worker 0, then on the others, and all go on together.

        Raises:
            WorkerError: elsewhere than on worker 0, if the block raises there; on all, if another worker is lost.
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
        """Until every worker is here.

        Raises:
            WorkerError: one is lost.
        """
        if self.size > 1:
            with _watched():
                dist.barrier(group=self.control)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over workers of tensors of one type, in one collective; the same bits everywhere.

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
        """Overwrites tensors, the same shapes everywhere, by worker 0's.

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
"""One process, all windows, nothing to tell anybody."""

_here: World | None = None  # what an outer `joined` of this process has joined


@contextlib.contextmanager
def joined(device: str | torch.device) -> Iterator[World]:
    """The workers that this process is one of: those of an outer `joined`, of the process group that it is in, or of torchrun.

    A process that none of these is true of is `ALONE`. A group that is made here ends with the block, which the others notice.

    Raises:
        ConfigError: an environment that names a size and no place to meet.
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
    """`device`, and where it is "cuda" without a number, this worker's: the one that LOCAL_RANK counts."""
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(device)


def require_one_worker(world: World) -> None:
    """Checks that stage 2 has one worker: its experts never meet, so that there is nothing to share between workers.

    Raises:
        ConfigError: it has several.
    """
    if world.size > 1:
        raise ConfigError(
            f"stage 'experts' does not share its batches between workers; got {world.size}. Its experts never meet: "
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
    """A name that these workers have together, and that no earlier ones with the same store had.

    torchrun keeps its store when it starts workers again (torch 2.13), and what it holds of the workers before would lead to
    ports that nobody listens on. So worker 0 proposes a name, every worker answers with one of its own, and only a list of
    answers that holds its own tells it that the proposal is of now.
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
    """Gives what torch says when a worker is gone or late a name."""
    try:
        yield
    except M3DTError:
        raise
    except RuntimeError as error:  # all of torch.distributed's are
        raise WorkerError(
            f"a worker was lost, or did not answer for {TIMEOUT.seconds // 60} minutes: {error}; "
            f"started again, the run continues from its last checkpoint"
        ) from error
