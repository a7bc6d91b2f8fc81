"""The console script: runs the command line, and prints every error that a user can cause in one line."""

import logging
import sys

from bench.errors import CONTINUE, EXIT_INTERRUPTED, EXIT_USAGE, BenchError


def main() -> None:
    """Run `bench` and exit with one of the statuses that `docs/command-line.md` lists."""
    import click

    from bench.cli.main import bench

    logging.basicConfig(level=logging.WARNING, format="bench: %(message)s")
    stdout = sys.stdout
    try:
        status = bench.main(standalone_mode=False, prog_name="bench")
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns the second kind into the first
        advice = CONTINUE if sys.argv[1:2] == ["run"] else "run the same command again to start over"
        sys.stderr.write(f"bench: interrupted; {advice}\n")
        status = EXIT_INTERRUPTED
    except click.ClickException as error:
        usage = getattr(error, "ctx", None)
        hint = f" (see `{usage.command_path} --help`)" if usage is not None else ""
        sys.stderr.write(f"bench: {' '.join(error.format_message().split())}{hint}\n")
        status = EXIT_USAGE
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        status = EXIT_USAGE
    except SystemExit as error:
        # Click replaces stdout and exits when its reader has ended, e.g. `bench list methods | head -1`.
        status = error.code if sys.stdout is stdout else 0
    except OSError as error:
        path = error.filename or "unknown file"
        sys.stderr.write(f"bench: {error.strerror or error}: {path}; nothing that had finished is lost\n")
        status = EXIT_USAGE
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
