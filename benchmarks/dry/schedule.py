"""Kernels and bytes of a block, forward and backward, as Inductor schedules them for a GPU.

Inductor lowers and fuses the graphs of a compiled ViT-B block on fake CUDA tensors; what it would compile is
written down instead: each kernel with the bytes that it reads and writes. Attention is no part of these
graphs, and its own traffic (three tensors in, one out, about 0.1 of the sum) is not in the numbers.
"""

import copy
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo.device_interface as interfaces
import torch._functorch.config
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor_config
import torch._inductor.runtime.hints as hints
import torch.utils._triton as triton_support
import triton  # pyright: ignore[reportMissingImports]
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]

from dry.count import Traffic
from dry.fake import DEVICE, MULTIPROCESSORS, PROPERTIES, answer, place, to_fake
from dry.variants import fake_trainer
from gpu.batches import make_batch
from gpu.steps import plan
from packvit.models import PackedViT, ViTConfig, preset
from packvit.models.attention.segments import Layout, Segments
from packvit.models.encoder.block import Context

ROWS, SEQ_LEN = 64, 1024  # T = 65,536
FP32, BF16 = torch.float32, torch.bfloat16  # of the stream that blocks read and add to
BLOCKS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "as it is by default": ({}, FP32),
    "no biases": ({"biases": False}, FP32),
    "stream in bf16": ({}, BF16),
    "stream in bf16, no biases": ({"biases": False}, BF16),
}


class Recorder:
    """Stands in for Inductor's last stage, the compilation of kernels.

    Attributes:
        graphs: of each graph whether it is a backward one, and (kind, bytes) of its kernels.
    """

    def __init__(self) -> None:
        self.graphs: list[tuple[bool, list[tuple[str, int]]]] = []

    def install(self) -> None:
        """From now on Inductor schedules and compiles nothing."""
        recorder = self

        def note(lowering: Any) -> Any:
            lowering._update_scheduler()
            nodes = lowering.scheduler.nodes
            kernels = [(type(node).__name__, int(node.get_read_write_buffers_sizes())) for node in nodes]
            recorder.graphs.append((lowering.is_backward, kernels))
            return SimpleNamespace(call=answer(None), runner=None, __file__="none", key="none", value="")

        lowering: Any = GraphLowering
        lowering.compile_to_module = note

    def backend(self, graph: Any, inputs: Any) -> Any:
        """A backend for torch.compile: Inductor schedules the graph, and the graph itself runs."""
        return compile_fx.compile_fx(graph, inputs, inner_compile=self._inner)

    def _inner(self, graph: Any, inputs: Any, **options: Any) -> Any:
        kept = copy.deepcopy(graph)
        compile_fx.compile_fx_inner(graph, inputs, **options)

        def call(*values: Any) -> Any:
            with Traffic.paused():
                return kept(*values)

        return call


def pretend() -> None:
    """Answer what Inductor asks of a GPU, of Triton and of caches."""
    inductor_config.fx_graph_cache = False
    inductor_config.force_disable_caches = True
    # It would compute with real tensors; constants are few and small here.
    inductor_config.joint_graph_constant_folding = False
    torch._functorch.config.enable_autograd_cache = False
    cuda: Any = interfaces.CudaInterface
    cuda.Worker.get_device_properties = staticmethod(answer(PROPERTIES))
    cuda.Worker.current_device = staticmethod(answer(0))
    cuda.get_compute_capability = staticmethod(answer(90))
    cuda.is_available = staticmethod(answer(True))
    cuda.is_triton_capable = staticmethod(answer(True))
    cuda.raise_if_triton_unavailable = staticmethod(answer(None))
    support: Any = triton_support
    support.has_triton = answer(True)
    support.triton_hash_with_backend = answer("none")
    device = hints.DeviceProperties(
        type="cuda",
        index=0,
        multi_processor_count=MULTIPROCESSORS,
        cc=90,
        major=9,
        regs_per_multiprocessor=PROPERTIES.regs_per_multiprocessor,
        max_threads_per_multi_processor=PROPERTIES.max_threads_per_multi_processor,
        max_threads_per_block=PROPERTIES.max_threads_per_block,
        warp_size=PROPERTIES.warp_size,
    )
    properties: Any = hints.DeviceProperties
    properties.create = classmethod(answer(device))
    driver = SimpleNamespace(
        get_current_target=answer(GPUTarget("cuda", 90, 32)),
        get_current_device=answer(0),
        get_current_stream=answer(0),
        get_device_interface=answer(torch.cuda),
    )
    active: Any = triton.runtime.driver
    active.set_active(driver)


def sums(recorder: Recorder, ways: tuple[bool, ...] = (False, True)) -> dict[str, Any]:
    """Kernels of the recorded graphs, backward or not, and their bytes; of them those of matrix products."""
    graphs = [kernels for backward, kernels in recorder.graphs if backward in ways]
    kernels = [kernel for some in graphs for kernel in some]
    products = [size for kind, size in kernels if kind == "ExternKernelSchedulerNode"]
    return {
        "kernels": len(kernels),
        "gb": round(sum(size for _, size in kernels) / 1e9, 3),
        "products": len(products),
        "gb_of_products": round(sum(products) / 1e9, 3),
    }


def schedule(config: ViTConfig, stream: torch.dtype, recorder: Recorder) -> dict[str, Any]:
    """Kernels and bytes of the first block of a model of depth 1; bf16 autocast."""
    torch._dynamo.reset()
    mode = FakeTensorMode()
    model = PackedViT(config)
    place(model, mode)
    batch = to_fake(make_batch(ROWS, SEQ_LEN, noise=False), mode)
    recorder.graphs.clear()
    with mode:
        model.compile_blocks(recorder.backend)
        layout = Layout.build(batch.cu_seqlens, batch.image_index, batch.num_images, batch.max_len)
        segments = Segments.build(layout.cu_seqlens, layout.max_len, "varlen", total=layout.num_slots)
        x = torch.empty(layout.num_slots, config.width, dtype=stream, device=DEVICE, requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16):
            out = model.blocks[0](x, Context(layout, segments))
        out.backward(torch.empty_like(out))
    both = sums(recorder)
    return {
        "kernels": both["kernels"],
        "gb": both["gb"],
        "gb_without_products": round(both["gb"] - both["gb_of_products"], 3),
        "forward": sums(recorder, (False,)),
        "backward": sums(recorder, (True,)),
    }


def ends(recorder: Recorder) -> dict[str, Any]:
    """Bytes of all but the blocks: embedding, positions, last norm, pooling, head and loss of a ViT-B.

    Where the compiler has no part in it, every operation reads its inputs and writes its outputs.
    """
    torch._dynamo.reset()
    mode = FakeTensorMode()
    trainer = fake_trainer(plan(preset("B", depth=1, patch_buffer=16)), mode)
    trainer.engine.model.compile_blocks(recorder.backend)
    trainer.engine.model.blocks = torch.nn.ModuleList()
    batch = to_fake(make_batch(ROWS, SEQ_LEN, noise=False), mode)
    recorder.graphs.clear()
    with mode, Traffic() as traffic:
        trainer.gradients(batch)
    compiled = sums(recorder)
    return {
        "kernels": traffic.operations + compiled["kernels"],
        "gb": round(traffic.bytes / 1e9 + compiled["gb"], 3),
        "gb_compiled": compiled["gb"],
    }


def run() -> dict[str, Any]:
    """Kernels and GB of a ViT-B's block, by its kind, and of what is no block."""
    pretend()
    recorder = Recorder()
    recorder.install()
    results: dict[str, Any] = {}
    for name, (fields, stream) in BLOCKS.items():
        try:
            results[name] = schedule(preset("B", depth=1, **fields), stream, recorder)
        except Exception as error:  # of any part of the compiler
            results[name] = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    return {"block": results, "ends": ends(recorder)}
