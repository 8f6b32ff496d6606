"""Stands in for `python` in the documents' blocks: hands the command to the test and prints what came of it."""

import json
import os
import socket
import sys


def main() -> int:
    """Ask, print, and return the exit status."""
    os.chdir(os.path.dirname(os.environ["DOCS"]))
    with socket.socket(socket.AF_UNIX) as call:
        call.connect("docs.socket")
        with call.makefile("rw") as file:
            file.write(json.dumps(sys.argv[1:]) + "\n")
            file.flush()
            status, output = json.loads(file.readline())
    sys.stdout.write(output)
    return status


if __name__ == "__main__":
    sys.exit(main())
