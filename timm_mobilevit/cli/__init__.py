"""The command line ``timm-mobilevit``: one file per subcommand; files with an underscore hold what they share.

The subcommands import torch and timm only when they run.
"""

import functools
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import typer

from timm_mobilevit._version import __version__

from ..export.formats import FORMATS
from . import attention, config, convert, evaluate, export, export_web, info, inspect, list_models, predict, recipe
from ._errors import one_line_errors
from ._signals import ending_on_signals

P = ParamSpec("P")
R = TypeVar("R")

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


def _with_models(command: Callable[P, R]) -> Callable[P, R]:
    """Register the models before a subcommand runs: ``timm_mobilevit/__init__.py`` leaves that to the command line."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import timm_mobilevit.mobilevit_zoo  # noqa: F401

        return command(*args, **kwargs)

    return wrapper


for _name, _module, _command in (
    ("list", list_models, _with_models(list_models.list_models)),
    ("info", info, _with_models(info.info)),
    ("inspect", inspect, _with_models(inspect.inspect)),
    ("convert", convert, _with_models(convert.convert)),
    ("predict", predict, _with_models(predict.predict)),
    ("config", config, config.config),
    ("evaluate", evaluate, _with_models(evaluate.evaluate)),
    ("attention", attention, _with_models(attention.attention)),
):
    # typer folds single line breaks in an epilog: an empty line between examples keeps them apart.
    app.command(_name, epilog="\n\n".join(("Examples:", *_module.EXAMPLES)))(one_line_errors(_command))

_exports = typer.Typer(help="Write a model for another runtime, each of which has a subcommand.", no_args_is_help=True)
for _name, _examples, _export_to in (
    *((name, export.examples(form), export.command(form)) for name, form in FORMATS.items()),
    ("web", export_web.EXAMPLES, export_web.export_web),
):
    _exports.command(_name, epilog="\n\n".join(("Examples:", *_examples)))(one_line_errors(_with_models(_export_to)))
app.add_typer(_exports, name="export")

_recipes = typer.Typer(
    help="Published training recipes, as config files of timm's train.py.",
    epilog="\n\n".join(("Examples:", *recipe.EXAMPLES)),
    no_args_is_help=True,
)
_recipes.command("list")(one_line_errors(recipe.list_recipes))
_recipes.command("show")(one_line_errors(recipe.show))
_recipes.command("copy")(one_line_errors(recipe.copy))
app.add_typer(_recipes, name="recipe")


def main() -> None:
    """Run the command line with the arguments of this process."""
    with ending_on_signals():
        app(prog_name="timm-mobilevit")
