"""A library that lets the CUDA build of torch run on fake CUDA tensors on a machine without a GPU.

Two things of torch want a driver even for tensors that have no memory. libcaffe2_nvrtc.so needs
libcuda.so.1: the stub has that name and answers every call with "no device". Autograd asks
c10::cuda::device_count() which devices there are: the stub's own function of that name comes first, because
the library is preloaded, and gives a number that Python sets.
"""

import subprocess
from pathlib import Path

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
# These two must succeed: torch starts the driver, and asks whether a device is in use (it is not).
ANSWERS = {
    "cuInit": "int cuInit(unsigned) { return 0; }",
    "cuDevicePrimaryCtxGetState": "int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) "
    "{ if (flags) *flags = 0; if (active) *active = 0; return 0; }",
}
COUNT = """
static signed char devices = 0;
extern "C" void packvit_set_devices(int number) { devices = number; }
namespace c10 { namespace cuda { signed char device_count() noexcept { return devices; } } }
"""


def driver_functions(torch_lib: Path) -> list[str]:
    """The names of libcuda that this build of torch calls directly."""
    command = ["nm", "-D", "--undefined-only", str(torch_lib / "libcaffe2_nvrtc.so")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {line for line in lines if line.startswith("cu") and line[2:3].isupper()}
    return sorted(names | ANSWERS.keys())


def source(functions: list[str]) -> str:
    """C++ of the stub."""
    lines = [ANSWERS.get(name, f"int {name}() {{ return {NO_DEVICE}; }}") for name in functions]
    return 'extern "C" {\n' + "\n".join(lines) + "\n}\n" + COUNT


def build(folder: Path, torch_lib: Path) -> Path:
    """Compile the stub into `folder`; the library to preload.

    Raises:
        FileNotFoundError, subprocess.CalledProcessError: there is no nm or g++, or it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, library = folder / "stub.cpp", folder / "libcuda.so.1"
    text.write_text(source(driver_functions(torch_lib)))
    command = ["g++", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(text)]
    subprocess.run(command, check=True)
    return library
