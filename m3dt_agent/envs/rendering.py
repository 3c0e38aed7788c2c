"""OpenGL, which `MUJOCO_GL` chooses: what does not draw works without it, and what draws says in one line what is missing.

    import of a simulator ─► `without_broken_opengl`   tries the backend first; if it fails, the simulator is told to do without
    first frame           ─► `open_renderer`           a renderer, or an error that names MUJOCO_GL and what to install

mujoco and dm_control load the backend while they are imported, and fail if they cannot. A backend that works is left to them,
so that a program which draws with their own renderers still can.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import M3DTError

VARIABLE = "MUJOCO_GL"
_PLATFORM = "PYOPENGL_PLATFORM"
_OFF = ("disable", "disabled", "off", "false", "0")
_GLFW = ("", "glfw", "glx", "wgl", "cgl", "enable", "enabled", "on", "true", "1")
_NEEDS = {
    "egl": "an EGL library and a GPU whose driver has it (apt install libegl1; without a GPU: MUJOCO_GL=osmesa)",
    "osmesa": "the library OSMesa (apt install libosmesa6)",
    "glfw": "a display (without one, set MUJOCO_GL=egl with a GPU, else MUJOCO_GL=osmesa after apt install libosmesa6)",
}

_failed: dict[str, str] = {}
"""Backends for which no context could be opened, and why: mujoco 3.3 aborts the process when it tries a second time."""


@contextlib.contextmanager
def without_broken_opengl(simulator: str) -> Iterator[None]:
    """Inside the block, `simulator` can be imported even if the backend that `MUJOCO_GL` names does not work here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="glfw")  # dm_control tries glfw first, which warns if there is no display
        before = os.environ.get(VARIABLE)
        fault = backend_fault(before or "")
        if fault is None and before and simulator == "dm_control":
            _import_fault("mujoco")  # it draws our frames, and need not share the fault that dm_control's own renderer may have
            fault = _import_fault("dm_control._render")
        if fault is not None:
            os.environ[VARIABLE] = "disabled"
        try:
            yield
        finally:
            if fault is not None and before is not None:
                os.environ[VARIABLE] = before


def open_renderer(model: Any, size: int, what: str, *, shadows: bool = True) -> Any:
    """A `mujoco.Renderer` of frames of size x size pixels, with shadows or without.

    Raises:
        M3DTError: nothing can be drawn here; the message begins with `what` and says what to do.
    """
    renderer, fault = try_renderer(model, size)
    if fault is None:
        import mujoco

        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        return renderer
    raise M3DTError(
        f"{what}: cannot open an OpenGL context: {fault}; set {VARIABLE} to glfw, egl or osmesa before Python starts"
    )


def try_renderer(model: Any, size: int) -> tuple[Any, str | None]:
    """A `mujoco.Renderer` and None; or None and why there is none, in one line that names `MUJOCO_GL` and what it needs."""
    import mujoco

    backend = os.environ.get(VARIABLE, "")
    if backend.lower().strip() in _OFF:
        return None, f"{VARIABLE}={backend} switches drawing off"
    if (fault := backend_fault(backend) or _failed.get(backend)) is not None:
        return None, fault
    with _silence() as told:
        try:
            return mujoco.Renderer(model, size, size), None
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            reason = str(told[0].message) if told else str(error)
    named = f"{VARIABLE}={backend}" if backend else f"{VARIABLE}, which is not set,"
    _failed[backend] = f"{named} needs {_NEEDS[_kind(backend)]}: {' '.join(reason.split())}"
    return None, _failed[backend]


@functools.cache
def backend_fault(backend: str) -> str | None:
    """Why nothing can be drawn with this value of `MUJOCO_GL`; None if its libraries can be loaded, or none are needed."""
    kind = _kind(backend)
    if kind == "osmesa":
        modules: tuple[str, ...] = ("OpenGL.GL", "OpenGL.osmesa")
    elif kind == "egl":
        modules = ("OpenGL.EGL",)
    elif backend.lower().strip() in (*_GLFW, *_OFF):
        return None
    else:
        return f"{VARIABLE}={backend!r} is no backend; it must be egl, osmesa or glfw"
    if sys.platform != "linux":
        return None
    if os.environ.get(_PLATFORM, kind).lower() != kind:
        return f"{_PLATFORM}={os.environ[_PLATFORM]} does not go with {VARIABLE}={backend}; unset it"
    before = os.environ.get(_PLATFORM)
    os.environ[_PLATFORM] = kind  # read by PyOpenGL once, when it is imported
    faults = [fault for fault in map(_import_fault, modules) if fault is not None]
    if not faults:
        return None
    if before is None:
        del os.environ[_PLATFORM]
    return f"{VARIABLE}={backend} needs {_NEEDS[kind]}: {faults[0]}"


def _kind(backend: str) -> str:
    name = backend.lower().strip()
    return "glfw" if name in _GLFW else name


def _import_fault(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except (
        Exception
    ) as error:  # PyOpenGL raises AttributeError if a library is missing, dm_control RuntimeError, ImportError, …
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


@contextlib.contextmanager
def _silence() -> Iterator[list[warnings.WarningMessage]]:
    """Collects glfw's warnings, and drops what `__del__` of half-made renderers and contexts complains about."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield told
    finally:
        sys.unraisablehook = hook
