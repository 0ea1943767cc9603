"""docs/LOG.md lists the faults found by trying, each with a test that there is."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_fault_in_the_log_has_a_test():
    table = (TESTS.parent / "docs/LOG.md").read_text(encoding="utf-8").partition("## Faults found by trying")[2]
    rows = re.findall(r"^\| (\d+) \|.*\| `([\w/]+\.py)::(test_\w+)` \|$", table, re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 31))
    for _, file, name in rows:
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), (file, name)
