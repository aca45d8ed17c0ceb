"""Where an installed studio has its data: presets/ and assets/ become part of the package.

Everything else about the distribution stands in pyproject.toml.
"""

from setuptools import find_packages, setup

DATA = {f"sst_ui._data.{folder}": folder for folder in ("presets", "assets")}

setup(
    packages=[*find_packages(include=["sst_ui", "sst_ui.*"]), *DATA],
    package_dir=DATA,
    package_data={package: ["**/*"] for package in DATA},
)
