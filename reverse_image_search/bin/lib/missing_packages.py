"""Print what a Python lacks of requirements files, of this project, and of pip; one a line.

    .venv/bin/python -I missing_packages.py REPO_ROOT requirements.txt ...

It looks at what is installed, not at a record of an installation: an environment may have been
copied from another clone, made by another tool, or left half done.
"""

import re
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

root, *files = sys.argv[1:]
for file in files:
    for line in Path(file).read_text().splitlines():
        if match := re.match(r"([\w.-]+)(?:\[.*\])?==([^\s;\\]+)", line):
            name, version = match.groups()
            installed = next((found.version for found in distributions(name=name)), "")
            if installed.partition("+")[0] != version:
                print(line)
spec = find_spec("reverse_image_search")
package = Path(root, "reverse_image_search", "__init__.py")
if not (spec and spec.origin and package.samefile(spec.origin)):
    print(root)
if not find_spec("pip"):
    print("pip")
