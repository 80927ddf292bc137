import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mingcore import cli

ROOT = Path(__file__).resolve().parents[2]


class Outcome:
    """The exit status and the output of a command."""

    def __init__(self, status: int, out: str, err: str):
        self.status, self.out, self.err = status, out, err

    def refused(self, *words: str) -> str:
        """Asserts exit status 2 and one line with `words`; returns the line."""
        assert self.status == 2, (self.status, self.out, self.err)
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("mingcore: "), self.err
        assert all(word in lines[0] for word in words), (lines[0], words)
        assert self.out == ""
        return lines[0]


@pytest.fixture
def mingcore(capfd, tmp_path, monkeypatch):
    """Runs a command of the CLI in this process, in an empty folder: `mingcore("tts", "hi")`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = cli.run([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The start of a command line that runs the CLI of this tree in a process of its own."""
    roots = f"{str(ROOT)!r}, {str(ROOT / 'kernels')!r}"
    code = f"import sys; sys.path[:0] = [{roots}]; from mingcore.cli import main; main()"
    return [sys.executable, "-c", code]


@pytest.fixture(scope="session")
def wav(tmp_path_factory) -> Path:
    """Half a second of sound at 16 kHz."""
    path = tmp_path_factory.mktemp("sound") / "half.wav"
    rng = np.random.default_rng(0)
    sound = 0.2 * np.sin(np.arange(8000) * 0.05) + 0.01 * rng.standard_normal(8000)
    soundfile.write(path, sound, 16000)
    return path
