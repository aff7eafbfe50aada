"""The command line ``timm-mobilevit``: one file per subcommand; files with an underscore hold what they share.

The subcommands import torch and timm only when they run.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from timm_mobilevit._version import __version__

from ..export.formats import FORMATS
from . import attention, config, convert, evaluate, export, export_web, info, inspect, list_models, predict, recipe
from ._errors import one_line_errors
from ._signals import ending_on_signals

app = typer.Typer(
    help="MobileViT v1, v2 and v3 for timm: list models, look one up, convert checkpoints, classify images, "
    "evaluate, export to other runtimes, show attention, train by published recipes.",
    epilog="Each command has examples: timm-mobilevit COMMAND --help",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"timm-mobilevit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _examples(lines: Iterable[str]) -> str:
    """Return an epilog. typer folds single line breaks: an empty line between examples keeps them apart."""
    return "\n\n".join(("Examples:", *lines))


def _with_models(command: Callable[..., None]) -> Callable[..., None]:
    """Register the models before a subcommand runs: ``timm_mobilevit/__init__.py`` leaves that to the command line."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        import timm_mobilevit.mobilevit_zoo  # noqa: F401

        command(*args, **kwargs)

    return wrapper


_exports = typer.Typer(help="Write a model for another runtime, each of which has a subcommand.", no_args_is_help=True)
_COMMANDS: tuple[tuple[typer.Typer, str, Callable[..., None], Iterable[str]], ...] = (
    (app, "list", list_models.list_models, list_models.EXAMPLES),
    (app, "info", info.info, info.EXAMPLES),
    (app, "inspect", inspect.inspect, inspect.EXAMPLES),
    (app, "convert", convert.convert, convert.EXAMPLES),
    (app, "predict", predict.predict, predict.EXAMPLES),
    (app, "evaluate", evaluate.evaluate, evaluate.EXAMPLES),
    (app, "attention", attention.attention, attention.EXAMPLES),
    *((_exports, name, export.command(form), export.examples(form)) for name, form in FORMATS.items()),
    (_exports, "web", export_web.export_web, export_web.EXAMPLES),
)
for _group, _name, _command, _lines in _COMMANDS:
    _group.command(_name, epilog=_examples(_lines))(one_line_errors(_with_models(_command)))
app.add_typer(_exports, name="export")

app.command("config", epilog=_examples(config.EXAMPLES))(one_line_errors(config.config))
_recipes = typer.Typer(
    help="Published training recipes, as config files of timm's train.py.",
    epilog=_examples(recipe.EXAMPLES),
    no_args_is_help=True,
)
for _name, _command in (("list", recipe.list_recipes), ("show", recipe.show), ("copy", recipe.copy)):
    _recipes.command(_name)(one_line_errors(_command))
app.add_typer(_recipes, name="recipe")


def main() -> None:
    """Run the command line with the arguments of this process."""
    with ending_on_signals():
        app(prog_name="timm-mobilevit")
