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
    help="Folder with data sets in torchvision's layout.",
)
tracking_option = click.option(
    "--tracking-uri", default=None, help="MLflow server; the store's own SQLite file when absent."
)


def names(text: str, flag: str) -> list[str]:
    """The names in a list of them.

    Args:
        text: Names, separated by commas.
        flag: The option that they were given with.

    Raises:
        BenchError: An entry is empty.
    """
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise BenchError(f"{flag} '{text}' has an empty entry; separate names by single commas, e.g. sbs,dnas")
    return found
