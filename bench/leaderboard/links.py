"""Addresses of the leaderboard's pages, and marks of methods."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bench.inputs.names import FileName
from bench.reporting.pages.page import Glyph
from bench.spec.schema import canonical_hash

_UNSAFE = re.compile(r"[^a-z0-9]+")
_LONGEST_SLUG = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Addresses of pages, and marks of methods.

    Attributes:
        methods: File of each method's page, by the method's name.
        boards: File of each board's page, by the board's identity.
        glyphs: Mark of each method.
    """

    methods: Mapping[str, FileName]
    boards: Mapping[str, FileName]
    glyphs: Mapping[str, Glyph]


def file_name(kind: str, words: str, identity: str) -> FileName:
    """Return a name for a page: readable, and never one that a foreign text decides.

    Args:
        kind: First word of the name.
        words: Texts of studies; of these only letters and digits stay.
        identity: What distinguishes the page from all others.
    """
    slug = _UNSAFE.sub("-", words.lower()).strip("-")[:_LONGEST_SLUG]
    return FileName(f"{kind}-{slug}-{canonical_hash(identity)[:8]}.html")
