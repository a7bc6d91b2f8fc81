"""The identity of source code: it depends on mathematics, not on wording and modules."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from bench.plugins.source_hash import VERSION, hash_sources

BLOCK = "SCALE = 2\n\ndef double(x):\n    return SCALE * x\n"
METHOD = """
from bench.compression.policy import uniform
from pack.block import double

class Mine:
    \"\"\"Finds a policy.\"\"\"
    summary = "finds a policy"
    source = "a paper"
    deviations = ("none",)
    bits = 4

    def search(self, job):
        \"\"\"Search.\"\"\"
        return uniform(job, double(self.bits) + 1)
"""


def hash_of(method: str = METHOD, block: str = BLOCK, **more: str) -> str:
    sources = {"pack.method": method, "pack.block": block, **more}
    return hash_sources({name: text.encode() for name, text in sources.items()}, {"bench", "pack"})


FIRST = hash_of()


def test_a_hash_names_the_rule_that_made_it() -> None:
    version, _, digits = FIRST.partition(":")
    assert (version, len(digits)) == (VERSION, 64)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Finds a policy.", "Returns a policy, in other words."),
        ('        """Search."""\n', ""),
        ('summary = "finds a policy"', 'summary = "is worded otherwise"'),
        ('source = "a paper"', 'source = "a paper of 2021"'),
        ('deviations = ("none",)', 'deviations = ("none", "some")'),
        ("    bits = 4", "    bits = 4  # like the paper\n\n"),
        ("double(self.bits) + 1", "(\n            double( self.bits )+1\n        )"),
        ("from bench.compression.policy import uniform", "from bench.compression.compress.policy import uniform"),
        ("from bench.compression.policy import uniform\n", "from bench.api import Policy, uniform\n"),
        ("from pack.block import double", "from pack.shared.block import double"),
    ],
)
def test_wording_form_and_module_of_what_is_imported_do_not_change_it(old: str, new: str) -> None:
    assert METHOD.replace(old, new) != METHOD
    assert hash_of(METHOD.replace(old, new)) == FIRST


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+ 1", "- 1"),
        ("+ 1", "+ 1.0"),
        ("+ 1", "+ True"),
        ("bits = 4", "bits = 5"),
        ("bits = 4", 'bits = "4"'),
        ("double(self.bits) + 1", "double(self.bits + 1)"),
        ("import double", "import triple as double"),
        ("from bench.compression.policy import uniform", "from foreign.policy import uniform"),
        ("from bench.compression.policy import uniform", "from bench.compression.policy import cheapest as uniform"),
        ("class Mine:", "class Mine(dict):"),
    ],
)
def test_one_change_of_what_is_computed_changes_it(old: str, new: str) -> None:
    assert METHOD.replace(old, new) != METHOD
    assert hash_of(METHOD.replace(old, new)) != FIRST


@pytest.mark.parametrize(("old", "new"), [("SCALE = 2", "SCALE = 3"), ("SCALE * x", "SCALE + x"), ("SCALE * x", "x")])
def test_so_does_one_in_a_building_block(old: str, new: str) -> None:
    assert hash_of(block=BLOCK.replace(old, new)) != FIRST


def test_splitting_a_module_leaves_it() -> None:
    scale, function = BLOCK.split("\n\n")
    split = {"block": f"from pack.scales import SCALE\n{function}", "pack.scales": f"{scale}\n"}
    assert hash_of(METHOD, **split) == FIRST
    assert hash_of(METHOD.replace("pack.block", "pack.shared.block"), block="", **{"pack.shared.block": BLOCK}) == FIRST


def test_which_of_two_definitions_of_one_name_is_imported_counts() -> None:
    other = BLOCK.replace("SCALE * x", "SCALE ** x")
    both = hash_of(METHOD, **{"pack.other": other})
    assert both != FIRST
    assert hash_of(METHOD.replace("pack.block", "pack.other"), **{"pack.other": other}) != both


@pytest.mark.parametrize("form", ["import pack.{} as block", "from pack import {} as block"])
def test_which_module_is_imported_as_a_whole_counts(form: str) -> None:
    method = METHOD.replace("double(self.bits)", "block.double(self.bits)").replace(
        "from pack.block import double", form
    )
    other = BLOCK.replace("SCALE * x", "SCALE ** x")
    one, two = (hash_of(method.format(name), **{"pack.other": other}) for name in ("block", "other"))
    assert one != two
    assert hash_of(method.format("block"), **{"pack.other": other}) == one


def test_the_order_of_definitions_does_not_count_but_that_of_effects_does() -> None:
    scale, function = BLOCK.rstrip("\n").split("\n\n")
    assert hash_of(block=f"{function}\n\n{scale}\n") == FIRST
    ones = [
        hash_of(block=f"{BLOCK}{lines}")
        for lines in ("A = 1\nA = 2\n", "A = 2\nA = 1\n", "A += 2\n", "A += 2\nB += 1\n")
    ]
    assert len(set(ones)) == len(ones)
    assert hash_of(block=f"{BLOCK}print(1)\nprint(2)\n") != hash_of(block=f"{BLOCK}print(2)\nprint(1)\n")


def test_unparsable_code_is_represented_by_itself() -> None:
    broken = {text: hash_of(f"{METHOD}\n{text}") for text in ("def (", "def (  ", "class")}
    assert len({FIRST, *broken.values()}) == 4


def test_every_process_finds_the_same_hash() -> None:
    """The hash does not depend on the order of sets, which differs between processes."""
    code = (
        "from bench.plugins.source_hash import hash_sources\n"
        f"print(hash_sources({ {'pack.method': METHOD.encode(), 'pack.block': BLOCK.encode()}!r}, {{'bench', 'pack'}}))"
    )

    def found(seed: str) -> str:
        environment: Mapping[str, str] = {"PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert found("1") == found("2") == FIRST


@pytest.mark.parametrize("line", ["source: int = 3", "source: int", "source = 3", "summary = int('3')"])
def test_a_class_attribute_that_is_no_text_counts_whatever_its_name(line: str) -> None:
    with_it, changed = (
        hash_of(block=f"{BLOCK}class Part:\n    {text}\n") for text in (line, line.replace("int", "float"))
    )
    without = hash_of(block=f"{BLOCK}class Part:\n    pass\n")
    assert with_it != without
    assert (with_it == changed) == ("int" not in line)
