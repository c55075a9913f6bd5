// Calls to the server, and what went wrong in words.

/** A call that failed: a title and a sentence for people, and what may be done about it. */
export class Problem extends Error {
  constructor(title, detail, more = {}) {
    super(detail);
    this.title = title;
    this.detail = detail;
    this.needsKey = more.needsKey ?? false;
    /** Seconds after which the same request may succeed. */
    this.retryAfter = more.retryAfter ?? null;
    /** The field of the request that is wrong, if one is. */
    this.field = more.field ?? null;
  }
}

function headers(key, accept) {
  const all = { accept };
  if (key) all.authorization = `Bearer ${key}`;
  return all;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached", "Is it still running, and is the network up?", { retryAfter: 0 });
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // An answer of something in between, such as a proxy: the status has to do.
  }
  const said = typeof body.detail === "string" ? body.detail : `The server answered with status ${response.status}.`;
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const retryAfter = Number.isFinite(seconds) ? seconds : null;
  switch (response.status) {
    case 401:
      return new Problem("This server asks for an API key", said, { needsKey: true });
    case 413:
      return new Problem("That is more than this server takes", inWords(said), { field: fieldOf(said) });
    case 429:
      return new Problem("The server is busy", said, { retryAfter: retryAfter ?? 1 });
    case 503:
      return new Problem("The server is not ready", said, { retryAfter: retryAfter ?? 1 });
    case 504:
      return new Problem("That took too long", said, { retryAfter: 0 });
    default:
      if (response.status >= 500) return new Problem("Something went wrong in the server", said, { retryAfter: 0 });
      return new Problem("The request was not accepted", inWords(said), { field: fieldOf(said) });
  }
}

/** Counts documents as people do. */
function inWords(detail) {
  return detail.replace(/^documents\[(\d+)\]/, (_, index) => `Document ${Number(index) + 1}`);
}

function fieldOf(detail) {
  return /^(query|documents|instruction)\b/.exec(detail)?.[1] ?? null;
}

/** What the server says of itself. */
export async function info(key) {
  return (await ask("/info", { headers: headers(key, "application/json") })).json();
}

/** Scores a request. */
export async function score(request, key, signal) {
  const response = await ask("/score", {
    method: "POST",
    headers: { ...headers(key, "application/json"), "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  return response.json();
}

/** Scores and explains a request; yields `{event, data}` as they arrive. */
export async function* explain(request, key, signal) {
  const response = await ask("/score?explain=true", {
    method: "POST",
    headers: { ...headers(key, "text/event-stream"), "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = read(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The connection broke off", "The explanation is not complete.", { retryAfter: 0 });
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One block of an event stream; comments, which keep the connection alive, are none. */
function read(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}
