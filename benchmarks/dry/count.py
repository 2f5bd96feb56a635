"""What a step asks of a machine besides arithmetic: waits of the host, copies between memories, messages."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu.results import ROOMS

COPIES = ("aten::_to_copy", "aten::copy_")
MESSAGES = ("c10d::", "_c10d_functional::")
RECEIVING_FIRST = (
    "allgather_",
    "_allgather_base_",
    "reduce_scatter_",
    "_reduce_scatter_base_",
    "alltoall_",
    "alltoall_base_",
)
EMPTY = ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::detach", "aten::_unsafe_view")
WAITING = ("wait_tensor", "barrier")  # of MESSAGES: they send nothing


class Count(TorchDispatchMode):
    """Counts while it is entered; enter it inside a FakeTensorMode.

    Attributes:
        waits: reads of a number that lies on a device, and copies that the host waits for, by place in the
            source.
        copies: tensors copied, by `to device` or `to host`.
        copied: bytes copied, likewise.
        messages: collectives, by operation.
        sent: bytes that this rank gives to them, likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the call, and let it happen; a read of a fake tensor gives 1."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a sharded tensor's own parts come back here
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            self.waits[_place()] += 1
            return 1.0 if args[0].dtype.is_floating_point else 1
        if name.startswith(MESSAGES) and not name.endswith(WAITING):
            self._message(name.split("::")[1], args)
        result = func(*args, **kwargs)
        if name in COPIES:
            source = args[1] if name == "aten::copy_" else args[0]
            blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            self._copy(source, args[0] if name == "aten::copy_" else result, blocks)
        return result

    def _copy(self, source: Tensor, target: Tensor, blocks: bool) -> None:
        if source.device.type == target.device.type or source.ndim + target.ndim == 0:
            return  # a lone number in host memory goes along as an argument of the kernel
        way = "to host" if target.device.type == "cpu" else "to device"
        if blocks:
            self.waits[_place()] += 1
        self.copies[way] += 1
        self.copied[way] += source.nbytes

    def _message(self, name: str, args: Any) -> None:
        # Those with an output of their own name it first.
        gives = args[1] if name in RECEIVING_FIRST else args[0]
        tensors = [leaf for leaf in tree_leaves(gives) if isinstance(leaf, Tensor)]
        self.messages[name] += 1
        self.sent[name] += sum(tensor.nbytes for tensor in tensors)


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, each for itself, outside of compiled graphs.

    Attributes:
        bytes: of inputs and outputs of all operations that are no views.
        operations: how many there were.
    """

    pauses = 0

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """The compiler works while this mode is on."""
        return True

    @staticmethod
    @contextmanager
    def paused() -> Iterator[None]:
        """Nothing is counted in here."""
        Traffic.pauses += 1
        try:
            yield
        finally:
            Traffic.pauses -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the call, and let it happen."""
        result = func(*args, **(kwargs or {}))
        if not Traffic.pauses and not func.is_view and func._schema.name not in EMPTY:
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(_bytes(leaf) for leaf in leaves if isinstance(leaf, Tensor))
            self.operations += 1
        return result


def _bytes(x: Tensor) -> int:
    """Of a tensor's own; expanded dimensions are read once."""
    return min(x.nbytes, x.untyped_storage().nbytes())


def _place() -> str:
    """The innermost line of packvit's own that runs now."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).resolve().parts
        for room in ROOMS:
            if room in parts[:-1] and "site-packages" not in parts and "benchmarks" not in parts:
                return f"{'/'.join(parts[parts.index(room) :])}: {frame.name}"
    return "elsewhere"
