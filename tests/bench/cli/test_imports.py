"""A command imports only what it needs: a table is not to wait for libraries that have nothing to do with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_store import FakeStore

_CODE = """
import json, sys
from bench.__main__ import main
sys.argv = ["bench", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as error:
    print(json.dumps([error.code, *sys.modules]), file=sys.stderr)
"""

TRAINING = {"torch", "torchvision", "sklearn", "optuna"}
VIEWS = {"mlflow", "altair", "vl_convert", "itables", "jinja2", "IPython"}
NUMBERS = {"numpy", "scipy", "pandas"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
FORBIDDEN = {
    "--help": TRAINING | VIEWS | NUMBERS | {"rich", "pydantic"},
    "run --help": TRAINING | VIEWS | NUMBERS | {"rich", "pydantic"},
    "list methods": TRAINING | VIEWS | NUMBERS | {"rich"},
    "list models": TRAINING | VIEWS | NUMBERS | {"rich"},
    "list datasets": TRAINING | VIEWS | NUMBERS | {"rich"},
    "list reports": TRAINING | VIEWS | NUMBERS | {"rich"},
    "list presets": TRAINING | VIEWS | NUMBERS | {"rich"},
    "list forms": TRAINING | VIEWS | {"pandas", "scipy.stats"},
    "status": TRAINING | VIEWS | NUMBERS,
    "report": TRAINING | VIEWS,
    "report --format markdown": TRAINING | VIEWS,
    "compare sbs fixed": TRAINING | VIEWS,
    "plan --detect 0.5": TRAINING | VIEWS,
    "clean": TRAINING | VIEWS | NUMBERS | {"rich"},
    "archive quick quick.tar.gz": TRAINING | VIEWS | {"scipy"},
    "cost --model resnet8 --dataset digits --bits 4": COMPILER
    | VIEWS
    | {"scipy.stats", "pandas", "torchvision", "sklearn", "optuna"},
}


@pytest.mark.parametrize("command", FORBIDDEN)
def test_a_command_imports_only_what_it_needs(command: str, tmp_path: Path) -> None:
    fake = FakeStore(tmp_path / "bench-store", spec={"methods": ["fixed", "sbs"]})
    fake.seeds("fixed", [60.0, 61.0, 62.0])
    fake.seeds("sbs", [61.0, 61.5, 62.0])
    fake.document()
    # In a process of its own, since this one has imported everything.
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(command.split())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    status, *modules = json.loads(ended.stderr.splitlines()[-1])
    assert status == 0, ended.stderr
    assert not FORBIDDEN[command] & set(modules)
