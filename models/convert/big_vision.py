"""big_vision .npz: FlexiViT and plain ViT, and the older vision_transformer (AugReg) naming of the same.

Flax kernels are [in, ..., out] and attention's keep their heads apart; blocks may be stacked along a
leading axis by nn.scan. GELU is the tanh approximation; the patch embedding is resized by plain bilinear
(FlexiViT 3.4), the position table by bilinear with antialias, as jax.image.resize does.
"""

from torch import Tensor

from packvit.models.convert.canonical import Imported, place_grid, place_prefix, rename

PREFIXES = ("opt/target/", "params/img/", "img/", "params/", "")
BLOCK = r"Transformer/encoderblock_(\d+)/"
MHA = r"MultiHeadDotProductAttention_\d/"
TABLE: list[tuple[str, str | None]] = [
    (r"embedding/(kernel|bias)", r"patch_embed.\1"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos"),
    (r"cls", "cls"),
    (BLOCK + r"LayerNorm_0/(scale|bias)", r"blocks.\1.norm1.\2"),
    (BLOCK + r"LayerNorm_[12]/(scale|bias)", r"blocks.\1.norm2.\2"),
    (BLOCK + MHA + r"(query|key|value)/(kernel|bias)", r"blocks.\1.attn.\2.\3"),
    (BLOCK + MHA + r"out/(kernel|bias)", r"blocks.\1.attn.proj.\2"),
    (BLOCK + r"MlpBlock_\d/Dense_0/(kernel|bias)", r"blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"MlpBlock_\d/Dense_1/(kernel|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"Transformer/encoder_norm/(scale|bias)", r"norm.\1"),
    (r"MAPHead_0/probe", "pool.attention.probe"),
    (r"MAPHead_0/LayerNorm_0/(scale|bias)", r"pool.attention.norm.\1"),
    (r"MAPHead_0/" + MHA + r"(query|key|value)/(kernel|bias)", r"pool.attention.\1.\2"),
    (r"MAPHead_0/" + MHA + r"out/(kernel|bias)", r"pool.attention.proj.\1"),
    (r"MAPHead_0/MlpBlock_0/Dense_0/(kernel|bias)", r"pool.attention.mlp.fc1.\1"),
    (r"MAPHead_0/MlpBlock_0/Dense_1/(kernel|bias)", r"pool.attention.mlp.fc2.\1"),
    (r"pre_logits/(kernel|bias)", r"rep.\1"),
    (r"head/(kernel|bias)", r"head.\1"),
]


def matches(keys: list[str]) -> bool:
    """Whether these are the keys of a big_vision file."""
    return any(prefix + "embedding/kernel" in keys for prefix in PREFIXES)


def convert(tensors: dict[str, Tensor]) -> Imported:
    """Keys and arrays of a file to our names.

    Raises:
        ValueError: unknown keys or impossible shapes, by name.
    """
    prefix = next(p for p in PREFIXES if p + "embedding/kernel" in tensors)
    # Beside the model a file may hold an optimizer's state or a text tower.
    tensors = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    out = rename(unstack(tensors), TABLE)
    heads = out.state.get("blocks.0.attn.query.kernel")
    if heads is not None and heads.ndim == 3:
        out.fields["heads"] = heads.shape[1]
    for name in list(out.state):
        origin, tensor = out.origin[name], out.pop(name)
        assert tensor is not None
        out.put(
            name.replace(".kernel", ".weight").replace(".scale", ".weight"),
            _layout(name, tensor, origin),
            origin,
        )
    out.fuse("attn.qkv.weight", tuple(f"attn.{p}.weight" for p in ("query", "key", "value")))
    out.fuse("attn.qkv.bias", tuple(f"attn.{p}.bias" for p in ("query", "key", "value")))
    for kind in ("weight", "bias"):
        out.fuse(f"attention.kv.{kind}", (f"attention.key.{kind}", f"attention.value.{kind}"))
        out.fuse(f"attention.q.{kind}", (f"attention.query.{kind}",))
    pos = out.pop("pos")
    cls, cls_pos = out.pop("cls"), None
    if pos is None:
        # posemb="sincos2d" has no parameters.
        out.fields |= {"pos_embed": "factorized", "pos_table": "sinusoidal"}
        out.fields |= {"pos_coords": "absolute", "pos_combine": "stack"}
    else:
        cls_pos = place_grid(out, pos, "pos_embedding", int(cls is not None))
    place_prefix(out, cls, None, cls_pos)
    pooled = "map" if "pool.attention.probe" in out.state else "cls" if cls is not None else "mean"
    out.fields |= {"mlp": "gelu_tanh", "pool": pooled, "patch_operator": "bilinear"}
    return out


def unstack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks stacked by nn.scan, encoderblock/x [depth, ...], to encoderblock_<i>/x [...]."""
    out = {}
    for key, tensor in tensors.items():
        head, found, tail = key.partition("Transformer/encoderblock/")
        if found:
            out |= {f"{head}Transformer/encoderblock_{i}/{tail}": t for i, t in enumerate(tensor)}
        else:
            out[key] = tensor
    return out


def _layout(name: str, tensor: Tensor, origin: str) -> Tensor:
    """Flax's layout of one tensor to ours."""
    if name == "pool.attention.probe":
        return tensor.flatten()
    if not name.endswith(".kernel"):
        # Biases of queries, keys and values keep the heads apart.
        return tensor.flatten() if name.endswith(".bias") else tensor
    if name == "patch_embed.kernel":
        if tensor.ndim != 4 or tensor.shape[0] != tensor.shape[1] or tensor.shape[2] != 3:
            raise ValueError(f"{origin} has shape {tuple(tensor.shape)}, expected (P, P, 3, width)")
        return tensor
    if tensor.ndim == 3:
        # out: [heads, head_dim, D]; query, key, value: [D, heads, head_dim]
        tensor = tensor.flatten(0, 1) if ".proj." in name else tensor.flatten(1)
    if tensor.ndim != 2:
        raise ValueError(f"{origin} has shape {tuple(tensor.shape)}, expected 2 or 3 dimensions")
    return tensor.T
