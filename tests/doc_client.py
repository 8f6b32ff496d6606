"""Stands in for `python` in the documents' blocks: hands the command to the test and prints what came of it."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as call:
    os.chdir(os.path.dirname(os.environ["DOCS"]))
    call.connect("docs.socket")
    with call.makefile("rw") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
        file.flush()
        status, output = json.loads(file.readline())
sys.stdout.write(output)
sys.exit(status)
