import pytest

from headwatch.report import palette


@pytest.mark.parametrize(("t", "expected"), [(0.0, "ramp-0"), (0.5, "ramp-1"), (1.0, "ramp-2")])
def test_ramp_passes_through_its_colours(t: float, expected: str):
    assert palette.ramp(t) == palette.COLOURS[expected][0]


@pytest.mark.parametrize(("strength", "expected"), [(0.0, palette.CELL), (1.0, palette.BASE), (2.0, palette.BASE)])
def test_strength_of_a_cell(strength: float, expected: str):
    assert palette.on_cell(palette.BASE, strength) == expected


def test_css_variables_and_translucent_colours():
    assert f"--new: light-dark({palette.NEW}, #68aef2);" in palette.css_variables()
    assert palette.translucent("#1f66b0", 0.16) == "rgba(31,102,176,0.16)"
