// Asks with the npm client cohere-ai: node cohere.mjs BASE_URL, a request as JSON
// on standard input; its two answers go to standard output.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The package may lie where NODE_PATH says, which `import` does not look at.
const require = createRequire(import.meta.url);
const { CohereClient, CohereClientV2 } = require("cohere-ai");

const [base] = process.argv.slice(2);
const { query, documents } = JSON.parse(readFileSync(0, "utf8"));
const options = { token: "none", environment: base };
const v1 = await new CohereClient(options).rerank({ model: "verdict-mini", query, documents });
const v2 = await new CohereClientV2(options).rerank({ model: "verdict-mini", query, documents });
const rows = (answer) => answer.results.map((row) => [row.index, row.relevanceScore]);
console.log(JSON.stringify({ v1: rows(v1), v2: rows(v2) }));
