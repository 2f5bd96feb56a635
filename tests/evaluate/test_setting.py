import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.evaluate.setting import Setting, parse_setting
from packvit.packing import full_view

SIDES = st.integers(1, 2000)


@given(st.tuples(SIDES, SIDES), st.integers(8, 512), st.integers(1, 48))
def test_the_native_protocol_shows_the_whole_image_as_full_view_does(native, resolution, p):
    assert Setting(p, resolution).view(native) == full_view(native, p, resolution)


@given(st.tuples(SIDES, SIDES), st.integers(1, 1024), st.sampled_from(["native", "square", "crop:0.75"]))
def test_a_token_limit_holds_and_a_larger_grid_would_break_it(native, tokens, protocol):
    view = Setting(16, tokens=tokens, protocol=protocol).view(native)
    assert view.num_tokens <= tokens
    if protocol != "native":
        assert view.grid == (math.isqrt(tokens),) * 2


@pytest.mark.parametrize("protocol", ["square", "crop:1", "crop:0.875"])
def test_squares_are_square_whatever_the_image(protocol):
    view = Setting(16, 224, protocol=protocol).view((300, 500))
    assert view.grid == (14, 14)
    share = 1.0 if protocol != "crop:0.875" else 0.875
    side = round(share * 300)
    assert view.box == (
        (0, 0, 300, 500) if protocol == "square" else ((300 - side) // 2, (500 - side) // 2, side, side)
    )


def test_names_tell_settings_apart():
    settings = [
        Setting(16, 224),
        Setting(16, tokens=224),
        Setting(8, 224),
        Setting(16, 224, protocol="square"),
        Setting(16, 224, protocol="crop:0.875"),
    ]
    assert [s.name for s in settings] == [
        "r224-p16",
        "t224-p16",
        "r224-p8",
        "r224-p16-square",
        "r224-p16-crop0.875",
    ]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"patch_size": 0, "resolution": 32}, "patch_size=0"),
        ({"patch_size": 8}, "either"),
        ({"patch_size": 8, "resolution": 32, "tokens": 9}, "either"),
        ({"patch_size": 8, "tokens": 0}, "tokens=0"),
        ({"patch_size": 8, "resolution": 32, "protocol": "crop:1.5"}, "crop:1.5"),
        ({"patch_size": 8, "resolution": 32, "protocol": "crop"}, "'crop'"),
        ({"patch_size": 8, "resolution": 32, "protocol": "stretch"}, "stretch"),
    ],
)
def test_impossible_settings_are_refused_by_name(fields, what):
    with pytest.raises(ValueError, match=what):
        Setting(**fields)


@given(
    st.integers(1, 64),
    st.integers(1, 1024),
    st.booleans(),
    st.sampled_from(["native", "square", "crop:0.875", "crop:1"]),
)
def test_a_setting_is_read_from_its_name(p, size, by_tokens, protocol):
    setting = Setting(p, None if by_tokens else size, size if by_tokens else None, protocol)
    assert parse_setting(setting.name) == setting


@pytest.mark.parametrize("name", ["r96", "96-p8", "r96-p8-round", "r96-p0", "r0-p8", "r96-p8-crop1.2.3", ""])
def test_what_is_no_setting_is_named(name):
    with pytest.raises(ValueError, match=r"setting|at least 1|crop"):
        parse_setting(name)
