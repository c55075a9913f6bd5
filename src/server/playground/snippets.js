// The same request from a terminal and from Python.

function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

export function curl(origin, request, withKey) {
  const lines = [`curl -s ${shell(`${origin}/score`)}`, "  -H 'content-type: application/json'"];
  if (withKey) lines.push('  -H "authorization: Bearer $VERDICT_API_KEY"');
  lines.push(`  -d ${shell(JSON.stringify(request, null, 2))}`);
  return lines.join(" \\\n");
}

export function python(origin, request, withKey) {
  // Text in JSON is text in Python; of the constants only `true` is ever sent.
  const body = JSON.stringify(request, null, 4).replace(/^( {4}"sort": )true/m, "$1True");
  const key = withKey ? ', "authorization": "Bearer " + os.environ["VERDICT_API_KEY"]' : "";
  return `import json${withKey ? ", os" : ""}, urllib.request

body = ${body}
request = urllib.request.Request(
    ${JSON.stringify(`${origin}/score`)},
    data=json.dumps(body).encode(),
    headers={"content-type": "application/json"${key}},
)
with urllib.request.urlopen(request) as response:
    for result in json.load(response)["results"]:
        print(f'{result["relevance_score"]:.3f}', result["label"], body["documents"][result["index"]])
`;
}
