"""The command line as a whole, `list` and `info`; `convert` and `predict` have files of their own."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import timm
import typer
from typer.testing import CliRunner

import timm_mobilevit
from timm_mobilevit.cli import _errors, app
from timm_mobilevit.configs import list_configs
from timm_mobilevit.recipes import list_recipes
from timm_mobilevit.variants import VARIANTS
from timm_mobilevit.weights.pretrained import WEIGHTS

MODELS = sorted(timm.list_models(module="mobilevit_zoo"), key=list(VARIANTS).index)


def run(*args, **kwargs):
    return CliRunner().invoke(app, [str(arg) for arg in args], **kwargs)


def run_json(*args):
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_console_script_runs_in_a_process_of_its_own():
    (script,) = entry_points(group="console_scripts", name="timm-mobilevit")
    assert script.value == "timm_mobilevit.cli:main"
    executable = Path(sys.executable).with_name("timm-mobilevit")
    result = subprocess.run([executable, "info", "mobilevitv3"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: unknown architecture 'mobilevitv3'")
    assert result.stderr.count("\n") == 1


# What the console script does, in a process that then tells which of the slow packages it has imported.
SCRIPT = """
import atexit, sys
atexit.register(lambda: print(*{"torch", "timm"} & sys.modules.keys(), file=sys.stderr))
sys.argv = [%r, *sys.argv[1:]]
from timm_mobilevit.cli import main
sys.exit(main())
"""
COMMAND = Path(sysconfig.get_path("scripts"), "timm-mobilevit")


def run_script(*args, argv0=COMMAND, **env):
    python = [sys.executable, "-c", SCRIPT % str(argv0), *args]
    return subprocess.run(python, capture_output=True, text=True, check=True, env=os.environ | env)


def paths(group, *above):
    """The words that lead to each command, from the app itself."""
    yield above
    for name, command in getattr(group, "commands", {}).items():
        yield from paths(command, *above, name)


# All of them in one process, for its start takes longer than they do.
QUICK = """
import json, sys
sys.argv = [%r]
from typer.testing import CliRunner
from timm_mobilevit.cli import app
for args in json.loads(%r):
    done = CliRunner().invoke(app, args)
    print(json.dumps([args, done.exit_code, len(done.stdout) > 0, sorted({"torch", "timm"} & sys.modules.keys())]))
"""


def test_help_is_quick():
    """Neither torch nor timm is imported, which take seconds."""
    commands = [[*path, "--help"] for path in paths(typer.main.get_command(app))]
    assert ["export", "onnx", "--help"] in commands
    commands += [["--version"], ["config"], ["recipe", "list"]]
    code = QUICK % (str(COMMAND), json.dumps(commands))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [[args, 0, True, []] for args in commands]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("inf", ["info"]),
        ("info mobilevitv3", [name for name in VARIANTS if name.startswith("mobilevitv3")]),
        ("predict --model mobilevitv1", [name for name in VARIANTS if name.startswith("mobilevitv1")]),
        ("convert --arch mobilevitv2", [name for name in VARIANTS if name.startswith("mobilevitv2")]),
        ("config ssdlite", [path.stem for path in list_configs() if path.stem.startswith("ssdlite")]),
        ("recipe show mobilevitv1", [path.stem for path in list_recipes() if path.stem.startswith("mobilevitv1")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_completion_is_quick(words, expected):
    shell = {"_TIMM_MOBILEVIT_COMPLETE": "complete_bash", "COMP_WORDS": f"timm-mobilevit {words}"}
    result = run_script(COMP_CWORD=str(len(words.split())), **shell)
    assert result.stdout.split() == expected
    assert result.stderr.split() == []


def test_a_command_registers_the_models_itself():
    result = run_script("info", "mobilevitv3_xxs", "--json")
    assert json.loads(result.stdout)["parameters"] == run_json("info", "mobilevitv3_xxs")["parameters"]
    assert sorted(result.stderr.split()) == ["timm", "torch"]


@pytest.mark.parametrize("name", ["timm-mobilevit", "timm-mobilevit.exe"])
def test_the_command_is_recognised_by_its_name(name, tmp_path):
    assert run_script("--version", argv0=tmp_path / name).stderr.split() == []


# In one process, which imports timm once and our package anew for each name.
IMPORT = """
import sys, timm
for name in sys.argv[1:]:
    for module in [module for module in sys.modules if module.partition(".")[0] == "timm_mobilevit"]:
        del sys.modules[module]
    timm.models._registry._model_entrypoints.pop("mobilevitv3_xxs", None)
    sys.argv = [name]
    import timm_mobilevit
    print(repr(name), timm.is_model("mobilevitv3_xxs"))
"""


def test_other_programs_have_the_models(tmp_path):
    names = [str(tmp_path / "train.py"), str(tmp_path / "timm-mobilevit" / "train"), "-m", "-c", ""]
    light = str(tmp_path / "timm-mobilevit")
    python = [sys.executable, "-W", "ignore", "-c", IMPORT, light, *names]
    result = subprocess.run(python, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{light!r} False", *(f"{name!r} True" for name in names)]


def test_every_command_but_the_light_ones_has_the_models(monkeypatch):
    """Whatever a command imports later, the models are registered when it begins."""
    light = {"config"}
    zoo = "timm_mobilevit.mobilevit_zoo"
    for command in app.registered_commands:
        monkeypatch.setitem(sys.modules, zoo, None)  # importing it fails
        if command.name in light:
            command.callback()
        else:
            with pytest.raises(typer.Exit):
                command.callback()


def test_version():
    assert run("--version").stdout == f"timm-mobilevit {timm_mobilevit.__version__}\n"


@pytest.mark.parametrize("command", [*(command.name for command in app.registered_commands), "recipe"])
def test_help_has_examples(command):
    result = run(command, "--help", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert result.stdout.partition("Examples:")[2].count(f"timm-mobilevit {command} ") >= 1
    assert command in run("--help").stdout


def test_an_option_that_does_not_exist_is_a_usage_error():
    result = run("list", "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr


def test_list_has_every_model_with_its_tags():
    rows = run_json("list")
    assert [row["name"] for row in rows] == MODELS
    assert {f"{row['name']}.{tag}" for row in rows for tag in row["tags"]} == WEIGHTS.keys()
    for row in rows:
        assert row["tags"][0] == timm.get_pretrained_cfg(row["name"]).tag


@pytest.mark.parametrize("pattern", ["v3", "*v3*", "mobilevitv3"])
def test_list_takes_wildcards_or_part_of_a_name(pattern):
    assert [row["name"] for row in run_json("list", pattern)] == [name for name in MODELS if "v3" in name]


def test_list_pretrained_has_one_row_per_weights():
    assert [row["name"] for row in run_json("list", "--pretrained")] == list(WEIGHTS)
    rows = run_json("list", "22k", "--pretrained")
    assert [row["name"] for row in rows] == [name for name in WEIGHTS if "22k" in name]
    assert [row["top1"] for row in rows] == [row.top1 for name, row in WEIGHTS.items() if "22k" in name]
    rows = run_json("list", "*_xxs", "--pretrained")  # of architectures, too
    assert [row["name"] for row in rows] == ["mobilevitv1_xxs.cvnets_in1k", "mobilevitv3_xxs.micron_in1k"]


@pytest.mark.parametrize("env", [{"COLUMNS": "40"}, {"FORCE_COLOR": "1", "COLUMNS": "80"}], ids=["pipe", "terminal"])
def test_list_tables_show_whole_names(env):
    models, weights = run("list", env=env).stdout, run("list", "--pretrained", env=env).stdout
    assert all(name in models for name in MODELS)
    assert all(name in weights and row.license in weights for name, row in WEIGHTS.items())
    assert re.search(r"mobilevitv1_s +5\.58 M +cvnets_in1k *\n +cvnets_rangeaugment_in1k", models)
    assert re.search(r"mobilevitv1_s\.cvnets_in1k +256 +78\.30 +cvnets-license", weights)


def test_list_without_a_match_is_an_error():
    result = run("list", "resnet", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing matches 'resnet'; `timm-mobilevit list` shows all" in result.stderr
    result = run("list", "mobilevit3_xxs")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "did you mean mobilevitv3_xxs, " in result.stderr


def test_info_counts_what_the_model_has():
    report = run_json("info", "mobilevitv3_xxs")
    model = timm.create_model("mobilevitv3_xxs")
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert [feature["channels"] for feature in report["features"]] == list(VARIANTS["mobilevitv3_xxs"].widths)
    assert [feature["stride"] for feature in report["features"]] == [2, 4, 8, 16, 32]
    assert report["architecture"]["final_width"] == 512
    assert [row["name"] for row in report["pretrained"]] == ["mobilevitv3_xxs.micron_in1k"]


def test_info_of_a_tag_has_this_row_only():
    report = run_json("info", "mobilevitv1_s.cvnets_rangeaugment_in1k")
    (row,) = report["pretrained"]
    expected = WEIGHTS["mobilevitv1_s.cvnets_rangeaugment_in1k"]
    assert (row["channel_order"], row["top1"], row["origin"]) == ("rgb", expected.top1, expected.origin)
    assert row["paper"] == "arXiv:2212.10553"


@pytest.mark.parametrize("name", MODELS)
def test_info_text_tells_the_same(name):
    text = run("info", name).stdout
    rows = [row for key, row in WEIGHTS.items() if key.split(".")[0] == name]
    assert all(row.origin in text and row.license in text and f"{row.top1} %" in text for row in rows)
    assert f"{run_json('info', name)['parameters']:,}" in text


def test_info_text_word_by_word():
    assert (
        run("info", "mobilevitv2_2_0.cvnets_in22k_ft_in1k_384").stdout
        == """\
mobilevitv2_2_0
  parameters          18,449,329
  feature channels    128 256 512 768 1024
  feature strides     2 4 8 16 32
  block               v2
  stem width          64
  widths              128 256 512 768 1024
  stage2 depth        2
  expand ratio        2
  transformer widths  256 384 512
  transformer depths  2 4 3
  final width         none

mobilevitv2_2_0.cvnets_in22k_ft_in1k_384
  ImageNet-1k top-1   83.41 % published, not reproduced by this project
  input size          384×384
  crop                1.0 of the shorter side, bicubic
  mean, std           0 0 0, 1 1 1, for RGB in [0, 1]
  original file       RGB channels
  classes             1000
  licence             cvnets-license
  origin              https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/classification/mobilevitv2/\
imagenet21k_to_1k/384x384/mobilevitv2-2.0.pt
  hub repository      timm/mobilevitv2_200.cvnets_in22k_ft_in1k_384
  paper               Separable Self-attention for Mobile Vision Transformers (arXiv:2206.02680)
"""
    )


def test_unknown_names_suggest_known_ones():
    result = run("info", "mobilevit_s")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "mobilevitv1_s" in result.stderr
    result = run("info", "mobilevitv1_s.imagenet")
    assert result.exit_code == 1
    assert "cvnets_in1k, cvnets_rangeaugment_in1k" in result.stderr


def test_errors_are_one_line_unless_asked_otherwise(monkeypatch, capsys):
    @_errors.one_line_errors
    def fail():
        raise ValueError("first line:\n  second line\nthird line")

    with pytest.raises(typer.Exit) as exit_info:
        fail()
    assert exit_info.value.exit_code == 1
    assert capsys.readouterr().err == "error: first line: second line; third line\n"
    monkeypatch.setenv(_errors.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="first line"):
        fail()


def test_a_fault_of_the_program_is_not_hidden():
    @_errors.one_line_errors
    def fail():
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        fail()
