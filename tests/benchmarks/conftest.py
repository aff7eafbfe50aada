import pytest
import typer
from typer.testing import CliRunner


@pytest.fixture
def command():
    def run(main, *arguments):
        app = typer.Typer()
        app.command()(main)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
