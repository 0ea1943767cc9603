"""What the Makefile installs and starts, recorded by a stand-in for Python."""

import os
import shutil
from types import SimpleNamespace

import pytest

from tests.conftest import pytest_terminal_summary
from tests.shell import ROOT, STAND_IN, Shell


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def project(shell):
    """A folder with the Makefile, requirements and an empty demo script."""
    for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, shell.folder)
    (shell.folder / "scripts").mkdir()
    (shell.folder / "scripts/demo.sh").write_text('echo "demo with $PYTHON"\n')
    return shell


def make(project, target, python=None):
    return project.command("make", target, f"PYTHON={python or project.python}")


def test_make_demo_sets_up_its_environment_once(project):
    assert "demo with .venv/bin/python" in make(project, "demo").stdout
    installs = [call for call in project.calls if "-r requirements.txt" in call]
    assert len(installs) == 1
    project.calls_file.unlink()
    assert "demo with .venv/bin/python" in make(project, "demo").stdout and project.calls == []


def test_make_demo_installs_what_its_page_needs(project):
    make(project, "demo")
    assert [call for call in project.calls if call.endswith("plotly itables")] == project.calls[-1:]


def test_make_demo_goes_on_without_the_pages_libraries(project):
    project.python.write_text(STAND_IN.replace("${FAIL_ON:-}", "${FAIL_ON:=plotly}"))
    done = make(project, "demo")
    assert done.returncode == 0 and "there will be no page" in done.stderr
    assert "demo with .venv/bin/python" in done.stdout


def test_make_installs_again_when_requirements_change(project):
    make(project, "test")
    project.calls_file.unlink()
    later = (project.folder / ".venv/test.stamp").stat().st_mtime + 10
    os.utime(project.folder / "requirements-test.txt", (later, later))
    make(project, "test")
    install, *tests = project.calls
    assert install.endswith("-r requirements-test.txt") and tests and all("-m pytest" in call for call in tests)


def test_make_refuses_an_old_python(project):
    done = make(project, "demo", python="false")
    assert done.returncode != 0 and "Python 3.10 or newer is needed" in done.stderr
    assert not (project.folder / ".venv").exists()


def test_make_passes_on_the_exit_code_of_the_tests(project):
    project.python.write_text(STAND_IN.replace("${FAIL_ON:-}", "${FAIL_ON:=-m pytest}"))
    assert make(project, "test").returncode != 0


def test_make_clean_keeps_results(project):
    make(project, "demo")
    (project.folder / "output").mkdir()
    assert make(project, "clean").returncode == 0
    assert (project.folder / "output").exists() and not (project.folder / ".venv").exists()


def test_the_table_of_gpu_check_has_every_outcome():
    def report(name):
        return SimpleNamespace(nodeid=f"tests/test_cuda.py{name}", user_properties=[("MB", 3)])

    def table(**stats):
        lines, options = [], SimpleNamespace(markexpr="cuda")
        config = SimpleNamespace(option=options)
        pytest_terminal_summary(SimpleNamespace(config=config, stats=stats, write_line=lines.append))
        return [line.split() for line in lines[0].splitlines()]

    others = {"error": [report("::test_c")], "skipped": [report("::test_d")], "warnings": [object()]}
    rows = table(passed=[report("::test_a")], failed=[report("::test_b")], **others)
    outcomes = ("passed", "failed", "error", "skipped")
    assert rows[2:] == [[f"test_{name}", outcome, "MB", "3"] for name, outcome in zip("abcd", outcomes, strict=True)]
    assert table(skipped=[report("::test_a")]) == [["No", "test", "ran."]]
    assert table(error=[SimpleNamespace(nodeid="tests/test_cuda.py")])[2:] == [["tests/test_cuda.py", "error"]]
