#!/usr/bin/env bash
# AIPerf (pip install aiperf) against a running server, by the two rerank interfaces that it knows.
#   loadtest/public/aiperf.sh [http://127.0.0.1:8080] [requests]
set -euo pipefail
url=${1:-http://127.0.0.1:8080}
requests=${2:-100}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1

# AIPerf's rankings take a file of queries and one of passages, a JSON object a line.
lines() { while IFS= read -r text; do [ -z "$text" ] || printf '{"text": "%s"}\n' "${text//\"/\\\"}"; done <"$1"; }
mkdir "$work/input" "$work/tokenizer"
cp "$here/../../models/verdict-mini/"{tokenizer,config}.json "$work/tokenizer/"
echo '{"tokenizer_class": "PreTrainedTokenizerFast"}' >"$work/tokenizer/tokenizer_config.json"
lines "$here/../corpus/queries.txt" >"$work/input/queries.jsonl"
lines "$here/../corpus/passages.txt" >"$work/input/passages.jsonl"

for kind in hf_tei_rankings cohere_rankings; do
    aiperf profile --model verdict-mini --tokenizer "$work/tokenizer" --endpoint-type "$kind" --url "$url" \
        --input-file "$work/input" --custom-dataset-type random_pool --use-server-token-count \
        --concurrency 8 --request-count "$requests" --ui none --artifact-dir "$work/$kind"
done
