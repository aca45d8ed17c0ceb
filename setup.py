"""Where an installed studio has its data: presets/ and assets/ become part of the package.

Everything else about the distribution stands in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

DATA = {f"sst_ui._data.{folder}": folder for folder in ("presets", "assets")}


class FreshBuild(build_py):
    """Builds from the sources alone: setuptools would pack whatever an earlier build has left."""

    def run(self) -> None:
        if not self.editable_mode:
            unpacked = Path(self.get_finalized_command("bdist").bdist_base, "wheel")
            for left in (self.build_lib, unpacked):
                shutil.rmtree(left, ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["sst_ui", "sst_ui.*"]), *DATA],
    package_dir=DATA,
    package_data={package: ["**/*"] for package in DATA},
    cmdclass={"build_py": FreshBuild},
)
