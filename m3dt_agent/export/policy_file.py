"""Writes an agent as an ONNX file, whole or not at all, and a JSON document beside it.

agent, tasks ─► ActingStep ─► torch.export ─► ONNX ─► [int8] ─► compared with the agent ─► policy.json, policy.onnx
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..agent import Experts, M3DTAgent
from ..agent.conditions import Condition, KnownTasks
from ..config.checks import require_instance
from ..errors import ConfigError, InvalidValueError, PathError
from ..model import M3DT, Routing
from ..scores import AGENT_POLICIES, EXPERT_POLICY
from ..system.disk import require_writable, user_path, write_file
from ..tasks import TaskSpec, resolve
from .description import METADATA_KEY, Description, TensorDescription, describe_task, describe_tensors
from .leaving_out import experts_to_keep, router_shares, with_experts
from .session import ExportedPolicy, require_packages
from .step import ActingStep

if TYPE_CHECKING:
    from onnx import ModelProto

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2**31 - 1
"""Bytes of a single ONNX file: it is one protocol buffer."""
_STEPS = 12
"""Steps in which a new file is compared with the agent."""
_TOLERANCE = 0.01
"""What a float32 file may differ by in them. Last bits can decide which experts a `Routing` keeps, so it is not smaller."""


def export_policy(
    agent: M3DTAgent,
    tasks: str | TaskSpec | Sequence[str | TaskSpec],
    to: str | Path,
    *,
    least_share: float = 0.0,
    int8: bool = False,
) -> Description:
    """Writes the agent, as it acts in `tasks`, to the file `to`, and what the file is to a JSON document of the same name.

    The file holds the network, and as constants the tasks' prompts, statistics, target returns and bounds of actions. It acts
    with the experts that the agent is set to. Its actions are the agent's, in float32 up to the last bits.

    Args:
        tasks: of the agent: names of tasks, sets or domains, or specs. With several, the file has an input "task".
        to: a new file `NAME.onnx`; the document is `NAME.json`.
        least_share: experts that carry less than this share of the router's weight on each of the tasks are left out, but never
            the heaviest; 0 leaves none out. The shares are those on the steps of the tasks' prompts.
        int8: weights of the matrix products are stored and multiplied as 8-bit integers. The actions then differ.

    Raises:
        MissingDependencyError: the extra `export` is not installed.
        PathError: there is something at `to` or at the document's place, or nothing can be written there.
        UnknownTaskError: a task the agent does not have. StageError: nothing is trained yet.
        ConfigError: no tasks, a name that does not end in .onnx, an agent in another precision than float32, `least_share`
            outside [0, 1) or without the mixture, or a file of more than 2 GB.
        InvalidValueError: the file does not act as the agent does.
    """
    require_packages(*_PACKAGES)
    require_instance("agent", agent, M3DTAgent)
    file, document = _new_files(to)
    specs = resolve(tasks, first=agent.tasks)
    conditions = _conditions(agent, specs)
    network = _network(agent, specs, conditions, least_share)
    step = ActingStep(network.model, specs, conditions, network.experts)
    proto = _onnx(step, *describe_tensors(network.model.config, specs))
    proto = _quantized(proto) if int8 else proto
    description = _description(agent, specs, conditions, network, int8=int8, least_share=float(least_share))
    difference = _largest_difference(_with_description(proto, description), agent, specs)
    if not (int8 or least_share or difference <= _TOLERANCE):
        raise InvalidValueError(f"the file would not act as the agent does, by {difference:.2g}; nothing is written")
    description = dataclasses.replace(description, largest_difference=difference)
    write_file(document, description.to_json())
    try:
        write_file(file, _with_description(proto, description))
    except BaseException:
        document.unlink(missing_ok=True)
        raise
    return description


def _new_files(to: str | Path) -> tuple[Path, Path]:
    """The paths of the file and of its document, at which there is nothing yet."""
    file = user_path(to)
    if file.suffix != ".onnx":
        raise ConfigError(f"an exported file is called NAME.onnx; got {str(to)!r}")
    document = file.with_suffix(".json")
    for path in (file, document):
        if os.path.lexists(path):
            raise PathError(f"{path} exists, and an export replaces nothing; move it away, or name another file")
    require_writable(file)
    return file, document


def _conditions(agent: M3DTAgent, specs: Sequence[TaskSpec]) -> list[Condition]:
    """What the agent acts under in each of the tasks."""
    if not specs:
        raise ConfigError("no tasks named; an exported file acts in at least one")
    if agent.precision != "float32" or agent.dtype != torch.float32:
        raise ConfigError(f"only an agent in float32 can be exported; this one acts in {agent.precision}, with {agent.dtype}")
    known = KnownTasks(agent.tasks, agent.prompts, agent.statistics)
    found = known.requested([task.name for task in specs], None, None, None)
    assert isinstance(found, list)
    return found


@dataclass(frozen=True, slots=True)
class _Network:
    """What acts in the file.

    model: in float32 on the CPU. asked: the experts that act in the agent. experts: the same experts of `model`.
    kept: for each layer, the numbers of its experts in the agent. left_out: for each task, the share of the router's weight.
    """

    model: M3DT
    asked: Experts
    experts: Experts
    kept: tuple[tuple[int, ...], ...]
    left_out: list[float]


def _network(agent: M3DTAgent, specs: Sequence[TaskSpec], conditions: Sequence[Condition], least_share: float) -> _Network:
    """What acts on the tasks, with those of its experts that are needed."""
    if not (isinstance(least_share, float | int) and 0.0 <= least_share < 1.0):
        raise ConfigError(f"least_share must be in [0, 1); got {least_share!r}")
    acting = [agent.acts_with(task) for task in specs]
    if others := [task.name for task, (model, _) in zip(specs, acting, strict=True) if model is not acting[0][0]]:
        raise ConfigError(
            f"{specs[0].name} and {others[0]} act with different networks (grown); export each to a file of its own"
        )
    model, experts = copy.deepcopy(acting[0][0]).cpu(), acting[0][1]
    L, none = model.config.n_layers, [0.0] * len(specs)
    mixes = experts == "mixture" or isinstance(experts, Routing)
    if least_share and not mixes:
        raise ConfigError(f"least_share leaves out experts of the mixture; here acts experts={experts!r}")
    if experts == "none":
        return _Network(model, experts, experts, ((),) * L, none)
    if isinstance(experts, int):
        return _Network(with_experts(model, [[experts]] * L), experts, 0, ((experts,),) * L, none)
    if not least_share:
        return _Network(model, experts, experts, (tuple(range(model.config.n_experts)),) * L, none)
    prompts = [agent.prompts[condition.name] for condition in conditions]
    shares = router_shares(model, prompts, [condition.statistics for condition in conditions])
    kept = experts_to_keep(shares, least_share)
    carried = torch.stack([layer[:, list(own)].sum(-1) for layer, own in zip(shares.unbind(1), kept, strict=True)])  # (L, K)
    smaller, left_out = with_experts(model, kept), (1 - carried.mean(0)).clamp(min=0).tolist()
    return _Network(smaller, experts, experts, tuple(map(tuple, kept)), left_out)


def _description(
    agent: M3DTAgent,
    specs: Sequence[TaskSpec],
    conditions: Sequence[Condition],
    network: _Network,
    *,
    int8: bool,
    least_share: float,
) -> Description:
    """The document, without what the comparison will find."""
    inputs, outputs = describe_tensors(network.model.config, specs)
    return Description(
        format="m3dt-policy",
        format_version=1,
        bank_hash=agent.content_hash,
        policy=_policy_name(network.asked, int8=int8),
        experts=str(network.asked),
        weights="int8" if int8 else "float32",
        least_share=least_share,
        kept_experts=network.kept,
        largest_difference=0.0,
        tasks=tuple(describe_task(*each) for each in zip(specs, conditions, network.left_out, strict=True)),
        inputs=inputs,
        outputs=outputs,
        versions={name: importlib.metadata.version(name) for name in ("m3dt-agent", "torch", *_PACKAGES)},
    )


def _onnx(step: ActingStep, inputs: Sequence[TensorDescription], outputs: Sequence[TensorDescription]) -> ModelProto:
    """The step as an ONNX model with these inputs and outputs."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*step.parameters(), *step.buffers()))
    if size > _LARGEST:
        raise ConfigError(
            f"the file would have {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; leave out experts (least_share)"
        )
    any_number = torch.export.Dim("slots")
    with torch.no_grad(), _silence():
        shapes = tuple({0: any_number} for _ in inputs)
        program = torch.export.export(step, step.example(2), dynamic_shapes=shapes, strict=False)
        ins, outs = ([tensor.name for tensor in tensors] for tensors in (inputs, outputs))
        exported = torch.onnx.export(program, input_names=ins, output_names=outs, dynamo=True, verbose=False)
    assert exported is not None
    proto: ModelProto = exported.model_proto
    return proto


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leaves out what the exporter says of its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _quantized(proto: ModelProto) -> ModelProto:
    """The model with the weights of its matrix products as 8-bit integers.

    A matrix has a scale per column, a stack of experts one scale: onnxruntime computes stacks no other way.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}
    stacks = [node.name for node in proto.graph.node if node.op_type == "MatMul" and weights.get(node.input[1], 0) > 2]
    with tempfile.TemporaryDirectory() as folder, _silence():
        file = Path(folder, "int8.onnx")
        quantize_dynamic(proto, file, weight_type=QuantType.QInt8, per_channel=True, nodes_to_exclude=stacks)
        quantize_dynamic(onnx.load(file), file, weight_type=QuantType.QInt8)
        return onnx.load(file)


def _with_description(proto: ModelProto, description: Description) -> bytes:
    """The file's content: the model, which says what it is."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=description.to_json())
    content: bytes = proto.SerializeToString()
    return content


def _largest_difference(content: bytes, agent: M3DTAgent, specs: Sequence[TaskSpec]) -> float:
    """Between the actions of the file and of the agent in [-1, 1], in a few steps of random observations and rewards."""
    policy, theirs = ExportedPolicy.from_content(content), agent.copy()
    rng, N = np.random.default_rng(0), len(specs)
    policy.reset(specs, [()] * N)
    theirs.reset(specs)
    largest = 0.0
    for t in range(_STEPS):
        obs = np.zeros((N, agent.config.state_dim), np.float32)
        for row, task in zip(obs, specs, strict=True):
            s = agent.statistics[task.name]
            row[: task.obs_dim] = rng.normal(s.mean, s.std)
        reward, starts = rng.normal(size=N), np.full(N, t == 0)
        own = policy.act(obs, reward=reward, reset_mask=starts, active=np.ones(N, bool))
        wanted = theirs.act(obs, reward=reward, reset_mask=starts)
        largest = max(largest, float(np.abs(own[:, : wanted.shape[1]] - wanted).max()))
    return largest


def _policy_name(experts: Experts, *, int8: bool) -> str:
    """What rows of an evaluation call the file."""
    kind = "routed" if isinstance(experts, Routing) else experts
    name = EXPERT_POLICY.format(kind) if isinstance(kind, int) else AGENT_POLICIES[kind]
    return f"{name}-onnx{'-int8' if int8 else ''}"
