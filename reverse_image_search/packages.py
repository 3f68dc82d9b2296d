"""Install the packages of an optional part, when it is used."""

import os
import re
import subprocess
import sys
from importlib.metadata import distributions

from reverse_image_search.layout import REPOSITORY_ROOT


class PackageError(Exception):
    """Packages could not be installed; the message names their requirements file."""


def install_requirements(file: str) -> None:
    """Install what this Python lacks of a requirements file of the repository, with pip.

    Raises
    ------
    PackageError : pip failed; its own message is on the terminal
    """
    path = REPOSITORY_ROOT / file
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.MULTILINE)
    installed = {name: {found.version for found in distributions(name=name)} for name, _ in pins}
    if all(version in installed[name] for name, version in pins):
        return
    print(f"Installing the packages of {file} ...", flush=True)
    pip = [sys.executable, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    # As in bin/lib/python_environment.sh: the caller's settings name no other place to install to.
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV")
    environment = {**os.environ, **dict.fromkeys(elsewhere, ""), "PIP_USER": "0"}
    if subprocess.run([*pip, "-r", str(path)], env=environment).returncode:
        raise PackageError(f"the packages of {file} could not be installed (see above)")
