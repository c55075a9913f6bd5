// Shows /openapi.json to people. What it says is only ever set as text.

function element(name, classes = "", text = null, children = []) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

/** Text in which `this` is code, as paragraphs. */
function prose(text, classes) {
  return (text ?? "").split("\n\n").filter(Boolean).map((paragraph) => {
    const pieces = paragraph.split("`").map((piece, place) => (place % 2 ? element("code", "", piece) : piece));
    return element("p", classes, null, pieces);
  });
}

const anchor = (name) => name.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").toLowerCase();
const named = (reference) => reference.split("/").pop();

function link(name) {
  const made = element("a", "", name);
  made.href = `#schema-${anchor(name)}`;
  return made;
}

/** A schema in a few words; references lead to their own cards. */
function kind(schema) {
  if (schema.$ref) return [link(named(schema.$ref))];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices && !schema.type) return choices.flatMap((one, place) => (place ? [" or ", ...kind(one)] : kind(one)));
  const types = [schema.type ?? "any"].flat().filter((type) => type !== "null");
  if (types[0] === "array" && schema.items) return ["list of ", ...kind(schema.items)];
  if (types[0] === "object" && schema.additionalProperties?.type) return ["object of ", ...kind(schema.additionalProperties)];
  return [types.join(" or ") || "null"];
}

function limits(schema) {
  const said = [];
  if (schema.enum) said.push(`one of ${schema.enum.filter((value) => value !== null).join(", ")}`);
  if (schema.minimum !== undefined && schema.maximum !== undefined) said.push(`${schema.minimum} to ${schema.maximum}`);
  else if (schema.minimum !== undefined) said.push(`at least ${schema.minimum}`);
  if (schema.minItems) said.push(`at least ${schema.minItems} item`);
  if (schema.maxLength) said.push(`at most ${schema.maxLength} characters`);
  if (schema.default !== undefined) said.push(`default ${schema.default}`);
  return said.join("; ");
}

function rows(entries) {
  const list = element("dl", "rows");
  for (const { name, schema, description, required, place } of entries) {
    const term = element("dt", "", null, [element("code", "", name)]);
    if (required) term.append(" ", element("span", "need", "required"));
    term.append(element("small", "", place ? `${place}, ` : "", kind(schema)));
    const said = element("dd", "", null, prose(description ?? schema.description));
    const more = limits(schema);
    if (more) said.append(element("p", "hint", more));
    list.append(element("div", "", null, [term, said]));
  }
  return list;
}

function properties(schema) {
  const required = schema.required ?? [];
  return Object.entries(schema.properties ?? {}).map(([name, property]) => ({
    name, schema: property, required: required.includes(name),
  }));
}

function curl(method, path, example) {
  if (!example) return `curl -s '${location.origin}${path}'`;
  const body = JSON.stringify(example, null, 2).replaceAll("'", "'\\''");
  return `curl -s '${location.origin}${path}' \\\n  -H 'content-type: application/json' \\\n  -d '${body}'`;
}

function operation(path, method, told) {
  const title = element("h3", "", null, [element("span", "method", method.toUpperCase()), path]);
  const card = element("section", "operation", null, [title, element("p", "summary", told.summary ?? "")]);
  card.id = anchor(`${method} ${path}`);
  card.append(...prose(told.description, "about"));
  if (told.parameters?.length) {
    card.append(element("h4", "", "Parameters"), rows(told.parameters.map((one) => ({ ...one, place: one.in }))));
  }
  const content = told.requestBody?.content?.["application/json"];
  if (content) {
    card.append(element("h4", "", "Body"), element("p", "", null, kind(content.schema)));
  }
  card.append(element("h4", "", "Example"), element("pre", "", curl(method, path, content?.example)));
  const answers = Object.entries(told.responses).map(([status, response]) => ({
    name: status,
    schema: Object.values(response.content ?? {})[0]?.schema ?? {},
    description: response.description,
  }));
  card.append(element("h4", "", "Answers"), rows(answers));
  return card;
}

function schemaCard(name, schema) {
  const card = element("section", "schema-card", null, [element("h3", "", name), ...prose(schema.description, "about")]);
  card.id = `schema-${anchor(name)}`;
  const entries = properties(schema);
  if (entries.length) card.append(rows(entries));
  else card.append(element("p", "", null, kind(schema)), element("p", "hint", limits(schema)));
  return card;
}

function contents(title, entries) {
  const items = entries.map(([text, target]) => {
    const made = element("a", "", text);
    made.href = `#${target}`;
    return element("li", "", null, [made]);
  });
  return [element("h2", "", title), element("ul", "", null, items)];
}

function show(api) {
  const main = document.getElementById("reference");
  const side = document.getElementById("contents");
  main.replaceChildren(element("h1", "", "API reference"), ...prose(api.info.description, "lead"));
  side.replaceChildren();
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, told]) => ({ path, method, told })),
  );
  for (const tag of api.tags) {
    const own = operations.filter(({ told }) => told.tags?.includes(tag.name));
    main.append(element("h2", "", tag.name), ...prose(tag.description, "about"));
    main.append(...own.map(({ path, method, told }) => operation(path, method, told)));
    side.append(...contents(tag.name, own.map(({ path, method }) => [`${method.toUpperCase()} ${path}`, anchor(`${method} ${path}`)])));
  }
  const schemas = Object.entries(api.components.schemas);
  main.append(element("h2", "", "Schemas"), ...schemas.map(([name, schema]) => schemaCard(name, schema)));
  side.append(...contents("Schemas", schemas.map(([name]) => [name, `schema-${anchor(name)}`])));
  document.getElementById("version").textContent = `API reference · version ${api.info.version}`;
  // The targets were not there when the page was opened.
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

async function start() {
  try {
    const response = await fetch("/openapi.json");
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(await response.json());
  } catch (error) {
    document.getElementById("reference").replaceChildren(element("p", "", `The description could not be loaded: ${error.message}`));
  }
}

start();
