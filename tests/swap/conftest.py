import pytest

from swap import plan

WORKS = {"python": [3, 11, 0], "torch": "2.9.0", "dassl": None, "file": "/somewhere/dassl/__init__.py", "missing": []}


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """What the probe finds, without starting a Python for it; tests may change it."""
    facts = dict(WORKS)
    monkeypatch.setattr(plan, "run_probe", lambda folder, task: {"modules": dict.fromkeys(task["modules"]), **facts})
    return facts


@pytest.fixture
def real_probe(monkeypatch):
    """The probe itself, in a Python of its own."""
    monkeypatch.undo()
