"""Arrays from files that are not trusted."""

import io
import math

import numpy as np
from numpy.lib import format as npy


def read_array(data: bytes) -> np.ndarray:
    """The array of a .npy file; its header is trusted only as far as there are bytes for it.

    Raises:
        ValueError: it is not such a file, is shorter or longer than its array, or would have to be unpickled.
    """
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # a damaged header, a Python literal, raises nearly anything
        raise ValueError("its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    found = len(data) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > found:
        raise ValueError(f"it has {found} bytes, too few for {dtype} {list(shape)}")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if fortran else "C").copy()
