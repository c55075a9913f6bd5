#!/usr/bin/env bash
# AIPerf (pip install aiperf) against a running server, by the two rerank interfaces that it knows.
#   loadtest/public/aiperf.sh [http://127.0.0.1:8080] [requests]
set -euo pipefail
url=${1:-http://127.0.0.1:8080}
requests=${2:-100}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nothing is fetched: AIPerf finds the bundled model's tokenizer where it looks for one that it has had before.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HOME=$work/hub
cached=$HF_HOME/hub/models--local--verdict-mini
commit=0000000000000000000000000000000000000000
mkdir -p "$work/input" "$cached/refs" "$cached/snapshots/$commit"
printf %s "$commit" >"$cached/refs/main"
cp "$here/../../models/verdict-mini/"{tokenizer,config}.json "$cached/snapshots/$commit/"
echo '{"tokenizer_class": "PreTrainedTokenizerFast"}' >"$cached/snapshots/$commit/tokenizer_config.json"

# Rankings take a file of queries and one of passages, a JSON object a line.
lines() { while IFS= read -r text; do [ -z "$text" ] || printf '{"text": "%s"}\n' "${text//\"/\\\"}"; done <"$1"; }
lines "$here/../corpus/queries.txt" >"$work/input/queries.jsonl"
lines "$here/../corpus/passages.txt" >"$work/input/passages.jsonl"

for kind in hf_tei_rankings cohere_rankings; do
    aiperf profile --model verdict-mini --tokenizer local/verdict-mini --endpoint-type "$kind" --url "$url" \
        --input-file "$work/input" --custom-dataset-type random_pool --use-server-token-count \
        --concurrency 8 --request-count "$requests" --ui none --artifact-dir "$work/$kind"
done
