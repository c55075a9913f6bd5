"""What tests share: the modules' place, the program, and skips where something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "training"))


@pytest.fixture(scope="session")
def verdict():
    """Runs the program on arguments and stdin; skips where there is none."""
    built = ROOT / "target/release/verdict"
    program = os.environ.get("VERDICT_BIN") or (str(built) if built.exists() else shutil.which("verdict"))
    if program is None:
        pytest.skip("no verdict binary; set VERDICT_BIN")

    def run(*arguments, text: str = "", check: bool = True):
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done

    return run
