"""The order of the house, kept true by reading the source: what is declared, and what files hold.

Who may import whom stands in pyproject.toml, and import-linter checks it. Runs no code of the
studio.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LINES = 60  # of a function, its docstring included
PROVIDED = {"spaces", "gguf", "ray"}  # a ZeroGPU Space or pip brings them; it runs without


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """What is, or is about to be, under version control."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        paths = [ROOT / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, not a checkout
        hidden = re.compile(r"^(\.venv|\.git|node_modules|build|outputs|\..*_cache)$|__pycache__")
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(hidden.search(part) for part in path.relative_to(ROOT).parts)
        ]
    return tuple(
        sorted(p for p in set(paths) if p.is_file() and (not suffixes or p.suffix in suffixes))
    )


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def packages(path: Path) -> set[str]:
    """The top-level packages a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def studio() -> list[Path]:
    """The Python files of the studio itself: app.py and sst_ui."""
    return [p for p in files(".py") if p == ROOT / "app.py" or (ROOT / "sst_ui") in p.parents]


def names(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in paths]


def test_the_screens_hold_no_maths():
    sums = {"linalg", "exp", "log", "dot", "matmul", "einsum", "svd", "norm", "softmax"}
    for path in studio():
        if path != ROOT / "app.py" and (ROOT / "sst_ui/ui") not in path.parents:
            continue
        for node in ast.walk(tree(path)):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), where
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id in ("np", "numpy", "math") and node.attr in sums), where


def test_every_import_is_a_declared_requirement():
    def declared(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {
            re.split(r"[<>=!~\[ ]", line)[0].lower().replace("_", "-")
            for line in lines
            if line and not line.startswith(("#", "-"))
        }

    run = declared("requirements.txt")
    test = run | declared("requirements-dev.txt") | declared("requirements-ray.txt")
    local = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
    local |= set(sys.stdlib_module_names) | PROVIDED
    distributions = packages_distributions()
    mine = studio()
    for path in files(".py"):
        allowed = run if path in mine else test
        for package in packages(path) - local:
            known = {d.lower().replace("_", "-") for d in distributions.get(package, [package])}
            assert known & allowed, f"{path.relative_to(ROOT)} imports undeclared {package}"


def test_what_is_declared_is_what_was_tested():
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert all(re.fullmatch(r"[0-9a-z.]+", version) for version in pinned.values()), (
        "a local build or a path is pinned"
    )
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-ray.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-")):
                package = re.split(r"[<>=!~\[ ]", line)[0].lower().replace("_", "-")
                assert package in pinned, f"{package} of {name} is not in constraints.txt"


def test_no_function_is_longer_than_a_screen():
    own = [*studio(), *(p for p in files(".py") if ROOT / "training" in p.parents)]
    own += [p for p in files(".py") if ROOT / "benchmarks" in p.parents]
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in own
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= LINES
    ]
    assert long == []


def test_every_file_says_what_it_is_for():
    silent = [
        path
        for path in files(".py")
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(path))
    ]
    assert names(silent) == []


def test_the_door_stays_small_and_holds_no_maths():
    assert not packages(ROOT / "app.py") & {"torch", "transformers", "peft", "scipy"}
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) < 60


def test_no_package_index_and_no_folder_of_one_machine_is_named():
    # Put together here, so that this file does not name them either.
    hosts = ["py" + "pi.org", "python" + "hosted.org", "download." + "pytorch.org"]
    hosts += ["registry." + "npmjs.org", "conda." + "anaconda.org", "deb." + "debian.org"]
    folders = [r"(?<![\w./])/(?:" + name + ")/" for name in ("work", "root", "opt")]
    pattern = re.compile("|".join([*map(re.escape, hosts), *folders]))
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
        for match in pattern.finditer(text):
            found.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert found == []


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_starts_a_space_with_the_tested_gradio(readme):
    card = yaml.safe_load(readme.split("---\n")[1])
    assert f"gradio=={card['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert card["sdk"] == "gradio"
    assert (ROOT / card["app_file"]).is_file()
    assert card["python_version"] == "3.12"
    assert len(card["short_description"]) <= 60


def test_files_and_commands_the_readme_names_exist(readme):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", readme, flags=re.MULTILINE)) <= set(targets)
    links = re.findall(r"\]\(([^)#:]+)\)", readme)  # links without a scheme: files of ours
    assert [link for link in links if not (ROOT / link).exists()] == []
    modules = set(re.findall(r"python -m ((?:sst_ui|benchmarks)[\w.]*)", readme))
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
