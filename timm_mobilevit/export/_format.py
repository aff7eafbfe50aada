"""A format of exported files: its module describes it in a ``FORMAT``, and imports neither torch nor the runtime."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .._files import check_file


@dataclass(frozen=True)
class Format:
    """A format of exported files; the extra of the same name installs what writes and runs them.

    Attributes:
        name: In the command line.
        title: In messages.
        ending: Of the name of the file, or of the directory.
        packages: Modules that write it.
        runtime: Module that runs it here, one of those or another.
        takes: Options of ``export_model`` that not every format has, and their defaults.
        write: Function that writes a ``Network`` to a path, with the options that do not make another network.
        open: Function that loads a file into its runtime on so many threads, as a function from one image, as the file
            takes it, to the outputs; None if the runtime does not exist here.
        unverified: Why, then.
        is_folder: Whether it is a directory.
        has_metadata: Whether it holds its metadata itself; otherwise a JSON file beside it does.
        needs_labels: Whether classes without names are named by their numbers.
        siblings: Endings of further files that belong to it.
    """

    name: str
    title: str
    ending: str
    packages: tuple[str, ...]
    write: Callable[..., Any]
    open: Callable[[Path, int], Callable[[Any], list[Any]]] | None = None
    runtime: str = ""
    takes: Mapping[str, Any] = field(default_factory=dict)
    unverified: str = ""
    is_folder: bool = False
    has_metadata: bool = False
    needs_labels: bool = False
    siblings: tuple[str, ...] = ()

    def require(self, *, to_write: bool = True) -> None:
        """Make sure that the packages are installed that write a file, or those that only run it."""
        require(self.name, self.title, (*self.packages, self.runtime) if to_write else (self.runtime,))

    def check_target(self, path: Path, *, force: bool = True) -> None:
        """Refuse a name that no file of the format can have, or that cannot be written.

        Raises:
            ValueError: If the name has another ending, is of another kind, or it or a file that belongs to it is there
                and ``force`` is not set.
            OSError: If there is no right to write it.
        """
        check_name(path, self.title, self.ending)
        check_file(path, force=force, is_folder=self.is_folder)
        others = [path.with_suffix(ending) for ending in self.siblings]
        if not self.has_metadata:
            others.append(metadata_file(path))
        for other in others:
            check_file(other, force=force)


def require(extra: str, title: str, packages: Iterable[str]) -> None:
    """Make sure that packages are installed; an empty name is none.

    Raises:
        ImportError: If one is missing; the message says what needs it, and the extra that has it.
    """
    if missing := [package for package in dict.fromkeys(packages) if package and find_spec(package) is None]:
        raise ImportError(
            f"{title} needs {', '.join(missing)}, not installed here; install with: "
            f'pip install "timm-mobilevit[{extra}]"'
        )


def check_name(path: Path, title: str = "ONNX", ending: str = ".onnx") -> None:
    """Refuse a name that no file of a format can have.

    Raises:
        ValueError: If it has another ending, or nothing before it.
    """
    if not path.name.endswith(ending) or path.name == ending:
        raise ValueError(f"expected a name that ends in {ending} for {title}, got {path}")


def metadata_file(path: Path) -> Path:
    """Return the JSON file beside an exported one."""
    return path.with_name(f"{path.name}.json")
