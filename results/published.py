"""The papers' numbers, all for ViT-B/16: published.csv, which names the table that each is from."""

import csv
from pathlib import Path

PUBLISHED = Path(__file__).with_name("published.csv")
KEYS = ("protocol", "method", "dataset", "shots", "metric")
BACKBONE = "ViT-B/16"


class Published:
    """The lines of published.csv, looked up by our names."""

    def __init__(self) -> None:
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            self.rows = {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}

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
