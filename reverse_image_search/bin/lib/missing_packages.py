"""Print what a Python lacks of requirements files, of this project, and of pip.

    .venv/bin/python -I missing_packages.py REPO_ROOT requirements.txt ...

It looks at what is installed, not at a record of an installation: an environment may have been
copied from another clone, made by another tool, or left half done.
"""

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path


def main() -> None:
    """Print the missing ones, one a line."""
    root, files = Path(sys.argv[1]), sys.argv[2:]
    for file in files:
        for line in Path(file).read_text().splitlines():
            if match := re.match(r"([\w.-]+)(?:\[.*\])?==([^\s;\\]+)", line):
                name, version = match.groups()
                if installed_version(name).partition("+")[0] != version:
                    print(line)
    spec = importlib.util.find_spec("reverse_image_search")
    package = root / "reverse_image_search" / "__init__.py"
    if not (spec and spec.origin and package.samefile(spec.origin)):
        print(root)
    if not importlib.util.find_spec("pip"):
        print("pip")


def installed_version(name: str) -> str:
    """Version of an installed package; empty when it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
