"""Builds the wheel: the package, the shared library from the crate around this folder, and the headers.

A wheel is for one platform and every Python. SINKCACHE_LIBRARY names a library that is there already, and
SINKCACHE_PLATFORM the wheel's platform, where it is not this machine's: scripts/python_wheel sets both.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

HERE = pathlib.Path(__file__).resolve().parent
CRATE = HERE.parent
# As `_library.FILE_NAME`: the name with the ABI's number.
LIBRARIES = {"win32": ("sinkcache.dll",) * 2, "darwin": ("libsinkcache.dylib",) * 2}
BUILT, PACKED = LIBRARIES.get(sys.platform, ("libsinkcache.so", "libsinkcache.so.0"))


def library():
    """The file of the shared library."""
    named = os.environ.get("SINKCACHE_LIBRARY")
    if named:
        return pathlib.Path(named)
    subprocess.run(["cargo", "build", "--release", "-p", "sinkcache", "--lib"], cwd=CRATE, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target"))
    return target / "release" / BUILT


class BuildPackage(build_py):
    def run(self):
        super().run()
        package = pathlib.Path(self.build_lib) / "sinkcache"
        folders = {"lib": [library()], "include": sorted((CRATE / "include").glob("sinkcache.h*")),
                   "licenses": sorted(CRATE.glob("LICENSE-*"))}
        for folder, files in folders.items():
            (package / folder).mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(file, package / folder / (PACKED if folder == "lib" else file.name))
        # Symbols are for those who build the library themselves.
        if sys.platform.startswith("linux") and shutil.which("strip"):
            # A library for another machine has been stripped when it was linked.
            subprocess.run(["strip", "--strip-unneeded", package / "lib" / PACKED], check=False,
                           stderr=subprocess.DEVNULL)


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", os.environ.get("SINKCACHE_PLATFORM") or super().get_tag()[2]


class WithLibrary(Distribution):
    """Of one platform, though it has no extension module."""

    def has_ext_modules(self):
        return True


setup(
    version=re.search(r'^version = "(.+)"$', (CRATE / "Cargo.toml").read_text(), re.M)[1],
    cmdclass={"build_py": BuildPackage, "bdist_wheel": Wheel},
    distclass=WithLibrary,
)
