"""Run a command, and end it with everything that it started when the process that started this one ends.

    python guard.py COMMAND…

The other end of the standard input belongs to the process that waits for the command. The system closes it however
that process ends, also when it is killed at once. Both processes of the command and this one are in one process group.
"""

import os
import signal
import subprocess
import sys
import threading
import time

_GRACE_SECONDS = 5.0


def main() -> None:
    """Run the command of the arguments, and exit with its status."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # the command decides when it ends; its own handler is another one
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL) as command:  # noqa: S603 - the arguments are ours
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        status = command.wait()
    sys.exit(status)


def _end_with_the_parent() -> None:
    while os.read(0, 1024):  # the buffered stream would be locked when this process ends by itself
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
