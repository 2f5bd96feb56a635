"""Position embeddings of a mixed batch are those that one image after another would get."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from packvit.models import ViTConfig
from packvit.models.pos_embed import PosEmbed, coordinates, rope_tables, rotate

GRIDS = ((5, 7), (1, 1), (3, 9), (12, 2), (1, 6), (8, 8))
WIDTH = 8


def batch(grids=GRIDS):
    """coords and sides [T, 2] of all the images, one after another."""
    coords = [torch.cartesian_prod(torch.arange(r), torch.arange(c)).view(-1, 2) for r, c in grids]
    sides = [torch.tensor([grid]).expand(len(c), 2) for grid, c in zip(grids, coords, strict=True)]
    return torch.cat(coords).int(), torch.cat(sides).int()


def make(**fields) -> PosEmbed:
    torch.manual_seed(0)
    return PosEmbed(ViTConfig(width=WIDTH, heads=1, pos_grid=(5, 7), **fields)).double()


def resized(table: torch.Tensor, length: int) -> torch.Tensor:
    """A learned line [n, D] at another length, by torch."""
    out = F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)
    return out[0].T


@pytest.mark.parametrize("combine", ["sum", "product", "stack"])
@pytest.mark.parametrize("coords_kind", ["fractional", "fractional_aspect", "absolute"])
def test_learned_factorized_tables_are_interpolated_per_image(combine: str, coords_kind: str):
    embed = make(pos_combine=combine, pos_coords=coords_kind)
    expected = []
    for rows, cols in GRIDS:
        if coords_kind == "absolute":
            y = embed.table_y[torch.arange(rows).clamp(max=4)]
            x = embed.table_x[torch.arange(cols).clamp(max=6)]
        else:
            longer = max(rows, cols)
            y = resized(embed.table_y, rows if coords_kind == "fractional" else longer)[:rows]
            x = resized(embed.table_x, cols if coords_kind == "fractional" else longer)[:cols]
        y, x = y[:, None].expand(-1, cols, -1), x[None].expand(rows, -1, -1)
        joined = {"sum": y + x, "product": y * x, "stack": torch.cat([x, y], -1)}[combine]
        expected.append(joined.flatten(0, 1))
    torch.testing.assert_close(embed(*batch()), torch.cat(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("resize", ["bilinear_antialias", "bicubic_antialias", "bicubic"])
def test_grid_is_resized_per_image(resize: str):
    grids = [g for g in GRIDS if min(g) > 1]  # torch mishandles antialias to a width of one
    embed = make(pos_embed="grid_2d", pos_resize=resize)
    mode, _, antialias = resize.partition("_")
    table = embed.table.permute(2, 0, 1)[None]
    expected = [
        F.interpolate(table, size=grid, mode=mode, antialias=bool(antialias))[0].flatten(1).T
        for grid in grids
    ]
    torch.testing.assert_close(embed(*batch(grids)), torch.cat(expected), atol=1e-12, rtol=0)


def test_grid_can_keep_the_aspect_ratio():
    embed = make(pos_embed="grid_2d", pos_coords="fractional_aspect")
    table = embed.table.permute(2, 0, 1)[None]
    full = F.interpolate(table, size=(9, 9), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(embed(*batch([(3, 9)])), full[:, :3].flatten(1).T, atol=1e-12, rtol=0)


def test_fractional_coordinates_are_centres_in_table_cells():
    coords, sides = torch.tensor([[0, 0], [1, 3]]), torch.tensor([[2, 4], [2, 4]])
    got = coordinates(coords, sides, "fractional", (8, 8), torch.float64)
    torch.testing.assert_close(got, torch.tensor([[1.5, 0.5], [5.5, 6.5]], dtype=torch.float64))
    aspect = coordinates(coords, sides, "fractional_aspect", (8, 8), torch.float64)
    torch.testing.assert_close(aspect, torch.tensor([[0.5, 0.5], [2.5, 6.5]], dtype=torch.float64))


def test_fourier_is_sines_and_cosines_of_one_linear_layer():
    embed = make(pos_table="fourier")
    coords, sides = batch()
    position = (coords + 0.5).double() / sides
    angle = 2 * math.pi * position @ embed.frequencies
    torch.testing.assert_close(embed(coords, sides), torch.cat([angle.sin(), angle.cos()], 1))


def test_sinusoids_tell_rows_from_columns():
    for combine in ("sum", "product", "stack"):
        embed = make(pos_table="sinusoidal", pos_combine=combine, pos_coords="absolute")
        out = embed(*batch([(6, 6)]))
        assert (torch.cdist(out, out) + torch.eye(36)).min() > 1e-3


def test_stacked_sinusoids_are_big_visions_sincos2d():
    embed = make(pos_table="sinusoidal", pos_combine="stack", pos_coords="absolute")
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    y, x = (t.flatten()[:, None] / torch.tensor([1.0, 10000.0]) for t in (y, x))
    expected = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
    torch.testing.assert_close(embed(*batch([(3, 4)])), expected)


def test_rotated_scores_depend_on_the_difference_of_places_only():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 8, dtype=torch.float64), torch.randn(1, 2, 8, dtype=torch.float64)

    def score(a, b):
        tables = [rope_tables(torch.tensor([p], dtype=torch.float64), 8, 100.0) for p in (a, b)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum(-1)

    torch.testing.assert_close(score([3.0, 1.0], [1.0, 5.0]), score([12.5, 0.0], [10.5, 4.0]))
    assert not torch.allclose(score([3.0, 1.0], [1.0, 5.0]), score([3.0, 1.0], [5.0, 1.0]))
    torch.testing.assert_close(rotate(q, *rope_tables(torch.zeros(1, 2).double(), 8, 100.0)), q)


TABLES = ("learned", "sinusoidal", "fourier")
COORDS = ("absolute", "fractional", "fractional_aspect")
KINDS = [
    {"pos_table": table, "pos_coords": coords, "pos_combine": combine}
    for table, coords, combine in product(TABLES, COORDS, ("sum", "product", "stack"))
]
KINDS += [
    {"pos_embed": "grid_2d", "pos_resize": resize, "pos_coords": coords}
    for resize, coords in product(("bilinear_antialias", "bicubic_antialias", "bicubic"), COORDS)
]


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: "-".join(f.values()))
def test_every_kind_is_finite_distinct_and_passes_gradcheck(fields: dict[str, str]):
    embed = make(**fields)
    coords, sides = batch([(3, 2), (2, 4)])
    out = embed(coords, sides)
    assert out.shape == (14, WIDTH)
    assert (torch.pdist(out[:6]) > 1e-9).all()
    names = [name for name, _ in embed.named_parameters()]

    def run(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(embed, state, (coords, sides))

    if names:
        parameters = tuple(p.detach().requires_grad_() for p in embed.parameters())
        assert torch.autograd.gradcheck(run, parameters)


@pytest.mark.parametrize("kind", COORDS)
def test_rotation_passes_gradcheck_and_keeps_lengths(kind: str):
    torch.manual_seed(0)
    coords, sides = batch([(3, 2), (2, 4)])
    tables = rope_tables(coordinates(coords, sides, kind, (5, 7), torch.float64), 8, 100.0)
    q, k = (torch.randn(14, 2, 8, dtype=torch.float64, requires_grad=True) for _ in "qk")
    torch.testing.assert_close(rotate(q, *tables).norm(dim=-1), q.norm(dim=-1))
    assert torch.autograd.gradcheck(
        lambda q, k: (rotate(q, *tables) * rotate(k, *tables).flip(0)).sum(), (q, k)
    )
