"""Position embeddings of a mixed batch are those that one image after another would get."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, cast, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from packvit.models import ViTConfig
from packvit.models.position.embedding import (
    Places,
    PosCoords,
    PosEmbed,
    PositionConfig,
    centres,
    rope_tables,
    rotate,
)

CHOICES = {name: get_args(kind) for name, kind in get_type_hints(PositionConfig).items()}
COMBINE, COORDS, RESIZE = (CHOICES[f"pos_{name}"] for name in ("combine", "coords", "resize"))
GRIDS = ((5, 7), (1, 1), (3, 9), (12, 2), (1, 6), (8, 8))
WIDTH = 8


def batch(grids: Sequence[tuple[int, ...]] = GRIDS) -> Places:
    """All places of all the images, one after another; every token is one cell."""
    coords = [torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid)) for grid in grids]
    sides = [torch.tensor([grid]).expand(len(c), -1) for grid, c in zip(grids, coords, strict=True)]
    cells = torch.cat(coords).int()
    return Places(cells, torch.ones_like(cells), torch.cat(sides).int())


def make(**fields) -> PosEmbed:
    torch.manual_seed(0)
    return PosEmbed(ViTConfig(width=WIDTH, heads=1, pos_grid=(5, 7), **fields), WIDTH).double()


def resized(table: torch.Tensor, length: int) -> torch.Tensor:
    """A learned line [n, D] at another length, by torch."""
    out = F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)
    return out[0].T


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("coords_kind", COORDS)
def test_learned_factorized_tables_are_interpolated_per_image(combine: str, coords_kind: str):
    embed = make(pos_combine=combine, pos_coords=coords_kind)
    table_y, table_x = (embed.get_parameter(f"table_{axis}") for axis in "yx")
    expected = []
    for rows, cols in GRIDS:
        if coords_kind == "absolute":
            y = table_y[torch.arange(rows).clamp(max=4)]
            x = table_x[torch.arange(cols).clamp(max=6)]
        else:
            longer = max(rows, cols)
            y = resized(table_y, rows if coords_kind == "fractional" else longer)[:rows]
            x = resized(table_x, cols if coords_kind == "fractional" else longer)[:cols]
        y, x = y[:, None].expand(-1, cols, -1), x[None].expand(rows, -1, -1)
        joined = {"sum": y + x, "product": y * x, "stack": torch.cat([x, y], -1)}[combine]
        expected.append(joined.flatten(0, 1))
    torch.testing.assert_close(embed(batch()), torch.cat(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("resize", RESIZE)
def test_grid_is_resized_per_image(resize: str):
    grids = [g for g in GRIDS if min(g) > 1]  # torch mishandles antialias to a width of one
    embed = make(pos_embed="grid_2d", pos_resize=resize)
    mode, _, antialias = resize.partition("_")
    table = embed.table.permute(2, 0, 1)[None]
    expected = [
        F.interpolate(table, size=grid, mode=mode, antialias=bool(antialias))[0].flatten(1).T
        for grid in grids
    ]
    torch.testing.assert_close(embed(batch(grids)), torch.cat(expected), atol=1e-12, rtol=0)


def test_grid_can_keep_the_aspect_ratio():
    embed = make(pos_embed="grid_2d", pos_coords="fractional_aspect")
    table = embed.table.permute(2, 0, 1)[None]
    full = F.interpolate(table, size=(9, 9), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(embed(batch([(3, 9)])), full[:, :3].flatten(1).T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("resize", RESIZE)
def test_beyond_a_table_of_absolute_places_its_last_entry_goes_on(resize: str):
    embed = make(pos_embed="grid_2d", pos_resize=resize, pos_coords="absolute")
    out = embed(batch([(9, 20)])).view(9, 20, WIDTH)
    torch.testing.assert_close(out[:5, :7], embed.table.detach(), atol=1e-12, rtol=0)
    assert torch.equal(out[5:], out[4:5].expand(4, -1, -1))
    assert torch.equal(out[:, 7:], out[:, 6:7].expand(-1, 13, -1))


def test_fractional_coordinates_are_centres_in_table_cells():
    coords, sides = torch.tensor([[0, 0], [1, 3]]), torch.tensor([[2, 4], [2, 4]])
    places = Places(coords, torch.ones_like(coords), sides)
    got = centres(places, "fractional", (8, 8), torch.float64)
    torch.testing.assert_close(got, torch.tensor([[1.5, 0.5], [5.5, 6.5]], dtype=torch.float64))
    aspect = centres(places, "fractional_aspect", (8, 8), torch.float64)
    torch.testing.assert_close(aspect, torch.tensor([[0.5, 0.5], [2.5, 6.5]], dtype=torch.float64))


def test_fourier_is_sines_and_cosines_of_one_linear_layer():
    embed = make(pos_table="fourier")
    places = batch()
    position = (places.coords + 0.5).double() / places.sizes
    angle = 2 * math.pi * position @ embed.frequencies
    torch.testing.assert_close(embed(places), torch.cat([angle.sin(), angle.cos()], 1))


def test_sinusoids_tell_rows_from_columns():
    for combine in ("sum", "product", "stack"):
        embed = make(pos_table="sinusoidal", pos_combine=combine, pos_coords="absolute")
        out = embed(batch([(6, 6)]))
        assert (torch.cdist(out, out) + torch.eye(36)).min() > 1e-3


def test_stacked_sinusoids_are_big_visions_sincos2d():
    embed = make(pos_table="sinusoidal", pos_combine="stack", pos_coords="absolute")
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    y, x = (t.flatten()[:, None] / torch.tensor([1.0, 10000.0]) for t in (y, x))
    expected = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
    torch.testing.assert_close(embed(batch([(3, 4)])), expected)


def rotated_pair(width: int) -> tuple[torch.Tensor, Callable[[list[float], list[float]], torch.Tensor]]:
    """A random query [1, 2, width], and its score with a random key: (place of the query, of the key)."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, width, dtype=torch.float64), torch.randn(1, 2, width, dtype=torch.float64)

    def score(a: list[float], b: list[float]) -> torch.Tensor:
        tables = [rope_tables(torch.tensor([p], dtype=torch.float64), width, 100.0) for p in (a, b)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum(-1)

    return q, score


def test_rotated_scores_depend_on_the_difference_of_places_only():
    q, score = rotated_pair(8)
    torch.testing.assert_close(score([3.0, 1.0], [1.0, 5.0]), score([12.5, 0.0], [10.5, 4.0]))
    assert not torch.allclose(score([3.0, 1.0], [1.0, 5.0]), score([3.0, 1.0], [5.0, 1.0]))
    torch.testing.assert_close(rotate(q, *rope_tables(torch.zeros(1, 2).double(), 8, 100.0)), q)


KINDS = [
    {"pos_table": table, "pos_coords": coords, "pos_combine": combine}
    for table, coords, combine in product(CHOICES["pos_table"], COORDS, COMBINE)
]
KINDS += [
    {"pos_embed": "grid_2d", "pos_resize": resize, "pos_coords": coords}
    for resize, coords in product(RESIZE, COORDS)
]


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: "-".join(f.values()))
def test_every_kind_is_finite_distinct_and_passes_gradcheck(fields: dict[str, str]):
    embed = make(**fields)
    places = batch([(3, 2), (2, 4)])
    out = embed(places)
    assert out.shape == (14, WIDTH)
    assert (torch.pdist(out[:6]) > 1e-9).all()
    names = [name for name, _ in embed.named_parameters()]

    def run(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(embed, state, (places,))

    if names:
        parameters = tuple(p.detach().requires_grad_() for p in embed.parameters())
        assert torch.autograd.gradcheck(run, parameters)


@pytest.mark.parametrize("kind", COORDS)
def test_rotation_passes_gradcheck_and_keeps_lengths(kind: PosCoords):
    torch.manual_seed(0)
    places = batch([(3, 2), (2, 4)])
    tables = rope_tables(centres(places, kind, (5, 7), torch.float64), 8, 100.0)
    q, k = (torch.randn(14, 2, 8, dtype=torch.float64, requires_grad=True) for _ in "qk")
    torch.testing.assert_close(rotate(q, *tables).norm(dim=-1), q.norm(dim=-1))
    assert torch.autograd.gradcheck(
        lambda q, k: (rotate(q, *tables) * rotate(k, *tables).flip(0)).sum(), (q, k)
    )


@pytest.mark.parametrize(
    "fields", [f for f in KINDS if f["pos_coords"] != "absolute"], ids=lambda f: "-".join(f.values())
)
def test_a_token_of_several_cells_has_the_place_of_a_larger_patch(fields: dict[str, str]):
    """Two by two cells of 8 pixels at (2..3, 4..5) are the patch of 16 pixels at (1, 2)."""
    embed, coarse = make(**fields), batch([(3, 4)])
    fine = Places(2 * coarse.coords, 2 * coarse.extents, 2 * coarse.sizes)
    assert fine.coords[6].tolist() == [2, 4]
    assert coarse.coords[6].tolist() == [1, 2]
    torch.testing.assert_close(embed(fine), embed(coarse), atol=1e-12, rtol=0)
    kind = cast(PosCoords, fields["pos_coords"])
    places = [centres(each, kind, (5, 7), torch.float64) for each in (fine, coarse)]
    torch.testing.assert_close(*places, atol=1e-12, rtol=0)
    for a, b in zip(*(rope_tables(place, 8, 100.0) for place in places), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_an_absolute_place_is_the_middle_of_the_cells():
    places = Places(torch.tensor([[2, 4]]), torch.tensor([[2, 3]]), torch.tensor([[6, 8]]))
    assert centres(places, "absolute", (5, 7), torch.float64).tolist() == [[2.5, 5.0]]


CLIPS = ((2, 3, 2), (3, 5, 6), (1, 1, 1), (5, 2, 3))


def make_clip(grid: tuple[int, int, int] = (3, 5, 6), width: int = 12, **fields: Any) -> PosEmbed:
    torch.manual_seed(0)
    config = PositionConfig(pos_grid=grid, **fields)
    config.check_widths(width, width)
    return PosEmbed(config, width).double()


@pytest.mark.parametrize("combine", COMBINE)
def test_a_third_axis_has_a_table_of_its_own(combine: str):
    embed, expected = make_clip(pos_combine=combine), []
    tables = [embed.get_parameter(f"table_{axis}") for axis in "tyx"]
    for grid in CLIPS:
        t, y, x = (resized(table, cells) for table, cells in zip(tables, grid, strict=True))
        t, y, x = torch.broadcast_tensors(t[:, None, None], y[None, :, None], x[None, None])
        joined = {"sum": t + y + x, "product": t * y * x, "stack": torch.cat([x, y, t], -1)}[combine]
        expected.append(joined.flatten(0, 2))
    out = embed(batch(CLIPS))
    assert out.shape == (6 * 2 + 90 + 1 + 30, 12)
    torch.testing.assert_close(out, torch.cat(expected), atol=1e-12, rtol=0)


def test_a_table_of_three_axes_is_resized_along_all_of_them():
    embed = make_clip(pos_embed="grid_2d", pos_resize="bilinear_antialias")
    larger = (5, 5, 9)  # enlarged, antialiasing changes nothing
    expected = F.interpolate(embed.table.permute(3, 0, 1, 2)[None], size=larger, mode="trilinear")[0]
    torch.testing.assert_close(embed(batch([larger])), expected.flatten(1).T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("resize", RESIZE)
def test_a_clip_of_one_frame_has_the_places_of_the_picture(resize: str):
    for fields in ({"pos_embed": "grid_2d", "pos_resize": resize}, {"pos_combine": "sum"}):
        clip, picture = make_clip((1, 5, 7), WIDTH, **fields), make(**fields)
        state = {name: clip.get_parameter(name).detach().view_as(p) for name, p in picture.named_parameters()}
        picture.load_state_dict(state)
        if "table_t" in clip.state_dict():
            torch.nn.init.zeros_(clip.get_parameter("table_t"))
        assert torch.equal(clip(batch([(1, *grid) for grid in GRIDS])), picture(batch()))


@pytest.mark.parametrize(
    "fields",
    [
        {"pos_table": "sinusoidal", "pos_combine": "stack", "pos_coords": "absolute"},
        {"pos_table": "fourier"},
        {"pos_embed": "grid_2d", "pos_resize": "bicubic_antialias", "pos_coords": "fractional_aspect"},
    ],
    ids=lambda f: "-".join(f.values()),
)
def test_every_place_of_a_clip_is_told_from_the_others(fields: dict[str, Any]):
    assert torch.pdist(make_clip(**fields)(batch([(3, 4, 5)]))).min() > 1e-3


def test_rotations_of_three_axes_depend_on_the_difference_of_places_along_each():
    q, score = rotated_pair(12)
    same = score([3.0, 1.0, 2.0], [1.0, 5.0, 2.5])
    torch.testing.assert_close(score([12.5, 0.0, 7.0], [10.5, 4.0, 7.5]), same)
    for axis in range(3):
        moved = [3.0, 1.0, 2.0]
        moved[axis] += 1
        assert not torch.allclose(score(moved, [1.0, 5.0, 2.5]), same)
    torch.testing.assert_close(rotate(q, *rope_tables(torch.zeros(1, 3).double(), 12, 100.0)), q)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_combine": "stack"}, "pos_combine='stack' needs a multiple of 3 as width, got 16"),
        ({"pos_table": "fourier"}, "pos_table='fourier' needs a multiple of 6 as width, got 16"),
        ({"pos_embed": "rope_2d"}, r"pos_embed='rope_2d' needs a multiple of 6 as width / heads, got 8"),
    ],
)
def test_widths_that_three_axes_cannot_share_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PositionConfig(pos_grid=(2, 4, 4), **fields).check_widths(16, 8)
