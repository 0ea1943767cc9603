"""The papers' numbers, all for ViT-B/16: published.csv, which names the table that each is from.

Methods that need what the others do without aren't run here, and their numbers stand apart, in published_extra.csv:
`extra` is "text" where a language model wrote about the classes, "teacher" where a larger CLIP labelled more images.
"""

import csv
from pathlib import Path

PUBLISHED = Path(__file__).with_name("published.csv")
EXTRA = PUBLISHED.with_name("published_extra.csv")
KEYS = ("protocol", "method", "dataset", "shots", "metric")
BACKBONE = "ViT-B/16"
EXTRA_TITLE = f"published only, with extra text or a teacher: base2new, average of 11, 16 shots, {BACKBONE}"


class Published:
    """The lines of published.csv, looked up by our names."""

    def __init__(self) -> None:
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            self.rows = {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}
        self.datasets = {row["dataset"] for row in self.rows.values()}  # "Average of 11" is one of them

    def find(self, protocol: str, method: str, dataset: str, shots: str, metric: str) -> dict[str, str]:
        """The line for one cell ({"value": "76.47", "source": ..., "note": ...}), or {} if no paper has it."""
        return self.rows.get((protocol, method, dataset, shots, metric), {})

    def averages(self, protocol: str, dataset: str) -> dict[tuple[str, str], float]:
        """{(method, metric): value} of one line of averages, such as "Average of 11"."""
        found = {}
        for (of_protocol, method, of_dataset, _, metric), row in self.rows.items():
            if (of_protocol, of_dataset) == (protocol, dataset):
                found[method, metric] = float(row["value"])
        return found


def with_extra() -> dict:
    """A table for `layout`: the averages of the methods with extra input, the highest H first."""
    with open(EXTRA, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {name: float(row[name]) if row[name] else None for name in ("base", "new", "h")}
    columns = [["method", "", "text"], ["extra", "extra input", "text"]]
    columns += [[name.lower(), f"paper\n{name}", "percent"] for name in ("Base", "New", "H")]
    return {"title": EXTRA_TITLE, "columns": columns, "rows": [{key: row[key] for key, *_ in columns} for row in rows]}
