"""The wheel, as a user gets it: built, installed elsewhere, run from elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("setup.cfg", "setup.py", "README.md", "LICENSE", "attncalc", "models")
SHIPPED = sorted(file.stem for file in (REPOSITORY / "models").glob("*.safetensors"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def build(folder: Path) -> Path:
    """A wheel from a copy of the tree: nothing is left behind in the checkout."""
    for name in SOURCES:
        source, copy = REPOSITORY / name, folder / "source" / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            # times of now, as in a fresh clone
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy, ignore=ignore, copy_function=shutil.copyfile)
        elif source.exists():
            shutil.copyfile(source, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # as `make wheel` sets it
        pip("wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    pip("install", "--target", folder, wheel)
    return folder


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*command, *map(str, arguments), "--no-deps", "--no-index"])


def run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_installed(command: list[str], target: Path, cwd: Path) -> str:
    return run(command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(target)})


def test_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        file.relative_to(REPOSITORY).as_posix()
        for pattern in ("*.py", "*.html", "py.typed")
        for file in (REPOSITORY / "attncalc").rglob(pattern)
    }
    assert sorted(sources - names) == [], "a folder without __init__.py is not a package"


def test_the_same_source_gives_the_same_wheel(wheel, tmp_path):
    again = build(tmp_path)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_wheel_holds_models_and_nothing_else_of_the_checkout(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"attncalc"}
    inside = {name for name in names if name.startswith("attncalc/models/")}
    wanted = {
        f"attncalc/models/{file.name}"
        for file in (REPOSITORY / "models").iterdir()
        if file.suffix in (".safetensors", ".md", ".yaml")
    }
    assert inside == wanted, "models/ holds weights, cards and recipes; a script there is shipped"


def test_every_model_comes_with_its_card_and_recipe(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert SHIPPED
    wanted = {f"attncalc/models/{model}{end}" for model in SHIPPED for end in (".md", ".yaml")}
    assert sorted(wanted - names) == []


LOAD = """
import json, sys
import attncalc
from attncalc.model_file import shipped_models_directory
for name in sys.argv[1:]:
    attncalc.load(name)
print(json.dumps([attncalc.__file__, str(shipped_models_directory())]))
"""


def test_installed_package_loads_its_own_models_by_name(target, tmp_path):
    output = run_installed([sys.executable, "-c", LOAD, *SHIPPED], target, tmp_path)
    package, models = map(Path, json.loads(output))
    assert package == target / "attncalc" / "__init__.py"
    assert models == target / "attncalc" / "models"


def test_installed_command_answers(target, tmp_path):
    (command,) = (target / "bin").glob("attncalc*")
    output = run_installed([sys.executable, str(command), "--help"], target, tmp_path)
    assert "attncalc" in output
