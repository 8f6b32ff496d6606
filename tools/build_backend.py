"""The build backend of pyproject.toml: `pip install -e .` installs what the project needs, and no package is built."""

from typing import NoReturn

from setuptools.build_meta import *  # noqa: F403


def build_wheel(*_: object) -> NoReturn:
    """Refuse to build a package, which would be empty: the project runs from its checkout."""
    raise SystemExit("uni-sign-stage3 runs from its checkout, and is no package: pip install -e .")
