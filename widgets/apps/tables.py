"""Tables of measurements in HTML: every number says what it is when it, or the head of its column, is pointed at."""

import html
import math
from collections.abc import Iterable, Mapping

TABLE = """
table.plain { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12px; width: 100%; }
table.plain th, table.plain td { padding: 3px 4px; text-align: right; border-bottom: 1px solid rgba(128,128,128,.25); }
table.plain th { font-weight: 600; } table.grid td, table.grid th { padding: 4px 2px; text-align: center; }
table.plain caption { text-align: left; padding: 4px 0; opacity: .8; }
"""


def heads(meaning: Mapping[str, tuple[str, str]]) -> str:
    """Head cells of columns: by name, (head, explanation)."""
    return "".join(f'<th title="{html.escape(why)}" tabindex=0>{head}</th>' for head, why in meaning.values())


def row(title: str, values: Iterable[float], meaning: Mapping[str, tuple[str, str]], none: str, style: str = "") -> str:
    """A row: what it is of, as HTML, and a number for each column; `none` stands for what is not finite."""
    words = [f"{value:.3g}" if math.isfinite(value) else none for value in values]
    whys = [html.escape(why) for _, why in meaning.values()]
    cells = "".join(f'<td title="{why}">{word}</td>' for word, why in zip(words, whys, strict=True))
    return f"<tr style='{style}'><td style='text-align:left'>{title}</td>{cells}</tr>"


def upright(columns: Mapping[str, Mapping[str, float]], meaning: Mapping[str, tuple[str, str]], none: str) -> str:
    """A whole table with a row for each measurement: columns by their head, as HTML, hold the numbers by name."""
    head = "".join(f"<th>{title}</th>" for title in columns)
    lines = []
    for name, (words, why) in meaning.items():
        found = [values[name] for values in columns.values()]
        cells = "".join(f"<td>{f'{value:.3g}' if math.isfinite(value) else none}</td>" for value in found)
        title = html.escape(why)
        lines.append(f'<tr title="{title}"><td style="text-align:left" tabindex=0>{words}</td>{cells}</tr>')
    return f"<table class='plain'><tr><th></th>{head}</tr>{''.join(lines)}</table>"
