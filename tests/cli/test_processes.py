"""Commands as processes: pipes, interrupts, a terminal, and the start time."""

import json
import os
import pty
import resource
import shlex
import signal
import subprocess
import time
from io import BytesIO

import numpy as np
import pytest
import soundfile

SHORT = ("--max-seconds", "0.5", "--seed", "3", "--device", "cpu")


@pytest.fixture
def shell(command, tmp_path):
    """Runs a command as a process in an empty folder; `data` is its standard input."""

    def run(*arguments: object, data: bytes = b"") -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *map(str, arguments)], input=data, capture_output=True, cwd=tmp_path, timeout=120
        )

    return run


def test_sound_through_pipes(shell, tmp_path):
    made = shell("tts", "-", *SHORT, "--out", "-", data="Hello, 你好.".encode())
    assert made.returncode == 0, made.stderr.decode()
    sound, rate = soundfile.read(BytesIO(made.stdout), dtype="int16")
    assert rate == 16000 and len(sound) == 8000

    raw = shell("tts", "-", *SHORT, "--stream", "--json", data="Hello, 你好.".encode())
    assert np.array_equal(np.frombuffer(raw.stdout, "<i2"), sound)
    assert json.loads(raw.stderr)["seconds"] == 0.5  # the sound has standard output

    encoded = shell("encode", "-", "--out", "-", data=made.stdout)
    assert encoded.returncode == 0, encoded.stderr.decode()
    decoded = shell("decode", "-", "--out", "-", "--format", "flac", data=encoded.stdout)
    assert decoded.returncode == 0, decoded.stderr.decode()
    assert soundfile.info(BytesIO(decoded.stdout)).frames == 8000

    heard = shell("asr", "-", "--max-tokens", 4, "--json", data=made.stdout)
    assert json.loads(heard.stdout)["stats"]["audio_seconds"] == 0.5
    edited = shell("edit", "-", "louder", *SHORT, "--max-tokens", 4, "--stream", data=made.stdout)
    assert len(edited.stdout) == 2 * 8000
    assert not list(tmp_path.iterdir())


def test_standard_input_that_is_no_text_or_sound(shell):
    for arguments in (("tts", "-"), ("asr", "-"), ("decode", "-")):
        done = shell(*arguments, data=b"\xff\xfe\x00garbage")
        assert done.returncode == 2 and not done.stdout
        lines = done.stderr.decode().strip().splitlines()
        assert len(lines) == 1 and "standard input" in lines[0], lines


def test_a_closed_pipe_is_quiet(command, tmp_path):
    process = subprocess.Popen(
        [*command, "tts", "A long text. " * 20, "--stream", "-q", "--max-seconds", "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    with process:
        assert len(process.stdout.read(3200)) == 3200  # it streams before it is done
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) == 141 and errors == ""


def test_an_interrupt_ends_it_and_leaves_nothing(command, tmp_path):
    process = subprocess.Popen(
        [*command, "tts", "A long text. " * 50, "--max-seconds", "200", "--out", "x.wav"],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    with process:
        deadline = time.monotonic() + 60
        while not any(p.name.endswith(".part") and p.stat().st_size > 5000 for p in tmp_path.iterdir()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read().decode()
        assert process.wait(60) == 130
    assert "Traceback" not in errors and not list(tmp_path.iterdir())


def test_a_progress_bar_on_a_terminal_only(command, tmp_path):
    arguments = [*command, "tts", "Hello.", *SHORT, "--out", "x.wav"]
    piped = subprocess.run(arguments, capture_output=True, cwd=tmp_path, timeout=120)
    assert b"speaking" not in piped.stderr
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(arguments, stderr=theirs, cwd=tmp_path, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not piece:
                break
            said += piece
        assert process.wait(60) == 0
    os.close(ours)
    assert b"speaking" in said and b"s of audio" in said


def test_help_is_instant_and_needs_no_pytorch(command, tmp_path):
    code = command[-1].replace("main()", "import mingcore.cli as c, sys; c.run(['--help'])\n")
    code += "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([*command[:-1], code], capture_output=True, cwd=tmp_path, timeout=60, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:] + done.stderr
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--help"], capture_output=True, cwd=tmp_path, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0  # of the processor: a busy machine makes no difference


@pytest.mark.parametrize(
    ("arguments", "redirect", "words"),
    [
        ("info tiny", "> /dev/full", "standard output: No space left on device"),
        ("info tiny --json", "> /dev/full", "standard output: No space left on device"),
        ("tts one --max-seconds 0.2 -q -o - --format wav", "> /dev/full", "standard output: No space left on device"),
        ("info tiny --json", ">&-", "standard output: is closed"),
        ("asr -", "<&-", "standard input: is closed"),
        ("tts one --max-seconds 0.2 -q -o full.wav", ">&-", None),
        ("tts one --max-seconds 0.2 -q -o quiet.wav", "2>&-", None),
    ],
)
def test_streams_that_are_full_or_closed(command, tmp_path, arguments, redirect, words):
    line = f"{shlex.join(command)} {arguments} {redirect}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    if words is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == f"mingcore: {words}", done.stderr
