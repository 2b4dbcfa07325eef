"""What NVIDIA's driver and libraries offer here, asked of themselves and not of an engine's build options."""

from __future__ import annotations

import contextlib
import ctypes
import os
from importlib.util import find_spec
from pathlib import Path

_WINDOWS = os.name == "nt"

DRIVER = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"

CUBLAS = "cublas64_12.dll" if _WINDOWS else "libcublas.so.12"


def count() -> int:
    """How many GPUs the driver can use; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return 0
    number = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number)):
        return 0
    return number.value


def present() -> bool:
    """Whether there is a GPU with its driver that is not hidden, without opening a library where the system tells."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if _WINDOWS or Path("/dev/dxg").exists():  # the latter is WSL's
        return count() > 0
    return Path("/proc/driver/nvidia/gpus").exists()


def memory(index: int = 0) -> int | None:
    """Bytes of memory of a GPU; None where the driver does not tell."""
    if count() <= index:
        return None
    driver = ctypes.CDLL(DRIVER)
    device, size = ctypes.c_int(), ctypes.c_size_t()
    if driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device):
        return None
    return size.value


def open_cublas() -> bool:
    """Open cuBLAS, the system's or the one that pip installed; once it is open, CTranslate2 finds it by its name."""
    package = find_spec("nvidia.cublas") if find_spec("nvidia") else None
    folders = (package and package.submodule_search_locations) or ()
    packaged = [str(Path(folder, below, CUBLAS)) for folder in folders for below in ("lib", "bin")]
    for library in (CUBLAS, *packaged):
        with contextlib.suppress(OSError):
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            return True
    return False
