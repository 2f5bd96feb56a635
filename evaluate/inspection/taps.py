"""The residual stream of a model after each of its sublayers, taken while it runs.

Hooks are set on modules that the forward pass calls anyway, so the model's computation does not change, and
they are removed afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from packvit.models import Layout, PackedViT
from packvit.models.encoder.block import Block, Context

# Takes the name of a place, the stream there [T, D], and where its tokens stand.
Take = Callable[[str, Tensor, Layout], None]


def places(model: PackedViT) -> list[str]:
    """The names of the places in their order: `embed`, then `1 attn`, `1 mlp`, `2 attn`, ...

    A block with parallel attention and MLP has one place, such as `1`.
    """
    names = ["embed"]
    for number, block in enumerate(model.blocks, 1):
        assert isinstance(block, Block)
        names += [str(number)] if block.norm2 is None else [f"{number} attn", f"{number} mlp"]
    return names


@contextmanager
def tapped(model: PackedViT, take: Take) -> Iterator[None]:
    """Within the context, every forward pass hands the stream at each place to `take`, in their order.

    The tensors are the model's own: `take` must not change them. The model's blocks must not be compiled.
    """
    layouts: list[Layout] = []  # of the forward pass that runs

    def enter(_: nn.Module, arguments: tuple[Tensor, Context]) -> None:
        x, context = arguments
        layouts[:] = [context.layout]
        take("embed", x, context.layout)

    def before(name: str, _: nn.Module, arguments: tuple[Tensor]) -> None:
        take(name, arguments[0], layouts[0])

    def after(name: str, _: nn.Module, __: tuple, x: Tensor) -> None:
        take(name, x, layouts[0])

    handles = [model.blocks[0].register_forward_pre_hook(enter)]
    for number, block in enumerate(model.blocks, 1):
        assert isinstance(block, Block)
        name = str(number)
        if block.norm2 is not None:
            # The second norm reads the stream to which attention has been added.
            handles.append(block.norm2.register_forward_pre_hook(partial(before, f"{number} attn")))
            name = f"{number} mlp"
        handles.append(block.register_forward_hook(partial(after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
