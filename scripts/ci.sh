#!/usr/bin/env bash
# Every check of this repository, in one place: `just ci`, `.ci/run` and a person
# without just all run this file.
#
#   scripts/ci.sh            all steps
#   scripts/ci.sh lint doc   some of them
#
# Everything is built in release, in one target directory, so that dependencies are
# compiled once (candle and tokenizers are slow without optimization, and slow to build).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s (%s)\n' "$1" "$(date -u +%H:%M:%S)"; }
skip() { printf 'SKIPPED: %s\n' "$1"; }

fmt() {
    step "format"
    cargo fmt --all --check
}

lint() {
    step "lint: clippy, warnings are errors"
    cargo clippy --release --locked --workspace --all-targets -- -D warnings
}

doc() {
    step "documentation, warnings are errors"
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps
}

# The README's second command. Dependencies' licences are checked here too (tests/tidy.rs).
tests() {
    step "tests"
    cargo test --release
}

# One HTTP/1.0 request without curl: http PORT METHOD PATH [JSON]
http() {
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf '%s %s HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s' \
        "$2" "$3" "${#4}" "${4:-}" >&3
    cat <&3
    exec 3>&-
}

# The README's first command, on free ports: it becomes ready, scores, and stops when told.
serve() {
    step "serve the bundled model"
    local log port admin answer
    log=$(mktemp)
    VERDICT_PORT=0 VERDICT_ADMIN_PORT=0 VERDICT_THREADS=0 \
        cargo run --release -- serve 2>"$log" &
    server=$!
    trap 'kill "$server" 2>/dev/null || true' EXIT
    for _ in $(seq 1200); do
        grep -q ' ready ' "$log" && break
        kill -0 "$server" 2>/dev/null || { cat "$log"; echo "the server ended by itself" >&2; exit 1; }
        sleep 0.5
    done
    port=$(sed -nE 's/.*address=[^ ]*:([0-9]+).*/\1/p' "$log" | head -1)
    admin=$(sed -nE 's/.*admin=[^ ]*:([0-9]+).*/\1/p' "$log" | head -1)
    http "$admin" GET /readyz "" | grep -q ' 200 ' || { cat "$log"; echo "not ready" >&2; exit 1; }
    answer=$(http "$port" POST /score '{"query": "how long to boil eggs", "documents":
        ["Boil eggs for six minutes for a soft yolk.", "Penguins cannot fly."], "top_n": 1}')
    case "$answer" in
        *'"index":0'*) echo "ready, and the relevant document is first" ;;
        *) printf '%s\n' "$answer"; echo "the wrong document is first" >&2; exit 1 ;;
    esac
    kill -TERM "$server"
    wait "$server" || { cat "$log"; echo "the server did not stop cleanly" >&2; exit 1; }
    trap - EXIT
    rm -f "$log"
}

# Load scenarios against the real server, over a backend that only takes time: so they say
# the same on any machine. With the model: loadtest/README.md.
load() {
    step "load: overload, clients that leave, reasons, bursts, fairness"
    cargo test --release --locked -p verdict-loadtest
    cargo run --release --locked -p verdict-loadtest -- run --stub 20000 loadtest/scenarios/ci/*.toml 2>&1 | tr '\r' '\n' | grep -v ' open '
    step "load: SIGTERM to the program, with the model"
    cargo build --release --locked
    cargo run --release --locked -p verdict-loadtest -- run --serve "${CARGO_TARGET_DIR:-target}/release/verdict" loadtest/scenarios/stop.toml 2>&1 | tr '\r' '\n' | grep -v ' open '
}

deny() {
    step "dependencies: advisories, bans, sources (cargo-deny)"
    if ! command -v cargo-deny >/dev/null; then
        skip "cargo-deny is not installed; the tests above did check the licences"
    elif timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
        cargo deny --locked check
    else
        skip "advisories: their database cannot be fetched"
        cargo deny --locked check bans licenses sources
    fi
}

# The fuzzing functions guided by coverage, ten seconds each; tests/fuzz.rs runs them without.
# What it finds goes to a scratch corpus; an input that fails, to fuzz/artifacts.
fuzz() {
    step "fuzz: ten seconds for each target (cargo-fuzz)"
    if ! command -v cargo-fuzz >/dev/null; then
        skip "cargo-fuzz is not installed; the tests above did run the corpus and mutations of it"
        return
    fi
    local target scratch
    scratch=$(mktemp -d)
    # What is fuzzed is what is released, dependencies included.
    cp Cargo.lock fuzz/Cargo.lock
    for target in $(cargo fuzz list); do
        mkdir "$scratch/$target"
        # The pinned toolchain is a stable one, and sanitizers are for others.
        RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "$scratch/$target" "fuzz/corpus/$target" -- \
            -max_total_time=10 -max_len=4096 -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1
    done
    rm -rf "$scratch"
}

# The playground in a headless browser, against the binary that was built above.
playground() {
    step "playground: the page in Chromium"
    local browser
    browser=$(command -v "${CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome || true)
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        skip "there is no node and npm"
    elif [ -z "$browser" ]; then
        skip "there is no Chromium"
    elif ! npm --prefix tests/playground ci --no-audit --no-fund >/dev/null; then
        skip "playwright-core cannot be had (tests/playground/package.json)"
    else
        cargo build --release
        CHROMIUM="$browser" npm --prefix tests/playground test
    fi
}

# The server against its own OpenAPI description.
schema() {
    step "OpenAPI: the server as it is described"
    local python=${SCHEMA_PYTHON:-python3}
    if ! command -v "$python" >/dev/null; then
        skip "there is no python3"
    elif ! "$python" -c 'import schemathesis' 2>/dev/null; then
        skip "python3 has no schemathesis (tests/schema/requirements.txt)"
    else
        cargo build --release
        "$python" tests/schema/run.py
    fi
}

training() {
    step "training: Python tests"
    if ! command -v python3 >/dev/null; then
        skip "there is no python3"
    elif ! python3 -c 'import pytest, torch, transformers' 2>/dev/null; then
        skip "python3 has no pytest, torch and transformers (training/requirements.txt)"
    else
        python3 -m pytest -q training/tests
    fi
}

# Clients of other rerank servers, against the server as it is released.
clients() {
    step "clients of other rerank servers"
    if ! command -v python3 >/dev/null; then
        skip "there is no python3"
    else
        cargo build --release --locked
        python3 tests/clients/run.py "${CARGO_TARGET_DIR:-target}/release/verdict"
    fi
}

# What is in deploy/, with the tools that will read it (tests/deploy/requirements.txt).
deploy() {
    step "deploy: rules, dashboard, manifests"
    if ! command -v python3 >/dev/null; then
        skip "there is no python3"
    else
        local python=python3
        [ -x .venv/deploy/bin/python ] && python=.venv/deploy/bin/python
        cargo build --release --locked
        "$python" tests/deploy/run.py "${CARGO_TARGET_DIR:-target}/release/verdict"
    fi
}

# The kernels for every architecture: registers, spills, tensor core instructions, and whether the
# committed fatbin is what they compile to. That they are right is among the tests above.
cuda() {
    step "cuda: the kernels, compiled"
    if cargo tree --locked -e features -i cudarc | grep -E 'cudarc feature "(dynamic-linking|static-linking)"'; then
        echo "the program would not start without CUDA" >&2
        exit 1
    fi
    if ! command -v python3 >/dev/null; then
        skip "there is no python3"
    elif ! python3 scripts/kernels.py found; then
        skip "there is no nvcc (scripts/kernels.py says how to have it)"
    else
        python3 scripts/kernels.py check
    fi
}

for name in "${@:-all}"; do
    case "$name" in
        all) fmt; tests; serve; load; playground; schema; lint; doc; deny; fuzz; cuda; training; clients; deploy ;;
        fmt | tests | serve | load | playground | schema | lint | doc | deny | fuzz | cuda | training | clients | deploy) "$name" ;;
        *) echo "no step $name; there are fmt, tests, serve, load, playground, schema, lint, doc, deny, fuzz, cuda, training, clients, deploy" >&2; exit 2 ;;
    esac
done
printf '\n== done (%s)\n' "$(date -u +%H:%M:%S)"
