#!/usr/bin/env bash
# oha (cargo install oha) against a running server: a fixed rate, latency corrected for waiting.
#   loadtest/public/oha.sh [http://127.0.0.1:8080] [requests a second] [seconds]
set -euo pipefail
url=${1:-http://127.0.0.1:8080}
oha --no-tui -z "${3:-10}s" -q "${2:-20}" --latency-correction -m POST \
    -H 'content-type: application/json' \
    -d '{"query": "how long to boil eggs", "documents": ["Boil eggs for six minutes.", "Penguins cannot fly."]}' \
    "$url/score"
