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

/** JSON as Python writes it: text and numbers are the same, constants are not. */
function literal(value, indent) {
  const inner = `${indent}    `;
  const list = (parts, [open, close]) => (parts.length ? `${open}\n${inner}${parts.join(`,\n${inner}`)}\n${indent}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return list(value.map((item) => literal(item, inner)), "[]");
  if (typeof value !== "object") return JSON.stringify(value);
  return list(Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`), "{}");
}

export function python(origin, request, withKey) {
  const body = literal(request, "");
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
