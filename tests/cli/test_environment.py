"""The environment variable that the command sets, and the library does not."""

import os
import subprocess
import sys

import pytest

PROBE = "import os; {}; print(os.environ.get('OMP_WAIT_POLICY'))"
COMMAND = "import mingcore.cli.commands as c; c.run = lambda _: 0\ntry: c.main([])\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("code", "chosen", "expected"),
    [
        ("import mingcore.cli, mingcore.ops", None, "None"),
        (f"exec({COMMAND!r})", None, "passive"),
        (f"exec({COMMAND!r})", "active", "active"),
    ],
    ids=["library", "command", "command-with-the-variable-set"],
)
def test_only_the_command_lets_idle_threads_sleep(code, chosen, expected):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if chosen:
        environment["OMP_WAIT_POLICY"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
