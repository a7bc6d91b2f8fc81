"""Options that several commands share."""

from pathlib import Path

import click

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
