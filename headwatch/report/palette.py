"""Colours of the page, the SVG figures and the plotly figures."""

# Name of the CSS variable -> (light, dark). The figures are drawn in the light colours.
COLOURS = {
    "paper": ("#fcfcfa", "#131519"),
    "raised": ("#ffffff", "#1a1d22"),
    "ink": ("#1c1e22", "#e7e5e0"),
    "soft": ("#575c65", "#a5a9b1"),
    "faint": ("#73777f", "#868b95"),
    "rule": ("#dddcd6", "#31353c"),
    "grid": ("#ecebe6", "#23272d"),
    "cell": ("#f0efeb", "#1f2328"),
    "base": ("#c0432b", "#ef7d60"),
    "new": ("#1f66b0", "#68aef2"),
    "back": ("#7b4fb5", "#b795ee"),
    "untested": ("#a3a6aa", "#6d727a"),
    "gain": ("#0b7a6f", "#46c2b3"),
    "loss": ("#9a6412", "#dba24e"),
    "ramp-0": ("#1c3a78", "#3d66c4"),
    "ramp-1": ("#2f8fae", "#43b3c7"),
    "ramp-2": ("#b7dfb0", "#dcf0b5"),
    "focus": ("#1f66b0", "#8fc4ff"),
}
INK, SOFT, FAINT, RULE, CELL = (COLOURS[name][0] for name in ("ink", "soft", "faint", "rule", "cell"))
BASE, NEW, BACK, GAIN, LOSS = (COLOURS[name][0] for name in ("base", "new", "back", "gain", "loss"))
GROUPS = {"base": BASE, "emerged": NEW, "re-emerged": BACK}
BAND_OPACITY = 0.16  # of confidence intervals


def css_variables() -> str:
    """The colours as CSS custom properties of :root, for the light and the dark scheme."""
    lines = [f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items()]
    return "\n".join([":root {", "color-scheme: light dark;", *lines, f"--band: {BAND_OPACITY};", "}"])


def ramp(t: float) -> str:
    """Colour of a cohort at t in [0, 1]: early cohorts dark, late ones light, which also holds in greyscale."""
    low, middle, high = (COLOURS[f"ramp-{i}"][0] for i in range(3))
    return mix(low, middle, 2.0 * t) if t <= 0.5 else mix(middle, high, 2.0 * t - 1.0)


def on_cell(colour: str, strength: float) -> str:
    """The colour over an empty map cell, at a strength in [0, 1]; any strength above 0 is visible."""
    return mix(CELL, colour, 0.0 if strength <= 0.0 else 0.12 + 0.88 * min(strength, 1.0))


def mix(start: str, end: str, t: float) -> str:
    """Linear interpolation between two #rrggbb colours."""
    return "#" + "".join(f"{round(a + (b - a) * t):02x}" for a, b in zip(_rgb(start), _rgb(end), strict=True))


def translucent(colour: str, opacity: float) -> str:
    """A #rrggbb colour as CSS rgba()."""
    return f"rgba({','.join(map(str, _rgb(colour)))},{opacity})"


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
