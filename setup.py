"""Keeps a stale build/ folder out of wheels; everything else stands in pyproject.toml."""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class CleanBuild(build_py):
    """setuptools packs whatever lies in build/lib, also modules deleted since the last build."""

    def run(self) -> None:
        """Empty build/lib, then build."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build_py": CleanBuild})
