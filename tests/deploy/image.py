"""What the images hold, staged by the script that the Dockerfiles run, and the Dockerfiles themselves."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile

import report

# Debian's slim image has these without any package of ours: glibc, and GCC's two.
LIBRARIES = {
    "linux-vdso.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libgcc_s.so.1",
    "libstdc++.so.6",
}
# docs/operations.md states the size; past this it is no longer true.
MOST_MB = 48


def staged_problems(root):
    binary = root / "usr/local/bin/verdict"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    wanted = {
        "usr/local/bin/verdict",
        "usr/share/doc/verdict/LICENSE",
        "usr/share/doc/verdict/NOTICE",
        "usr/share/doc/verdict/verdict-mini.NOTICE",
    }
    if found != wanted:
        yield f"holds {sorted(found)}"
        return
    for path in root.rglob("*"):
        # The image's user is neither owner nor group.
        mode = path.stat().st_mode
        if not mode & stat.S_IROTH or (path.is_dir() or path == binary) and not mode & stat.S_IXOTH:
            yield f"{path.relative_to(root)} cannot be read or run by others"
    said, problems = report.command(binary, "--version")
    yield from problems
    if not said.startswith("verdict "):
        yield f"--version says {said!r}"
    loads = set(re.findall(r"^\s*(?:/\S+/)?(\S+?)(?: =>| \()", report.command("ldd", binary)[0], re.MULTILINE))
    yield from (f"needs {name}, which is not in the base image" for name in sorted(loads - LIBRARIES))
    if size(root) > MOST_MB:
        yield f"{size(root):.1f} MB, over {MOST_MB}"


def size(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6


def dockerfile_problems():
    """Both stage by the script, run as the same user, and differ in their base alone."""
    files = {name: (report.ROOT / name).read_text() for name in ("Dockerfile", "Dockerfile.cuda")}
    for name, text in files.items():
        for line in ("scripts/image.sh /out", "COPY --from=build /out /", "USER 65532:65532", "HEALTHCHECK", "STOPSIGNAL"):
            if line not in text:
                yield f"{name}: no {line}"
    build = [text[text.index("AS build") :].split("\nFROM ")[0] for text in files.values()]
    end = [text[text.index("# No name is needed") :] for text in files.values()]
    if build[0] != build[1] or end[0] != end[1]:
        yield "the Dockerfiles differ in more than their base"


def context_problems():
    """What .dockerignore lets through has to be enough for cargo, and for the script."""
    lines = (report.ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines[0] != "*" or not all(line.startswith("!") for line in lines[1:]):
        yield ".dockerignore is more than a list of exceptions; this check reads nothing else"
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in (line[1:] for line in lines[1:]):
            (source, target) = (report.ROOT / name, pathlib.Path(folder) / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        manifest = pathlib.Path(folder) / "Cargo.toml"
        yield from report.command(
            "cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version=1", "--manifest-path", manifest
        )[1]
        if not os.access(pathlib.Path(folder) / "scripts/image.sh", os.X_OK):
            yield "scripts/image.sh is not let through, or cannot be run"


def check():
    report.result("Dockerfiles", dockerfile_problems())
    report.result("what .dockerignore lets through is a package", context_problems())
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "out"
        done = subprocess.run(
            [report.ROOT / "scripts/image.sh", root],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "CARGO_TERM_COLOR": "never"},
        )
        problems = staged_problems(root) if done.returncode == 0 else (done.stdout + done.stderr).splitlines()[-10:]
        report.result("an image's files, as scripts/image.sh stages them", problems, f"{size(root):.1f} MB")
