// The answer as elements. Text of users, of the model and of the server is only
// ever set as text, never parsed.

const RAMP = 5;

export function element(name, classes = "", text = null, children = []) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%`;
const milliseconds = (time) => `${time.toFixed(time < 10 ? 1 : 0)} ms`;

/** The class that colours a grade: its place between the worst and the best. */
function ramp(names, name) {
  const place = Math.max(0, names.indexOf(name)) / Math.max(1, names.length - 1);
  return `ramp-${Math.round(place * (RAMP - 1))}`;
}

/** What a document is shown as: its title, if it has one, and its text. */
function shown(document_) {
  if (typeof document_ === "string") return [document_];
  const { id: _, title, ...rest } = document_;
  const text = Object.values(rest).map((value) => (typeof value === "string" ? value : JSON.stringify(value)));
  return title === undefined ? [text.join(" ")] : [element("strong", "", String(title)), ` ${text.join(" ")}`];
}

/** A bar of parts of a whole, with their names. */
function split(title, rest, parts) {
  const whole = parts.reduce((sum, part) => sum + part.size, 0) || 1;
  const bar = element("div", "split");
  bar.setAttribute("aria-hidden", "true");
  const list = element("ul", "parts");
  for (const part of parts) {
    const piece = element("i");
    piece.style.width = `${(part.size / whole) * 100}%`;
    piece.hidden = part.size <= 0;
    bar.append(piece);
    list.append(element("li", "", null, [element("i"), `${part.name} ${part.text}`]));
  }
  return element("div", "fact", null, [element("h3", "", null, [element("b", "", title), ` ${rest}`]), bar, list]);
}

/** Timing and token sharing of the whole request. */
export function facts(answer) {
  const { timing_ms: timing, usage } = answer;
  const other = Math.max(0, timing.total - timing.tokenize - timing.queue - timing.compute);
  const count = answer.results.length;
  const spared = usage.prompt_tokens ? (usage.shared_tokens + usage.cached_tokens) / usage.prompt_tokens : 0;
  return [
    split(milliseconds(timing.total), `for ${count} ${count === 1 ? "document" : "documents"}`, [
      { name: "compute", size: timing.compute, text: milliseconds(timing.compute) },
      { name: "queue", size: timing.queue, text: milliseconds(timing.queue) },
      { name: "other", size: timing.tokenize + other, text: milliseconds(timing.tokenize + other) },
    ]),
    split(`${usage.prompt_tokens} tokens`, `of which ${percent(spared)} were not computed again`, [
      { name: "computed", size: usage.computed_tokens, text: String(usage.computed_tokens) },
      { name: "shared", size: usage.shared_tokens, text: String(usage.shared_tokens) },
      { name: "cached", size: usage.cached_tokens, text: String(usage.cached_tokens) },
    ]),
  ];
}

/** The grades and their colours, worst first. */
export function legend(grades) {
  const names = grades.map((grade) => grade.name);
  return grades.map((grade) => {
    const label = grade.label && grade.label !== grade.name ? `${grade.name} ${grade.label}` : grade.name;
    return element("li", ramp(names, grade.name), label);
  });
}

function histogram(result, grades) {
  const names = grades.map((grade) => grade.name);
  const chart = element("div", "histogram");
  chart.setAttribute("role", "img");
  const told = grades.map((grade) => `${grade.label} ${percent(result.probabilities[grade.name] ?? 0)}`);
  chart.setAttribute("aria-label", `Probability of each grade: ${told.join(", ")}`);
  chart.title = told.join("\n");
  for (const grade of grades) {
    const share = result.probabilities[grade.name] ?? 0;
    const column = element("i", ramp(names, grade.name));
    column.style.height = `${share * 100}%`;
    chart.append(element("span", grade.name === result.grade ? "best" : "", null, [column, element("span", "", percent(share))]));
  }
  return chart;
}

/** One ranked document. `why` is called with the button, the panel and the index in the request. */
export function row(result, place, documents, grades, why) {
  const names = grades.map((grade) => grade.name);
  const text = element("div", "text", null, shown(documents[result.index]));
  const rank = element("span", "rank", String(place));
  if (result.error) {
    const failed = element("p", "detail", `Not scored: ${result.error.message}`);
    return element("li", "result", null, [rank, text, element("span", "number", "–"), failed]);
  }
  const item = element("li", `result ${ramp(names, result.grade)}`);
  item.dataset.index = String(result.index);
  const score = element("span", "number", result.relevance_score.toFixed(3));
  score.title = `Expected grade ${result.expected_grade.toFixed(3)}`;
  const fill = element("i");
  fill.style.width = "0";
  requestAnimationFrame(() => {
    fill.style.width = `${result.relevance_score * 100}%`;
  });
  const bar = element("div", "bar", null, [fill]);
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `Score ${result.relevance_score.toFixed(3)}`);
  const detail = element("div", "detail", null, [element("span", "grade", result.label || result.grade)]);
  if (result.label_mass !== undefined) {
    const mass = element("span", "", `${percent(result.label_mass)} on grades`);
    mass.title = "Label mass: the share of the whole vocabulary's probability that fell on the grades";
    detail.append(mass);
  }
  detail.append(element("span", "", `${result.tokens} tokens${result.truncated ? ", cut" : ""}`));
  const panel = element("div", "reason");
  panel.hidden = true;
  panel.setAttribute("aria-live", "polite");
  if (why) {
    const button = element("button", "quiet why", "why?");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", `Why? Explain document ${place}`);
    button.addEventListener("click", () => why(button, panel, result.index));
    detail.append(button);
  }
  const left = element("div", "", null, [bar, detail]);
  item.append(rank, text, score, element("div", "meter", null, [left, histogram(result, grades)]), panel);
  return item;
}

const ENDS = {
  length: "Cut at the limit of tokens.",
  cancelled: "It was cancelled.",
  shed: "The server is too busy to explain just now. Scores are not affected; ask again in a moment.",
};

/** A panel that a reason is written into as it arrives. */
export class ReasonPanel {
  constructor(panel) {
    this.panel = panel;
    this.text = element("p");
    panel.replaceChildren(this.text);
    panel.hidden = false;
    panel.classList.add("streaming");
  }

  add(delta) {
    this.text.textContent += delta;
  }

  end(done, milliseconds_) {
    this.panel.classList.remove("streaming");
    const sections = Object.entries(done.sections ?? {});
    if (sections.length) {
      const list = element("dl");
      for (const [name, text] of sections) list.append(element("dt", "", name), element("dd", "", text));
      this.panel.replaceChildren(list);
    }
    const note = ENDS[done.finish_reason] ?? `${done.tokens} tokens in ${milliseconds(milliseconds_)}, continued from the grade above.`;
    this.panel.append(element("p", "note", note));
  }

  fail(message) {
    this.panel.classList.remove("streaming");
    this.panel.append(element("p", "note", message));
  }
}
