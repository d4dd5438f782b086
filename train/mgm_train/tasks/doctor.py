"""Check a machine for training: what is installed, what the GPU can do, and what will limit the speed."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError
from mgm_shared.storage import StorePath
from mgm_shared.store import open_store
from mgm_shared.versions import installed_version
from mgm_train.config import PretrainConfig
from mgm_train.data.packed_batch import SHARED_MEMORY, free_shared_bytes
from mgm_train.data.workers import clip_bytes, count_workers
from mgm_train.masking.strategies import num_masked
from mgm_train.model_config import ModelConfig, model_config
from mgm_train.models.flops import peak, pretrain_flops
from mgm_train.runtime.distributed import autocast_dtype, precision_remark
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training.auto_config import Machine, choose_options

MIN_PYTHON = (3, 11)
# A decoder for each codec that data sets have, and the encoder of `mgm-prep transcode`.
DECODERS, ENCODER = ("h264", "hevc", "vp9", "av1", "mpeg4"), "libx264"
COMPILE_TIMEOUT_S = 300
TRY_COMPILE = "import sys, torch; f = torch.compile(lambda x: (x * 2).sum()); f(torch.ones(9, device=sys.argv[1]))"
READ_S, MAX_CLIPS_READ = 2.0, 200
# The share of its peak that a GPU reaches in training (MFU).
USUAL_MFU = 0.45
# Videos of a data set for which the default batch size is not lowered.
MANY_VIDEOS = 100_000


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of `doctor`."""

    name: str
    found: str
    is_good: bool = True
    advice: str = ""
    """What to do; empty where there is nothing to do."""


def doctor(store: str | StorePath | None = None, *, model: str = "vit_base") -> list[Finding]:
    """Check this machine: versions, GPU, bfloat16, torch.compile, codecs, shared memory, and what limits training.

    It takes up to a minute, most of it for torch.compile.

    Args:
        store: Path or URL of a store, whose reading speed is measured.
        model: The model size whose training speed is estimated.

    Raises:
        UserError: There is no such store or model, or the store has no training video.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = model_config(model)
    workers = default_workers(device, shape)
    checks = [_python(), _torch(device), *_gpu(device), _compile(device), *_video(), _shared_memory(workers), _memory()]
    if store is None:
        return [*checks, _compute(device, shape)]
    clips_per_s = _clips_per_s(store)
    read_per_s = clips_per_s * max(1, workers.in_all)
    reading, computing = _reading(clips_per_s, read_per_s, workers), _compute(device, shape)
    return [*checks, reading, computing, _limit(device, shape, read_per_s)]


@dataclass(frozen=True, kw_only=True)
class DefaultWorkers:
    """The data loading processes that `--num-workers auto` starts for a pretraining with default options."""

    number: int
    """For each training process."""
    num_processes: int
    """Training processes: one for each GPU."""
    remark: str = ""
    """Says what to do where shared memory allows fewer than the cores do."""

    @property
    def in_all(self) -> int:
        return self.number * self.num_processes

    @property
    def text(self) -> str:
        each = f" for each of {self.num_processes} GPUs" if self.num_processes > 1 else ""
        return f"{self.number} data loading process{'es' * (self.number != 1)}{each}"


def default_workers(device: torch.device, shape: ModelConfig) -> DefaultWorkers:
    """Count the data loading processes as a training does, with batches as large as the memory of the device allows."""
    num_processes = torch.cuda.device_count() if device.type == "cuda" else 1
    config = PretrainConfig(device="cuda" if device.type == "cuda" else "cpu")
    machine = replace(Machine.of(config), world_size=num_processes)
    config, _ = choose_options(config, shape, MANY_VIDEOS, machine, {})
    num_clips = config.batch_size * config.repeats // (config.grad_accum_steps * num_processes)
    batch_bytes = num_clips * clip_bytes(config.num_frames, config.image_px)
    workers = count_workers("auto", batch_bytes, device, num_processes)
    return DefaultWorkers(number=workers.number, num_processes=num_processes, remark=workers.remark)


def _python() -> Finding:
    is_good = sys.version_info >= MIN_PYTHON
    advice = "" if is_good else f"install Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer"
    return Finding(name="Python", found=f"{platform.python_version()}", is_good=is_good, advice=advice)


def _torch(device: torch.device) -> Finding:
    found = f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'built for CPUs'}"
    is_unused = device.type == "cpu" and (os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") is not None)
    advice = "there is a GPU that torch cannot use: install a torch whose CUDA fits to the driver (see nvidia-smi)"
    return Finding(name="PyTorch", found=found, is_good=not is_unused, advice=advice if is_unused else "")


def _gpu(device: torch.device) -> Iterator[Finding]:
    if device.type == "cpu":
        yield Finding(name="GPU", found="none", is_good=False, advice="train vit_tiny here, larger models on a GPU")
        return
    for number in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
        is_busy = free < 0.5 * total
        advice = "another process uses it: see nvidia-smi" if is_busy else ""
        found = f"{torch.cuda.get_device_name(number)}, {free:.1f} of {total:.1f} GiB free"
        yield Finding(name=f"GPU {number}", found=found, is_good=not is_busy, advice=advice)
    remark = precision_remark("auto", device)
    advice = f"{remark}; a GPU from 2020 on has bfloat16" if remark else ""
    yield Finding(name="precision", found=_dtype_name(_dtype(device)), is_good=not remark, advice=advice)


def _dtype(device: torch.device) -> torch.dtype:
    """What `--precision auto` computes in."""
    return autocast_dtype("auto", device) or torch.float32


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compile(device: torch.device) -> Finding:
    """Whether torch.compile works, tried in a process of its own, which it leaves helpers in."""
    command = [sys.executable, "-c", TRY_COMPILE, device.type]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            name="compile", found=f"took over {COMPILE_TIMEOUT_S} s", is_good=False, advice="use --no-compile"
        )
    if done.returncode == 0:
        return Finding(name="compile", found="torch.compile works")
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    advice = "use --no-compile, or install a C++ compiler and the header files of Python"
    return Finding(name="compile", found=f"torch.compile fails: {reason}", is_good=False, advice=advice)


def _video() -> Iterator[Finding]:
    import av
    import imageio_ffmpeg

    missing = sorted(set(DECODERS) - set(av.codecs_available))
    found = f"PyAV {installed_version('av')}, decodes {', '.join(name for name in DECODERS if name not in missing)}"
    advice = f"not {', '.join(missing)}: install PyAV from its wheel, `pip install --force-reinstall av`"
    yield Finding(name="codecs", found=found, is_good=not missing, advice=advice if missing else "")
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        encoders = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True)
        is_good, found = ENCODER in encoders.stdout, f"{imageio_ffmpeg.get_ffmpeg_version()}"
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        is_good, found = False, f"does not run: {error}"
    advice = f"`mgm-prep transcode` needs ffmpeg with {ENCODER}: `pip install --force-reinstall imageio-ffmpeg`"
    yield Finding(name="ffmpeg", found=found, is_good=is_good, advice="" if is_good else advice)


def _shared_memory(workers: DefaultWorkers) -> Finding:
    found = f"{free_shared_bytes() / 2**30:.1f} GiB free in {SHARED_MEMORY}, enough for {workers.text}"
    return Finding(name="shared memory", found=found, is_good=not workers.remark, advice=workers.remark)


def _memory() -> Finding:
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return Finding(name="processor", found=f"{num_usable_cores()} cores, {memory_gib:.0f} GiB of memory")


def _clips_per_s(store: str | StorePath) -> float:
    """Clips that one core reads, crops and masks in a second; 16 frames of 224 px at the default options."""
    dataset = pretrain_dataset(open_store(store), PretrainConfig())
    # The first one compiles the loops over cells.
    dataset[0, 0]
    start_s = time.perf_counter()
    for number in range(1, MAX_CLIPS_READ + 1):
        samples = dataset[number, number % len(dataset)]
        for video_id, problem in (sample["unreadable"] for sample in samples if "unreadable" in sample):
            raise UserError(f"{video_id} cannot be read: {problem}; run `mgm-prep verify {store}`")
        if time.perf_counter() - start_s > READ_S:
            break
    return number / (time.perf_counter() - start_s)


def _reading(clips_per_s: float, read_per_s: float, workers: DefaultWorkers) -> Finding:
    found = f"{clips_per_s:.0f} clips/s on one core, about {read_per_s:.0f} with {workers.text}"
    return Finding(name="store", found=found)


def _trained_per_s(device: torch.device, shape: ModelConfig) -> tuple[float, str]:
    """Pretraining clips that all devices can compute in a second at their peak rate, and where the rate is from."""
    rate = peak(device, _dtype(device))
    flops = pretrain_flops(shape, num_masked(shape.grid, PretrainConfig().mask_ratio))
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    return num_devices * rate.flops_per_s / flops, f"{rate.flops_per_s / 1e12:.3g} TFLOP/s, {rate.source}"


def _compute(device: torch.device, shape: ModelConfig) -> Finding:
    clips_per_s, source = _trained_per_s(device, shape)
    usual = f"; {USUAL_MFU:.0%} of it is usual" if device.type == "cuda" else ""
    found = f"pretrains at most {clips_per_s:.3g} clips/s of {shape.name} ({source}){usual}"
    return Finding(name="GPU speed" if device.type == "cuda" else "CPU speed", found=found)


def _limit(device: torch.device, shape: ModelConfig, read_per_s: float) -> Finding:
    """The slower one of reading and computing. On a CPU both share the cores, of which computing needs nearly all."""
    computed = USUAL_MFU * _trained_per_s(device, shape)[0]
    compared = f"reads {read_per_s:.3g} clips/s, computes about {computed:.3g}"
    if computed <= read_per_s:
        on_gpu = "nothing in the loader; a larger GPU or more of them, a smaller model, or --mask-ratio 0.9"
        advice = on_gpu if device.type == "cuda" else "use a smaller model, or a GPU"
        return Finding(name="limit", found=f"computing: this machine {compared}", advice=advice)
    advice = (
        "give the job more cores (--num-workers auto takes all it has), or extract with --frame-codec planes, which "
        "halves the work of reading"
    )
    return Finding(name="limit", found=f"reading: this machine {compared}", is_good=False, advice=advice)
