"""What an archive takes from a file that may have secrets: the content without them.

Older versions stored the command of a study as it was typed, with the passwords of its databases. Logs and tracebacks
of any version hold what other people's code has written.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from bench.inputs.reading import parse_json
from bench.outputs.escaping import in_csv, in_html, in_latex, in_markdown
from bench.store.files import CHECKSUM, checked_bytes
from bench.store.urls import without_secrets

_WRITTEN_BY_CODE = ("output.log", "error.txt")
"""Names of files whose content the harness does not know."""
_TABLES = (".md", ".csv", ".tex", ".html", ".txt", ".json")
"""Endings of a study's further files, which may repeat its command."""
_FORMS = (str, in_csv, in_html, in_latex, in_markdown)


def redacted(name: str, content: bytes, command: str) -> bytes:
    """Return the content of a file of a study without secrets; most files stay as they are.

    Args:
        name: Name of the file in the archive.
        content: Content of the file in the store.
        command: Command of the study as it is stored.
    """
    path = PurePosixPath(name)
    if path.name in _WRITTEN_BY_CODE:
        return _without_secrets(content)
    if path.parts[0] != "studies" or path.suffix not in _TABLES:
        return content
    if path.name == "study.json" and len(path.parts) == 3:
        return _document(content)
    for secret, shown in _replacements(command):
        content = content.replace(secret, shown)
    return content


def may_have_secrets(name: str) -> bool:
    """Return whether a file has to be looked through; all others may be large."""
    path = PurePosixPath(name)
    return path.name in _WRITTEN_BY_CODE or (path.parts[0] == "studies" and path.suffix in _TABLES)


def _without_secrets(content: bytes) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    return without_secrets(text).encode("utf-8", "surrogateescape")


def _document(content: bytes) -> bytes:
    """Return the document of a study with a command without secrets, and the checksum of that."""
    try:
        document = parse_json(content)
    except ValueError:  # damaged; whatever it is, it is no document
        return _without_secrets(content)
    if not isinstance(document, dict) or without_secrets(_command(document)) == _command(document):
        return content
    fields = {key: value for key, value in document.items() if key != CHECKSUM}
    return checked_bytes({**fields, "command": without_secrets(_command(document))})


def _command(document: Mapping[str, Any]) -> str:
    return str(document.get("command") or "")


def _replacements(command: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield each word of a command that has a secret, as tables may show it, and what stands in its place."""
    for word in command.split():
        shown = without_secrets(word)
        if shown != word:
            yield from ((form(word).encode(), form(shown).encode()) for form in _FORMS)
