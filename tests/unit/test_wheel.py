"""What `pip install .` installs: the command, the package, and every shipped file. No network."""

import os
import shutil
import subprocess
import sys
import zipfile
from sysconfig import get_platform

import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.search import ray_cluster
from sst_ui.paths import ROOT
from tests.unit.test_house import files

BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "sst_ui", "presets", "assets")


def tracked(folder):
    """Files of the checkout below a folder, as paths from the root."""
    return {
        path.relative_to(ROOT).as_posix() for path in files() if (ROOT / folder) in path.parents
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the checkout, built from a copy in which earlier builds have left files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for path in files():
        name = path.relative_to(ROOT)
        if name.parts[0] in BUILT_FROM or name.match("requirements*.txt"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, source / name)
    for left in ("lib", f"bdist.{get_platform()}/wheel"):
        (source / "build" / left / "sst_ui").mkdir(parents=True)
        (source / "build" / left / "sst_ui" / "removed_long_ago.py").write_text("")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation",
            "--no-index", "--quiet", "--wheel-dir", str(folder),
        ],
        cwd=source, check=True,
    )  # fmt: skip
    (built,) = folder.glob("sst_studio-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder as site-packages would be."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_holds_the_package_its_presets_and_the_demo_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {f"sst_ui/_data/{name}" for folder in ("presets", "assets") for name in tracked(folder)}
    assert "sst_ui/_data/presets/recipes/default.yaml" in held
    assert "sst_ui/_data/assets/demo/model.safetensors" in held
    assert held == data | tracked("sst_ui")


def test_a_wheel_gives_the_command_and_declares_its_requirements(installed):
    (info,) = installed.glob("*.dist-info")
    assert "sst-studio = sst_ui.__main__:studio" in (info / "entry_points.txt").read_text()
    declared = (info / "METADATA").read_text(encoding="utf-8")
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert f"Requires-Dist: {line.partition('>')[0]}" in declared


def sst_studio(installed, folder, *arguments):
    """The command as pip's script runs it, in a folder that is not the checkout."""
    code = "import sys; sys.argv[0] = 'sst-studio'; from sst_ui.__main__ import studio; "
    return subprocess.run(
        [sys.executable, "-c", code + "sys.exit(studio())", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_installed_command_finds_its_presets_and_says_its_own_name(installed, tmp_path):
    done = sst_studio(installed, tmp_path, "kernel", "--profile", "narrow", "--layers", "8")
    assert (done.returncode, done.stdout.count("layer")) == (0, 8)
    assert "usage: sst-studio" in sst_studio(installed, tmp_path, "--help").stdout
    done = sst_studio(installed, tmp_path, "kernel", "--layers", "many")
    assert done.returncode == 2
    assert "`sst-studio kernel --help`" in done.stderr


def test_without_a_command_the_installed_studio_opens_the_page(installed, tmp_path):
    done = sst_studio(installed, tmp_path, "--port", "99999")
    assert done.returncode == 2
    assert done.stderr == "error: the port is '99999'; give a whole number from 1 to 65535.\n"
    assert "--host" in sst_studio(installed, tmp_path, "--port", "1", "--help").stdout


def test_an_installed_studio_sends_a_cluster_the_package_and_not_its_neighbours(monkeypatch):
    class Ray:
        def is_initialized(self):
            return False

        def init(self, **given):
            self.given = given
            raise RuntimeError("there is no cluster")

    sent = {}
    for installed in (True, False):
        monkeypatch.setattr(ray_cluster, "INSTALLED", installed)
        with pytest.raises(UserError, match="no cluster"):
            ray_cluster.connect(ray := Ray(), "auto")
        sent[installed] = ray.given["runtime_env"]
    assert sent[True]["py_modules"] == [str(ROOT / "sst_ui")]
    assert "working_dir" not in sent[True]
    assert sent[False]["working_dir"] == str(ROOT)


def test_metrics_of_ones_own_are_not_taken_from_the_working_directory(
    installed, tmp_path, monkeypatch
):
    monkeypatch.setenv("SST_HOME", str(tmp_path / "home"))
    for folder, name in ((tmp_path, "stray"), (tmp_path / "home", "own")):
        (folder / "my_metrics").mkdir(parents=True)
        (folder / "my_metrics" / f"{name}.py").write_text("raise RuntimeError\n")
    done = sst_studio(installed, tmp_path, "metrics")
    assert done.returncode == 0
    assert "own.py" in done.stderr
    assert "stray.py" not in done.stderr
