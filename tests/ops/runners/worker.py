"""The script of every worker; see protocol.py."""

import sys

from tests.ops.runners import protocol

if __name__ == "__main__":
    protocol.serve(*sys.argv[1:])
