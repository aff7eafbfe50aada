"""A script run by ``python -m timm_mobilevit.run`` behaves as if run directly, and finds our models in timm."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from timm_mobilevit import run

ROOT = Path(__file__).parents[1]
RUNNER = ["-m", "timm_mobilevit.run"]
# What a debugger or profiler does: it imports our package, and so timm, before the script's folder is known.
DEBUGGER = ["-c", "import runpy; runpy.run_module('timm_mobilevit.run', run_name='__main__')"]
# Addresses are given so that the processes find each other on machines whose own name does not resolve.
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=127.0.0.1"]
TORCHRUN += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]


def python(*args: str | Path, cwd: Path, importable: bool = True) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    if importable:
        env["PYTHONPATH"] = str(ROOT)
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def succeed(*args: str | Path, cwd: Path, importable: bool = True) -> str:
    done = python(*args, cwd=cwd, importable=importable)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Stands in for a checkout of timm: a folder of scripts beside a timm of its own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "timm").symlink_to(Path(timm.__file__).parent)
    return folder


PROBE = """
import atexit, importlib.util, json, os, pickle, sys

class Thing:
    pass

def is_main():
    return vars(sys.modules["__main__"]) is globals() and pickle.loads(pickle.dumps(Thing)) is Thing

print(json.dumps({
    "argv": sys.argv,
    "path": [entry for entry in sys.path if not os.path.basename(entry).startswith("tmp")],  # torch 2.7 adds one
    "names": [str(globals()[f"__{name}__"]) for name in ("name", "file", "package", "spec", "builtins")],
    "loader": type(__loader__).__name__,
    "code": is_main.__code__.co_filename,
    "is main": is_main(),
    "cwd": os.getcwd(),
    "file in cwd": open("data.txt").read(),
    "module beside the script": importlib.util.find_spec("neighbour") is not None,
}))
atexit.register(lambda: print(is_main()))
"""


@pytest.mark.parametrize(
    ("options", "script", "ending"),
    [
        ([], "scripts/probe.py", "sys.exit(3)"),
        ([], "link.py", "sys.exit('stopped')"),
        pytest.param(
            ["-P"],
            "scripts/../scripts/probe.py",
            "raise RuntimeError('broken')",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no option -P"),
        ),
    ],
)
def test_script_runs_as_if_run_directly(tmp_path: Path, options: list[str], script: str, ending: str) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/probe.py").write_text(PROBE + ending)
    (tmp_path / "scripts/neighbour.py").touch()
    (tmp_path / "link.py").symlink_to("scripts/probe.py")
    (tmp_path / "data.txt").write_text("read")
    args = [script, "--flag", "a b", "-m", "timm_mobilevit.run", "--help"]

    direct = python(*options, *args, cwd=tmp_path)
    ours = python(*options, *RUNNER, *args, cwd=tmp_path)

    facts, at_exit = direct.stdout.splitlines()
    assert json.loads(ours.stdout.splitlines()[0]) == json.loads(facts)
    assert ours.stdout.splitlines()[1] == at_exit == "True"
    assert ours.returncode == direct.returncode != 0
    assert ours.stderr.splitlines()[-1:] == direct.stderr.splitlines()[-1:]


@pytest.mark.parametrize("launcher", [RUNNER, DEBUGGER], ids=["runner", "debugger"])
def test_script_in_a_checkout_uses_its_timm(checkout: Path, tmp_path: Path, launcher: list[str]) -> None:
    (checkout / "script.py").write_text(
        "import json, sys, torch, timm\n"
        "model = timm.create_model('mobilevitv3_xxs', num_classes=3).eval()\n"
        "files = {m.__file__ for name, m in sys.modules.items() if name.partition('.')[0] == 'timm' and m.__file__}\n"
        "print(json.dumps([timm.__file__, sorted(files), list(model(torch.zeros(1, 3, 64, 64)).shape),\n"
        "                  isinstance(model.head, timm.layers.ClassifierHead)]))\n"
    )
    file, files, shape, same_classes = json.loads(succeed(*launcher, "checkout/script.py", cwd=tmp_path))
    assert file == str(checkout / "timm/__init__.py")
    assert [name for name in files if not name.startswith(str(checkout))] == []
    assert shape == [1, 3]
    assert same_classes


def test_checkout_of_an_older_timm_is_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "timm").unlink()
    (checkout / "timm").mkdir()
    (checkout / "timm/__init__.py").write_text("__version__ = '0.9.8dev0'")
    (checkout / "script.py").touch()
    done = python(*RUNNER, "checkout/script.py", cwd=tmp_path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert f"imports timm 0.9.8dev0 from {checkout / 'timm'}. Update that timm" in message
    oldest = message.split("needs timm ")[1].split()[0]
    assert f'"timm>={oldest}"' in (ROOT / "pyproject.toml").read_text()


def test_spawned_workers_have_the_models_and_the_timm_of_the_script(checkout: Path) -> None:
    (checkout / "script.py").write_text(
        "import timm, torch.utils.data\n"
        "class Models(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n"
        "        return 1\n"
        "    def __getitem__(self, index):\n"
        "        return __name__, timm.__file__, type(timm.create_model('mobilevitv3_xxs')).__name__\n"
        "if __name__ == '__main__':\n"
        "    loader = torch.utils.data.DataLoader(\n"
        "        Models(), batch_size=None, num_workers=1, multiprocessing_context='spawn')\n"
        "    print(*next(iter(loader)), sep='\\n')\n"
    )
    # From a clone that is not installed: only the working directory leads to our package at first.
    output = succeed(*RUNNER, checkout / "script.py", cwd=ROOT, importable=False)
    assert output.split() == ["__mp_main__", str(checkout / "timm/__init__.py"), "MobileViT"]


def test_two_processes_train_in_step(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, timm, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "torch.manual_seed(dist.get_rank())  # other weights and other images on each rank\n"
        "model = torch.nn.parallel.DistributedDataParallel(timm.create_model('mobilevitv3_xxs', num_classes=4))\n"
        "flat = lambda: torch.cat([p.detach().flatten() for p in model.parameters()])\n"
        "before = flat()\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "torch.nn.functional.cross_entropy(model(torch.rand(2, 3, 64, 64)), torch.tensor([0, 1])).backward()\n"
        "optimizer.step()\n"
        "after = [torch.empty_like(before) for _ in range(dist.get_world_size())]\n"
        "dist.all_gather(after, flat())\n"
        "if dist.get_rank() == 0:\n"
        "    print(sys.argv, len(after), torch.equal(*after), bool((after[0] != before).any()), flush=True)\n"
        "dist.barrier()  # on Python 3.13, what is under way at the end may abort the process\n"
        "dist.destroy_process_group()\n"
    )
    # Not by the exit status: gloo of some versions of PyTorch now and then aborts a process that has done its work.
    done = python(*TORCHRUN, *RUNNER, "script.py", "--lr", "1", cwd=tmp_path)
    assert done.stdout.split("\n")[0] == "['script.py', '--lr', '1'] 2 True True", done.stderr


@pytest.mark.parametrize(
    ("args", "code", "stream"), [([], 2, "stderr"), (["-h"], 0, "stdout"), (["--help"], 0, "stdout")]
)
def test_usage(tmp_path: Path, args: list[str], code: int, stream: str) -> None:
    done = python(*RUNNER, *args, cwd=tmp_path)
    assert done.returncode == code
    assert "python -m timm_mobilevit.run SCRIPT ARGS..." in getattr(done, stream)


@pytest.mark.parametrize("script", ["missing/train.py", "folder"])
def test_unreadable_script_says_how_to_get_timms(tmp_path: Path, script: str) -> None:
    (tmp_path / "folder").mkdir()
    done = python(*RUNNER, script, "--model", "mobilevitv3_xxs", cwd=tmp_path)
    assert done.returncode == 2
    assert f"can't open '{script}' in {tmp_path}: " in done.stderr
    version = importlib.metadata.version("timm")
    assert f"git clone --depth 1 --branch v{version} https://github.com/huggingface/pytorch-image-models" in done.stderr
    assert "Traceback" not in done.stderr


def test_unreleased_timm_has_no_tag_to_clone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.1.0.dev0")
    monkeypatch.setattr(sys, "argv", ["run.py", "missing.py"])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    message = capsys.readouterr().err
    assert "git clone --depth 1 https://github.com" in message
    assert "1.1.0.dev0" in message


@pytest.mark.skipif("TIMM_SCRIPTS" not in os.environ, reason="TIMM_SCRIPTS=DIR names no folder with timm's scripts")
def test_bulk_runner_starts_scripts_that_know_the_models(tmp_path: Path) -> None:
    """As docs/scripts.md has it, for few models and small images."""
    page = (ROOT / "docs/scripts.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python (-m timm_mobilevit.run bulk_runner.py (?:.*\\\n)*.*)$", page, re.MULTILINE)
    words = shlex.split(line.replace("\\\n", " "))
    words[words.index("mobilevitv3_*")] = "mobilevitv3_xxs*"
    for script in ("bulk_runner.py", "benchmark.py"):
        words[words.index(script)] = str(Path(os.environ["TIMM_SCRIPTS"]).resolve() / script)
    succeed(*words, *shlex.split("--device cpu --img-size 64 -b 2 --num-warm-iter 1 --num-bench-iter 10"), cwd=tmp_path)
    rows = [line.split(",") for line in (tmp_path / "speed.csv").read_text().splitlines()]
    assert rows[0][:2] == ["model", "infer_samples_per_sec"]
    assert sorted(row[0] for row in rows[1:]) == ["mobilevitv3_xxs", "mobilevitv3_xxs_l2"]
    assert float(rows[1][1]) >= float(rows[2][1])  # sorted by it


@pytest.mark.skipif("TIMM_SCRIPTS" not in os.environ, reason="TIMM_SCRIPTS=DIR names no folder with timm's scripts")
def test_timms_own_scripts_train_and_validate(tmp_path: Path) -> None:
    scripts = Path(os.environ["TIMM_SCRIPTS"]).resolve()
    for split, count in (("train", 8), ("validation", 4)):
        for label, level in (("dark", 40), ("light", 215)):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (64, 64), (level + index,) * 3).save(tmp_path / split / label / f"{index}.png")
    data = shlex.split("--model mobilevitv3_xxs --data-dir . --num-classes 2 --img-size 64 -b 4 -j 0 --device cpu")
    train = [scripts / "train.py", *data, "--epochs", "1", "--warmup-epochs", "0", "--output", "out", "--experiment"]

    succeed(*RUNNER, *train, "by-runner", cwd=tmp_path)
    output = succeed(
        *RUNNER, scripts / "validate.py", *data, "--checkpoint", "out/by-runner/last.pth.tar", cwd=tmp_path
    )
    summary = (tmp_path / "out/by-runner/summary.csv").read_text().splitlines()
    trained = dict(zip(*(line.split(",") for line in summary), strict=True))
    assert json.loads(output.split("--result")[1])["top1"] == pytest.approx(float(trained["eval_top1"]))

    succeed(*train, "without-runner", "--device-modules", "timm_mobilevit", cwd=tmp_path)
    assert (tmp_path / "out/without-runner/last.pth.tar").exists()
