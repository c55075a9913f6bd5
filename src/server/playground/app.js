// The playground: reads the form, asks, shows. See api.js and results.js.

import { Problem, explain, info, score } from "./api.js";
import { EXAMPLES } from "./examples.js";
import { ReasonPanel, element, facts, legend, row } from "./results.js";
import { curl, python } from "./snippets.js";

const at = (id) => document.getElementById(id);
const fields = { query: at("query"), documents: at("documents"), instruction: at("instruction"), key: at("key") };

/** The server's grades, worst first, and whether it explains; known after /info. */
let grades = null;
let explains = true;
/** Ends whatever the last request still does. */
let running = new AbortController();

function documentOf(line) {
  if (!line.startsWith("{")) return line;
  try {
    const parsed = JSON.parse(line);
    return parsed !== null && typeof parsed === "object" ? parsed : line;
  } catch {
    return line;
  }
}

function form() {
  const lines = fields.documents.value.split("\n").map((line) => line.trim());
  const request = { query: fields.query.value, documents: lines.filter(Boolean).map(documentOf) };
  if (fields.instruction.value.trim()) request.instruction = fields.instruction.value;
  return { ...request, sort: true };
}

const key = () => fields.key.value.trim();

function changed() {
  const request = form();
  const count = request.documents.length;
  at("count").textContent = count === 1 ? "1 document" : `${count} documents`;
  const language = document.querySelector('[role="tab"][aria-selected="true"]').id;
  const write = language === "tab-python" ? python : curl;
  at("snippet-text").textContent = write(location.origin, request, !at("key-field").hidden);
}

/** Says what is missing before the server has to. */
function check(request) {
  if (!request.query.trim()) {
    throw new Problem("There is no query", "Write what is looked for.", { field: "query" });
  }
  if (!request.documents.length) {
    throw new Problem("There are no documents", "Write one document a line, or pick an example.", { field: "documents" });
  }
}

async function scoreNow() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const request = form();
  clearProblem();
  at("score").disabled = true;
  at("score").textContent = "Scoring…";
  try {
    check(request);
    const answer = await score(request, key(), signal);
    if (!grades) await askInfo(); // a key that was just given opens it
    show(answer, request, signal);
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error, scoreNow);
  } finally {
    if (!signal.aborted) {
      at("score").disabled = false;
      at("score").textContent = "Score";
    }
  }
}

/** Without /info, the answer itself names the grades. */
function gradesOf(answer) {
  const scored = answer.results.find((result) => result.probabilities);
  const named = Object.keys(scored?.probabilities ?? {}).map((name) => ({ name, label: name }));
  return grades ?? named;
}

function show(answer, request, signal) {
  const known = gradesOf(answer);
  const why = (button, panel, index) => toggleReason(button, panel, request, index, signal);
  const rows = answer.results.map((result, place) =>
    row(result, place + 1, request.documents, known, explains ? why : null),
  );
  at("facts").replaceChildren(...facts(answer));
  at("legend").replaceChildren(...legend(known));
  at("results").replaceChildren(...rows);
  at("empty").hidden = true;
  at("answer").hidden = false;
  at("status").textContent = `${rows.length} documents scored in ${answer.timing_ms.total.toFixed(1)} milliseconds`;
}

async function toggleReason(button, panel, request, index, signal) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open || panel.dataset.written) {
    panel.hidden = open;
    return;
  }
  panel.dataset.written = "yes";
  const reason = new ReasonPanel(panel);
  // A pair's score does not depend on its neighbours, so the one document is enough.
  const alone = { query: request.query, documents: [request.documents[index]], explain_indices: [0] };
  if (request.instruction) alone.instruction = request.instruction;
  const began = performance.now();
  try {
    for await (const { event, data } of explain(alone, key(), signal)) {
      if (event === "reason") reason.add(data.delta);
      if (event === "reason_done") {
        reason.end(data, performance.now() - began);
        if (data.finish_reason === "shed") delete panel.dataset.written;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    delete panel.dataset.written;
    reason.fail(error instanceof Problem ? `${error.title}. ${error.detail}` : String(error));
    if (error.needsKey) showProblem(error, null);
  }
}

function clearProblem() {
  at("problem").hidden = true;
  clearInterval(Number(at("problem").dataset.timer));
  for (const field of Object.values(fields)) field.removeAttribute("aria-invalid");
}

function showProblem(error, again) {
  const problem = error instanceof Problem ? error : new Problem("Something went wrong in this page", String(error));
  const said = element("div", "", null, [element("b", "", problem.title), element("span", "", problem.detail)]);
  at("problem").replaceChildren(said);
  at("problem").hidden = false;
  if (problem.needsKey) {
    at("key-field").hidden = false;
    fields.key.setAttribute("aria-invalid", "true");
    fields.key.focus();
    changed();
  } else if (problem.field) {
    fields[problem.field].setAttribute("aria-invalid", "true");
    fields[problem.field].focus();
  }
  if (problem.retryAfter !== null && again) at("problem").append(retryButton(problem.retryAfter, again));
}

/** A button that counts down to when a retry makes sense. */
function retryButton(seconds, again) {
  const button = element("button", "quiet");
  button.type = "button";
  let left = seconds;
  const tick = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) clearInterval(timer);
    left -= 1;
  };
  const timer = setInterval(tick, 1000);
  at("problem").dataset.timer = String(timer);
  tick();
  button.addEventListener("click", again);
  return button;
}

function serverState(state, text) {
  at("state").dataset.state = state;
  at("served").textContent = text;
}

async function askInfo() {
  try {
    const told = await info(key());
    grades = [...told.grades].sort((one, other) => one.value - other.value);
    explains = told.explain !== null;
    fields.instruction.placeholder = told.instruction || "How relevance is to be judged";
    serverState("ready", `${told.model} ${told.version ? `· version ${told.version}` : ""}`);
  } catch (error) {
    if (error.needsKey) {
      serverState("waiting", "an API key is needed");
      at("key-field").hidden = false;
      changed();
    } else if (error.retryAfter > 0) {
      serverState("waiting", "the server is starting…");
      setTimeout(askInfo, error.retryAfter * 1000);
    } else {
      serverState("gone", "the server cannot be reached");
    }
  }
}

function pick(example, button) {
  fields.query.value = example.query;
  fields.documents.value = example.documents.join("\n");
  fields.instruction.value = "";
  for (const other of at("examples").children) other.setAttribute("aria-pressed", String(other === button));
  clearProblem();
  changed();
}

function pickTab(tab) {
  for (const other of document.querySelectorAll('[role="tab"]')) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  at("snippet").setAttribute("aria-labelledby", tab.id);
  changed();
}

async function copy() {
  try {
    await navigator.clipboard.writeText(at("snippet-text").textContent);
    at("copy").textContent = "Copied";
  } catch {
    // Only pages of https and localhost may copy: select it for the user instead.
    getSelection().selectAllChildren(at("snippet-text"));
    at("copy").textContent = "Selected";
  }
  setTimeout(() => {
    at("copy").textContent = "Copy";
  }, 1500);
}

function start() {
  for (const example of EXAMPLES) {
    const button = element("button", "", example.name);
    button.type = "button";
    button.addEventListener("click", () => pick(example, button));
    at("examples").append(button);
  }
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    scoreNow();
  });
  at("form").addEventListener("input", changed);
  fields.key.addEventListener("change", askInfo);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      scoreNow();
    }
  });
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => pickTab(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = tabs[(place + step + tabs.length) % tabs.length];
      next.focus();
      pickTab(next);
    });
  }
  at("copy").addEventListener("click", copy);
  if (/mac|iphone|ipad/i.test(navigator.platform)) document.querySelector(".keys kbd").textContent = "⌘";
  pick(EXAMPLES[0], at("examples").firstElementChild);
  askInfo();
}

start();
