"""Options that several commands share."""

from pathlib import Path

import click

from bench.errors import BenchError

DEFAULT_STORE = "bench-store"

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

store_option = click.option(
    "--store",
    "store_dir",
    type=FOLDER,
    default=DEFAULT_STORE,
    show_default=True,
    envvar="BENCH_STORE",
    help="Folder of results.",
)
data_option = click.option(
    "--data-dir",
    type=FOLDER,
    default=None,
    envvar="BENCH_DATA_DIR",
    help="Folder of data sets in torchvision's layout.",
)
tracking_option = click.option(
    "--tracking-uri", default=None, help="MLflow server or database.  [default: an SQLite file in the store]"
)


def names(text: str, flag: str) -> list[str]:
    """Split a list of names.

    Args:
        text: Names, separated by commas.
        flag: Option that the list was given with.

    Raises:
        BenchError: An entry is empty.
    """
    entries = [part.strip() for part in text.split(",")]
    if not all(entries):
        raise BenchError(f"{flag} '{text}' has an empty entry; separate names by single commas, e.g. sbs,dnas")
    return entries
