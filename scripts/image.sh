#!/usr/bin/env bash
# What an image holds of ours, staged below a folder: both Dockerfiles run this, and so does CI on a
# machine without a container engine (tests/deploy/image.py).
#
#   scripts/image.sh FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# = 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1

cargo build --release --locked --bin verdict
install -D "${CARGO_TARGET_DIR:-target}/release/verdict" "$out/usr/local/bin/verdict"
# Names of functions stay, for stack traces; lines go.
strip --strip-debug "$out/usr/local/bin/verdict"
install -D -m 644 -t "$out/usr/share/doc/verdict" LICENSE NOTICE
install -D -m 644 models/verdict-mini/NOTICE "$out/usr/share/doc/verdict/verdict-mini.NOTICE"
du -ab --apparent-size "$out" | sort -k 2
