"""The tables of planted.py, as markdown."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planted import Count

SIZES_FROM = (0.0, 0.025, 0.035, 0.05)  # lower edges of the table by size


def table(counts: dict[str, dict[int, "Count"]]) -> str:
    """Markdown: one row per setting and size."""
    lines = [
        "| settings | pairs per family | planted events | found at the right probe | at another | small plants: found "
        "| untouched heads | given an event | false |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, by_size in counts.items():
        for size, c in by_size.items():
            row = c.row()
            lines.append(
                f"| {name} | {size} | {c.planted} | {row['found_share']:.1%} | {c.late} "
                f"| {c.small_found} of {c.small} | {c.untouched} "
                f"| {c.given} ({row['given_share']:.2%}) | {c.false} ({row['false_share']:.2%}) |"
            )
    return "\n".join(lines) + "\n"


def table_by_base(counts: dict[int, dict[int, "Count"]]) -> str:
    """Markdown: planted events found and untouched heads with an event, per base, at the defaults."""
    sizes = list(next(iter(counts.values())))
    lines = [
        "| base | " + " | ".join(f"{size} pairs: found | untouched with an event" for size in sizes) + " |",
        "| --- " * (1 + 2 * len(sizes)) + "|",
    ]
    for base, by_size in counts.items():
        cells = [f"{c.found} of {c.planted} | {c.given} of {c.untouched}" for c in by_size.values()]
        lines.append(f"| {base} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table_by_size(counts: dict[int, "Count"]) -> str:
    """Markdown: planted events found at the right probe, by size, at the defaults."""
    ends = [*(f" to {size:.1%}" for size in SIZES_FROM[1:]), " and more"]
    head = " | ".join(f"{size:.1%}{end}" for size, end in zip(SIZES_FROM, ends, strict=True))
    lines = [f"| pairs per family | {head} |", "| --- " * (len(SIZES_FROM) + 1) + "|"]
    for pairs, count in counts.items():
        cells = [count.by_size.get(size, [0, 0]) for size in SIZES_FROM]
        lines.append(f"| {pairs} | " + " | ".join(f"{found} of {planted}" for planted, found in cells) + " |")
    return "\n".join(lines) + "\n"


def table_of_losses(counts: dict[int, "Count"]) -> str:
    """Markdown: planted losses of base heads found, by whether the loss was detectable at the base."""
    lines = ["| pairs per family | detectable at the base | not detectable |", "| --- | --- | --- |"]
    for pairs, count in counts.items():
        (sure, found), (unsure, also) = (count.losses.get(known, [0, 0]) for known in (True, False))
        lines.append(f"| {pairs} | {found} of {sure} | {also} of {unsure} |")
    return "\n".join(lines) + "\n"
