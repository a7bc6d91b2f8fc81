"""Old import paths: each gives the same object as the new one, and a warning that names the new import."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from bench.moved import MOVED

NAMES = {
    "bench.checkpoints.GeneratorState": ("bench.training.checkpoints", "from bench.api import GeneratorState"),
    "bench.image_loading.ImageDataset": ("bench.data.image_loading", "from bench.api import ImageDataset"),
    "bench.options.Strict": ("bench.spec.options", "from bench.api import Options"),
    "bench.options.explain": ("bench.spec.options", "from bench.spec.options import explain"),
    "bench.policy.uniform": ("bench.compression.policy", "from bench.api import uniform"),
    "bench.policy.load_policy": ("bench.compression.policy", "from bench.compression.policy import load_policy"),
    "bench.quantization.UniformQuantizer": ("bench.compression.quantizer", "from bench.api import UniformQuantizer"),
    "bench.repair.policy_of": ("bench.matching.repair", "from bench.api import policy_of"),
    "bench.report.Report": ("bench.reporting.report", "from bench.api import Report"),
}


def test_every_old_module_is_tried() -> None:
    assert {path.rpartition(".")[0] for path in NAMES} == MOVED.keys()


@pytest.mark.parametrize("path", NAMES)
def test_an_old_path_gives_the_same_object_and_a_warning(path: str) -> None:
    module, _, name = path.rpartition(".")
    home, new_import = NAMES[path]
    with pytest.warns(FutureWarning) as caught:
        value = getattr(importlib.import_module(module), name)
    assert value is getattr(importlib.import_module(home), new_import.rpartition(" ")[2])
    (warning,) = caught
    assert f"{path} has moved" in str(warning.message) and f"`{new_import}`" in str(warning.message)
    assert warning.filename == __file__


def test_the_form_that_users_write() -> None:
    with pytest.warns(FutureWarning, match=r"use `from bench\.api import uniform`"):
        from bench.policy import uniform  # type: ignore[import-not-found]
    assert uniform.__module__ == "bench.compression.policy"


def test_a_name_that_was_never_there_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_name"):
        from bench.policy import no_such_name  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module("bench.no_such_module")


def test_old_paths_cost_nothing_until_they_are_used() -> None:
    code = "import sys, bench, bench.policy; print('torch' in sys.modules, 'bench.api' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert (result.stdout.strip(), result.stderr) == ("False False", "")


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("data", "Arrays Augmentation BatchStream Dataset TaskData as_uint8 augment split"),
        ("costs", "LayerCost NetworkCost RelaxedBops channels price price_layer"),
        ("training", "Evaluation Meter evaluate evaluating fit limit_gradients reestimate_norms sgd weight_groups"),
    ],
)
def test_packages_that_keep_their_paths_give_their_names_and_load_nothing_else(package: str, names: str) -> None:
    listed = names.replace(" ", ", ")
    code = (
        f"import sys, bench.{package} as package\n"
        "assert 'torch' not in sys.modules\n"
        f"from bench.{package} import {listed}\n"
        f"assert set({names.split()}) <= set(package.__all__) <= set(dir(package))\n"
    )
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], check=True, capture_output=True)
