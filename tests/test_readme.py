"""Snippets of the README are run; commands and links of all documents are checked."""

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from attncalc.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMANDS = [
    pytest.param(line.split(" #")[0], id=f"{page.name}: {line[:60]}")
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("attncalc ")
]

RECIPE = """
name: mine
data: mydata.extxyz
split: {sizes: [60, 20]}
config: {cutoff: 4.0, num_features: 8, num_heads: 1, degrees: [1], num_layers: 1, num_basis: 8,
         head_features: 8}
epochs: 1
"""


def test_snippets_with_the_shipped_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for snippet in (text for text in PYTHON if "train.fit" not in text):
        exec(compile(snippet, "README.md", "exec"), namespace)
    atoms = namespace["atoms"]
    assert namespace["dynamics"].get_time() > 0
    of_molecules = {"energy", "free_energy", "energies", "forces", "charges", "dipole"}
    assert [set(r) for r in namespace["results"]] == [of_molecules | {"hirshfeld_ratios"}] * 2
    assert "forces = -dE/dr" in capsys.readouterr().out
    assert atoms.calc.n_rebuilds < atoms.calc.n_updates


def test_training_snippet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "tests/data/xtb_small_molecules_test.extxyz", "mydata.extxyz")
    Path("recipe.yaml").write_text(RECIPE)
    (snippet,) = (text for text in PYTHON if "train.fit" in text)
    namespace: dict = {}
    exec(compile(snippet, "README.md", "exec"), namespace)
    assert namespace["result"].model.is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    name, *arguments = shlex.split(command)[1:]
    # a command keeps the help options of the first context that it sees: those that `main` gives it
    parent = click.Context(main, **main.context_settings)
    click_command = main.get_command(parent, name)
    if name == "convert":
        click_command, arguments = click_command.commands[arguments[0]], arguments[1:]
    click_command.make_context(name, arguments, parent)  # raises on what is not known to it


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
