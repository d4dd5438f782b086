"""Which OpenGL renders: MuJoCo needs one without a window, and reads its choice when it is first imported.

Measured with MuJoCo 3.3.0 in a container without a GPU, as any user, with Mesa 22.3's software renderer (llvmpipe):

    MUJOCO_GL=egl      works with Debian's libegl1, libegl-mesa0 and libgl1-mesa-dri; with a GPU, its driver's EGL
    MUJOCO_GL=osmesa   works with Debian's libosmesa6, also unpacked without root:
                           apt-get download libosmesa6 libglapi-mesa libllvm15
                           for deb in *.deb; do dpkg -x $deb mesa; done
                           export LD_LIBRARY_PATH=$PWD/mesa/usr/lib/x86_64-linux-gnu MUJOCO_GL=osmesa
    MUJOCO_GL=glfw     fails: it needs a display

The wheels of PyPI hold no OpenGL: `mujoco` and `PyOpenGL` only load a library that the system has.
"""

import os
import subprocess
import sys
from functools import cache

BACKENDS = ("egl", "osmesa")
PROBE_S = 60
# Imports MuJoCo and opens a context; a failing driver may end the process, so a child process tries it.
PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""


@cache
def find_backend() -> tuple[str | None, str]:
    """The first backend that renders, or None; and the reasons why others do not. $MUJOCO_GL limits the choice."""
    chosen = os.environ.get("MUJOCO_GL")
    reasons = []
    for backend in [chosen] if chosen else BACKENDS:
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=PROBE_S
            )
        except subprocess.TimeoutExpired:
            reasons.append(f"{backend}: no answer in {PROBE_S} s")
            continue
        if done.returncode == 0:
            return backend, ""
        reasons.append(f"{backend}: {(done.stderr.strip().splitlines() or ['crashed'])[-1]}")
    return None, "; ".join(reasons)


def why_not() -> str:
    """Why clips cannot be rendered here; empty when they can. Sets MUJOCO_GL for this process and its children."""
    for module in ("metaworld", "mujoco"):
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, env={**os.environ})
        if done.returncode and b"ModuleNotFoundError" in done.stderr:
            return f"{module} is not installed: pip install '.[evidence]'"
    backend, reasons = find_backend()
    if backend is None:
        return f"no OpenGL renders without a display ({reasons}); pipelines/motion50/README.md says which packages help"
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend
    return ""
