"""The attention pattern of one head on one prompt, as one SVG."""

from collections.abc import Sequence
from html import escape

from torch import Tensor

INK, SOFT, RULE, FILL = "#1c1e22", "#575c65", "#dddcd6", "#1f66b0"
CELL, MARGIN, TOP, MAX_TOKENS = 14, 16, 52, 96
LEAST = 0.01  # attention below this is not drawn


def attention_svg(pattern: Tensor, tokens: Sequence[str], title: str) -> str:
    """Draw a pattern: rows attend to columns; of a longer prompt the last MAX_TOKENS positions.

    Args:
        pattern: [T, T].
        tokens: text of every token, [T].
        title: the heading.

    Returns:
        A standalone SVG document; every cell has a tooltip.
    """
    first = max(0, len(tokens) - MAX_TOKENS)
    texts = [shown(token) for token in tokens[first:]]
    label = 10 + 7 * max(map(len, texts))
    left, top, side = MARGIN + label, TOP + label, CELL * len(texts)
    width, height = max(left + side + MARGIN, 420), top + side + MARGIN
    note = "Rows attend to columns. Dark: much attention." + (f" The last {len(texts)} tokens." if first else "")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-monospace, monospace" font-size="11" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="20" font-size="14" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="38" fill="{SOFT}">{escape(note)}</text>',
        f'<path d="M{left} {top}h{side}v{side}h{-side}zl{side} {side}" fill="none" stroke="{RULE}"/>',
    ]
    for place, text in enumerate(texts):
        middle = CELL * place + CELL / 2
        parts.append(
            f'<text x="{left - 6}" y="{top + middle + 4:.0f}" text-anchor="end" fill="{INK}">{escape(text)}</text>'
        )
        parts.append(
            f'<text transform="translate({left + middle + 4:.0f} {top - 6}) rotate(-90)" fill="{INK}">'
            f"{escape(text)}</text>"
        )
    for row in range(len(texts)):
        for column in range(row + 1):
            value = float(pattern[first + row, first + column])
            if value >= LEAST:
                parts.append(
                    f'<rect x="{left + CELL * column}" y="{top + CELL * row}" width="{CELL}" height="{CELL}" '
                    f'fill="{FILL}" fill-opacity="{min(value, 1.0):.2f}"><title>{escape(texts[row])} to '
                    f"{escape(texts[column])}: {value:.2f}</title></rect>"
                )
    return "\n".join([*parts, "</svg>\n"])


def shown(token: str) -> str:
    """A token's text with visible spaces and line breaks, at most 14 characters.

    >>> shown(" the")
    '·the'
    """
    text = token.replace("\n", "⏎").replace(" ", "·")
    return text if len(text) <= 14 else f"{text[:13]}…"
