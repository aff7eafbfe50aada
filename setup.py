"""Adds the configs of ``mm_configs`` to the package; everything else is in ``pyproject.toml``.

They are installed in ``timm_mobilevit/.mim/configs``, where OpenMMLab packages keep theirs. ``package-dir`` cannot map
that folder, for ``.mim`` is no name of a Python package, and Windows checks a symbolic link out as a text file.
"""

from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

SOURCE = Path("mm_configs")
TARGET = Path("timm_mobilevit/.mim/configs")


class BuildConfigs(Command):
    """A step of ``build``, as ``setuptools.command.build.SubCommand`` describes it."""

    def initialize_options(self):
        """Leave the folder to build in to ``build_py``."""
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self):
        """Take over the folder that ``build_py`` builds in."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def get_output_mapping(self):
        """From files of the build to the files of the checkout that they are copies of."""
        files = sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yml"))
        return {str(Path(self.build_lib, TARGET, file.relative_to(SOURCE))): str(file) for file in files}

    def get_outputs(self):
        """The files of the build."""
        return list(self.get_output_mapping())

    def get_source_files(self):
        """The files of the checkout, for the source distribution."""
        return list(self.get_output_mapping().values())

    def run(self):
        """Copy the configs; an editable installation has those of the checkout."""
        if self.editable_mode:
            return
        for target, source in self.get_output_mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)


build.sub_commands.append(("build_configs", None))
setup(cmdclass={"build_configs": BuildConfigs})
