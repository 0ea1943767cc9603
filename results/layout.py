"""Figures: tables as plain data, which print, go into JSON and are read back from it.

    {"title": "emoji, 5 shots",
     "columns": [["trainer", "Trainer", "text"], ["base", "Base", "percent"]],     key, head, format
     "rows": [{"trainer": "CoOp", "base": [38.16, 0.07]}]}

A value that is null was not measured and prints as "-"; one that a row lacks prints as nothing.
"""

from tabulate import tabulate


def brief(value: float) -> str:
    """Seconds or MB: one decimal below 100."""
    return f"{value:.{1 if value < 100 else 0}f}"


def parts(value: object) -> list:
    """The numbers of a cell that has several, of which trailing ones may be null."""
    return [part for part in (value if isinstance(value, list) else [value]) if part is not None]


def percent(value: object) -> str:
    """Mean and spread: 38.16 ±0.07"""
    return " ±".join(f"{part:.2f}" for part in parts(value))


def cost(value: object) -> str:
    """Seconds or MB, and in brackets those that feature extraction took, if that is more than 0.0: 47.1 (4.3)"""
    whole, *extract = parts(value)
    return brief(whole) + "".join(f" ({brief(part)})" for part in extract if part >= 0.05)


def rate(value: object) -> str:
    """A number, and in brackets how many times that of the first row it is: 8.1 (2.0x)"""
    number, *times = parts(value)
    return f"{number:.1f}" + "".join(f" ({part:.1f}x)" for part in times)


FORMATS = {
    "text": str,
    "number": str,
    "percent": percent,
    "percent1": lambda value: f"{value:.1f}",
    "share": lambda value: f"{value:.1f}%",
    "cost": cost,
    "count": lambda value: f"{value:,.0f}",
    "rate": rate,
    "ratio": lambda value: f"{value:.2f}x",
    "ratio1": lambda value: f"{value:.1f}x",
}


def cell(row: dict, key: str, kind: str) -> str:
    """The text of one cell."""
    if key not in row:
        return ""
    value = row[key]
    return FORMATS[kind](value) if parts(value) else "-"


def table_text(table: dict, markup: str = "simple") -> str:
    """The table without its title. markup: as for tabulate; heads of two storeys are for "simple" only."""
    columns = table["columns"]
    body = [[cell(row, key, kind) for key, _, kind in columns] for row in table["rows"]]
    heads = [head if markup == "simple" else head.replace("\n", " ") for _, head, _ in columns]
    align = ["left" if kind == "text" else "right" for *_, kind in columns]
    return tabulate(body, heads, tablefmt=markup, disable_numparse=True, colalign=align)
