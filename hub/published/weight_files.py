"""The authors' weight files: finds them, reads them without trusting them, and writes them.

    <folder>/                                                          files are read from any subfolder, and written to:
      model_saved_backbone/prompt_model_<prefix>_iter_<N>_seed<seed>   the state dict, GPT-2's two buffers per block included
      model_saved_expert/<x>/expert_<e>_iter_<N>                       {"block_<i>": {"c_fc.weight", "c_fc.bias", …}}
      model_saved_moe/<x>/moe__iter_<N>                                {"block_<i>": {"router.fc1.weight", …,
                                                                         "experts.<e>.c_fc.weight", …}}

Each file is a `torch.save` of dicts of float32 tensors. Outside of this module, tensors have the names of weight_names.py.
Reading executes nothing, and anything but a finite tensor of the right shape at an expected key is refused with the file and
key named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from m3dt_agent.config import ModelConfig, Stage
from m3dt_agent.errors import BankError, ConfigError, ShapeError
from m3dt_agent.hub.published.archives import load_torch_file, why_refused
from m3dt_agent.hub.published.weight_names import published_config, published_shapes
from m3dt_agent.system.disk import path_errors, publish, scratch_folder, user_path

_KINDS = {
    "backbone": re.compile(r"prompt_model_(?P<series>.*)_iter_(?P<iteration>[0-9]+)_seed(?P<seed>[0-9]+)"),
    "expert": re.compile(r"expert_(?P<expert>[0-9]+)_iter_(?P<iteration>[0-9]+)"),
    "mixture": re.compile(r"moe__iter_(?P<iteration>[0-9]+)"),
}
_BUFFER = re.compile(r"transformer\.h\.([0-9]+)\.attn\.(bias|masked_bias)")
_BLOCK = re.compile(r"block_[0-9]+")
_EXPERT_IN_MIXTURE = re.compile(r"block_0\.experts\.([A-Za-z0-9_]+)\.")
_CAUSAL_TOKENS = 1024
"""Side of GPT-2's causal mask in the authors' files: `n_positions` of their GPT2Config."""
_BUFFER_TYPES = (torch.uint8, torch.bool, torch.float32)
_MASKED_BIAS = -1e4
"""What GPT-2 adds to the attention score of a token that may not be seen; a buffer in the authors' files."""
_SERIES = "m3dt"
"""<prefix> and <x> in the names of the files written here."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file whose name has the authors' form. Files of a series differ only in iteration and expert."""

    path: Path
    series: tuple[str, ...]
    expert: int
    iteration: int


def read_published(folder: str | Path) -> dict[str, Tensor]:
    """Reads the authors' weights in `folder` and its subfolders: name → float32 tensor, as `from_published` takes them.

    A backbone alone is enough, and so is one with experts but no router. If there are several iterations, the highest is read.
    Experts that are both in the mixture's file and in files of their own must be equal. Tensors are mapped from the files,
    which must not change afterwards.

    Raises:
        BankError: there is no backbone; there are several seeds, prefixes or groupings; an expert is missing; or a file holds
            anything but the tensors it should hold, all finite. The message names file and key.
    """
    folder = user_path(folder)
    candidates = _candidates(folder)
    backbones, experts, mixtures = (_latest(found, kind, folder) for kind, found in candidates.items())
    if not backbones:
        raise BankError(f"no backbone in {folder} or its subfolders: no file prompt_model_<prefix>_iter_<N>_seed<seed>")
    tensors = _read_backbone(backbones[0])
    config = published_config(tensors, n_heads=1)  # the weights do not show the number of heads
    if mixtures:
        tensors |= _read_mixture(mixtures[0], config)
    elif set(experts) != set(range(len(experts))):
        missing = next(e for e in range(len(experts)) if e not in experts)
        raise BankError(f"{folder} has files of experts {_listed(experts)}; expert {missing} is missing")
    for e, path in experts.items():
        expert = _read_expert(path, e, config)
        if mixtures:
            _require_agreement(expert, tensors, path, mixtures[0])
        tensors |= expert
    return tensors


def write_published_files(folder: Path, tensors: Mapping[str, Tensor], *, steps: Mapping[Stage, int], seed: int) -> None:
    """Writes tensors that `to_published` returned, or some of them, as the authors' files into the new or empty `folder`.

    Either all files are written or none. The mixture's file is written if there is a router; each expert's file always is.

    Args:
        steps, seed: what each stage was trained with, for the names of the files.

    Raises:
        DiskSpaceError: no room.
    """
    with path_errors(folder), scratch_folder(folder.parent) as scratch:
        for name, content in _contents(tensors, steps, seed):
            _save(scratch / name, content)
        publish(scratch, folder)


def _contents(tensors: Mapping[str, Tensor], steps: Mapping[Stage, int], seed: int) -> Iterator[tuple[str, object]]:
    """Path and content of each file."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        parts.setdefault(part, {})[key] = tensor
    backbone, router = parts.pop("backbone"), parts.pop("router", {})
    name = f"model_saved_backbone/prompt_model_{_SERIES}_iter_{steps['backbone']:d}_seed{seed:d}"
    yield name, backbone | _buffers(n_layers=sum(key.endswith("ln_1.bias") for key in backbone))
    for expert, own in parts.items():
        yield f"model_saved_expert/{_SERIES}/{expert}_iter_{steps['experts']:d}", _nested(own)
    if router:
        mixture = {_mixture_key(name): tensor for name, tensor in tensors.items() if not name.startswith("backbone/")}
        yield f"model_saved_moe/{_SERIES}/moe__iter_{steps['router']:d}", _nested(mixture)


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `_blocks`."""
    nested: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        block, _, field = key.partition(".")
        nested.setdefault(block, {})[field] = tensor
    return nested


def _buffers(n_layers: int) -> dict[str, Tensor]:
    causal = torch.ones(1, 1, _CAUSAL_TOKENS, _CAUSAL_TOKENS, dtype=torch.uint8).tril()
    each = {"bias": causal, "masked_bias": torch.tensor(_MASKED_BIAS)}
    return {f"transformer.h.{i}.attn.{name}": buffer for i in range(n_layers) for name, buffer in each.items()}


def _save(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own confusion after a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _candidates(folder: Path) -> dict[str, list[_Candidate]]:
    """The files under `folder` of each kind, by their names; hidden folders are left out."""
    if not folder.is_dir():
        raise BankError(f"{folder} is not a folder")
    found: dict[str, list[_Candidate]] = {kind: [] for kind in _KINDS}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        for kind, pattern in _KINDS.items():
            if (match := pattern.fullmatch(path.name)) and path.is_file() and not hidden:
                parts = match.groupdict()
                series = (str(path.parent), parts.get("series", ""), parts.get("seed", ""))
                found[kind].append(_Candidate(path, series, int(parts.get("expert", 0)), int(parts["iteration"])))
    return found


def _latest(candidates: list[_Candidate], kind: str, folder: Path) -> dict[int, Path]:
    """Expert (0 for other kinds) → its file of the highest iteration."""
    series = {candidate.series: candidate.path for candidate in candidates}
    if len(series) > 1:
        raise BankError(f"{folder} holds several series of {kind} files; choose a folder with one: {_listed(series.values())}")
    ordered = sorted(candidates, key=lambda candidate: (candidate.expert, candidate.iteration))
    return {candidate.expert: candidate.path for candidate in ordered}


def _read_backbone(path: Path) -> dict[str, Tensor]:
    content = {str(key): value for key, value in _load(path).items()}
    buffers = {key: _dense(path, key, content.pop(key), *_BUFFER_TYPES) for key in list(content) if _BUFFER.fullmatch(key)}
    found = _tensors(path, content)
    try:
        config = published_config({f"backbone/{key}": tensor for key, tensor in found.items()}, n_heads=1)
    except (ConfigError, ShapeError) as error:
        raise BankError(f"{path} is no backbone of the authors': {error}") from error
    config = dataclasses.replace(config, n_experts=0)
    expected = {f"transformer.h.{i}.attn.{name}" for i in range(config.n_layers) for name in ("bias", "masked_bias")}
    _refuse(path, "should not hold", buffers.keys() - expected)
    _refuse(path, "has other values than GPT-2 in", [key for key, buffer in buffers.items() if not _is_buffer(key, buffer)])
    return _take(path, found, published_shapes(config), lambda name: name.removeprefix("backbone/"))


def _read_expert(path: Path, expert: int, backbone: ModelConfig) -> dict[str, Tensor]:
    shapes = published_shapes(dataclasses.replace(backbone, n_experts=1))
    keys = {name.partition("/")[2]: shape for name, shape in shapes.items() if name.startswith("expert_0/")}
    own = {f"expert_{expert}/{key}": shape for key, shape in keys.items()}
    return _take(path, _tensors(path, _blocks(path)), own, lambda name: name.partition("/")[2])


def _read_mixture(path: Path, backbone: ModelConfig) -> dict[str, Tensor]:
    found = _tensors(path, _blocks(path))
    experts = {match[1] for match in map(_EXPERT_IN_MIXTURE.match, found) if match}
    weighed = found["block_0.router.fc4.bias"].numel() if "block_0.router.fc4.bias" in found else len(experts)
    if len(experts) != weighed or not experts:
        raise BankError(f"{path}: its router weighs {weighed} experts; the file holds experts {_listed(experts) or 'none'}")
    shapes = published_shapes(dataclasses.replace(backbone, n_experts=weighed))
    own = {name: shape for name, shape in shapes.items() if not name.startswith("backbone/")}
    return _take(path, found, own, _mixture_key)


def _mixture_key(name: str) -> str:
    """Where the mixture's file keeps what is called `name`, its two levels joined by a dot."""
    part, _, key = name.partition("/")
    block, _, field = key.partition(".")
    return key if part == "router" else f"{block}.experts.{part.removeprefix('expert_')}.{field}"


def _require_agreement(expert: Mapping[str, Tensor], mixture: Mapping[str, Tensor], path: Path, mixture_path: Path) -> None:
    for name, tensor in expert.items():
        if name not in mixture:
            raise BankError(f"{path} holds {name}; {mixture_path} has no such expert")
        if not torch.equal(tensor, mixture[name]):
            raise BankError(f"{path} and {mixture_path} disagree about {name}")


def _load(path: Path) -> dict[object, object]:
    try:
        content = load_torch_file(path)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything
        raise BankError(f"{path} is damaged or foreign: {why_refused(error)}") from error
    if not isinstance(content, dict):
        raise BankError(f"{path} must hold a dict; got {type(content).__name__}")
    return content


def _blocks(path: Path) -> dict[str, object]:
    """The content of a dict of dicts, keys joined by a dot."""
    joined: dict[str, object] = {}
    for block, content in _load(path).items():
        if not (isinstance(block, str) and _BLOCK.fullmatch(block) and isinstance(content, dict)):
            raise BankError(f"{path} must hold 'block_<i>' → dict of tensors; got {block!r} → {type(content).__name__}")
        joined |= {f"{block}.{key}": value for key, value in content.items()}
    return joined


def _tensors(path: Path, content: Mapping[str, object]) -> dict[str, Tensor]:
    return {key: _dense(path, key, value, torch.float32) for key, value in content.items()}


def _dense(path: Path, key: str, value: object, *dtypes: torch.dtype) -> Tensor:
    """`value`, if it is a dense tensor of one of `dtypes` with as many numbers as its shape says."""
    if not isinstance(value, Tensor):
        raise BankError(f"{path}: {key} must be a tensor; got {type(value).__name__}")
    if value.dtype not in dtypes or value.layout != torch.strided or value.device.type != "cpu":
        wanted, got = " or ".join(map(str, dtypes)), f"{value.dtype}, {value.layout}, on {value.device}"
        raise BankError(f"{path}: {key} must be a dense tensor of {wanted}; got {got}")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise BankError(f"{path}: {key} holds fewer numbers than its shape {tuple(value.shape)} needs")
    return value.detach()


def _is_buffer(key: str, buffer: Tensor) -> bool:
    """Whether `buffer` is what GPT-2 has at `key`: a causal mask (1, 1, n, n), or the number added where it is 0."""
    if key.endswith(".masked_bias"):
        return buffer.ndim == 0 and bool(buffer < 0)
    square = buffer.ndim == 4 and buffer.shape == (1, 1, buffer.shape[2], buffer.shape[2])
    return square and torch.equal(buffer.bool(), torch.ones(buffer.shape, dtype=torch.bool).tril())


def _take(
    path: Path, found: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], key_of: Callable[[str], str]
) -> dict[str, Tensor]:
    """The tensors called `shapes`' names, each at `key_of(name)` of the file; there must be no others, and all be finite."""
    keys = {name: key_of(name) for name in shapes}
    _refuse(path, "lacks", set(keys.values()) - found.keys())
    _refuse(path, "should not hold", found.keys() - set(keys.values()))
    for name, key in keys.items():
        if found[key].shape != shapes[name]:
            raise BankError(f"{path}: {key} must have shape {tuple(shapes[name])}; got {tuple(found[key].shape)}")
        if not found[key].isfinite().all():
            raise BankError(f"{path}: {key} holds a NaN or an infinity")
    return {name: found[key] for name, key in keys.items()}


def _refuse(path: Path, what: str, keys: Iterable[str]) -> None:
    if listed := _listed(keys):
        raise BankError(f"{path} {what} {listed}")


def _listed(names: Iterable[object]) -> str:
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:5]) + ", …" * (len(ordered) > 5)
