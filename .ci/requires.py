"""Print the requirements of an installed distribution, without some: python requires.py DISTRIBUTION WITHOUT..."""

from __future__ import annotations

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement  # the environment may have nothing else yet

distribution, *without = sys.argv[1:]
for text in requires(distribution) or ():
    needed = Requirement(text)
    if needed.name not in without and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        needed.marker = None
        print(needed)
