"""Lets `pip install -e .` install what the project needs, and refuses to build a package without any code."""

import sys

from setuptools import setup

if __name__ == "__main__":
    if "bdist_wheel" in sys.argv:
        sys.exit("uni-sign-stage3 runs from its checkout, and is no package: pip install -e .")
    setup()
