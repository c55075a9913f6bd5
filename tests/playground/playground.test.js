// The playground in a real browser, against the real server and the bundled model.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, describe, test } from "node:test";

import { browse, open, serve } from "./server.js";

let browser;
let server;

before(async () => {
  [server, browser] = await Promise.all([serve(), browse()]);
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

const explained = (asked) => asked.filter(({ url }) => url.includes("explain=true"));

async function scored(page) {
  await page.keyboard.press("Control+Enter");
  await page.waitForSelector("#results .result");
}

async function fill(page, query, documents) {
  await page.fill("#query", query);
  await page.fill("#documents", documents.join("\n"));
}

describe("scoring", () => {
  test("Ctrl+Enter ranks the documents before any reason is asked for", async () => {
    const { page, complaints, asked, close } = await open(browser, server.origin);
    assert.match(await page.textContent("#served"), /verdict-mini/);
    await page.focus("#query");
    await scored(page);
    const numbers = (await page.locator(".number").allTextContents()).map(Number);
    assert.ok(numbers.length >= 5);
    assert.deepEqual(numbers, [...numbers].sort((one, other) => other - one));
    assert.ok(numbers.every((number) => number >= 0 && number <= 1));
    assert.match(await page.locator(".result .text").first().textContent(), /Women's waterproof hiking boots/);
    assert.equal(await page.locator(".result").first().locator(".histogram > span").count(), 4);
    assert.match(await page.textContent("#facts"), /compute .*ms.*shared \d+.*cached \d+/);
    assert.match(await page.locator(".result").first().locator(".detail").textContent(), /% on grades/);
    assert.equal(explained(asked).length, 0);
    assert.equal(await page.locator(".reason:visible").count(), 0);
    assert.deepEqual(complaints, []);
    assert.ok(asked.every(({ url }) => url.startsWith(`${server.origin}/`)), "it asks nobody else");
    await close();
  });

  test("why? streams the explanation of one document under it", async () => {
    const { page, complaints, asked, close } = await open(browser, server.origin);
    await scored(page);
    const first = page.locator(".result").first();
    await page.evaluate(() => {
      window.lengths = [];
      const panel = document.querySelector(".reason");
      new MutationObserver(() => window.lengths.push(panel.textContent.length)).observe(panel, {
        childList: true, subtree: true, characterData: true,
      });
    });
    await first.locator(".why").click();
    await first.locator(".reason .note").waitFor();
    const lengths = await page.evaluate(() => window.lengths);
    assert.ok(lengths.filter((length, place) => length > (lengths[place - 1] ?? 0)).length >= 4, `it grows: ${lengths}`);
    assert.match(await first.locator(".reason").textContent(), /intent.*match.*gaps.*verdict/s);
    assert.equal(await page.locator(".reason:visible").count(), 1);
    const [request] = explained(asked);
    assert.deepEqual(JSON.parse(request.body).explain_indices, [0]);
    await first.locator(".why").click();
    assert.equal(await first.locator(".reason").isVisible(), false);
    await first.locator(".why").click();
    assert.equal(await first.locator(".reason").isVisible(), true);
    assert.equal(explained(asked).length, 1, "an explanation is asked for once");
    assert.deepEqual(complaints, []);
    await close();
  });

  test("markup in documents stays text", async () => {
    const { page, complaints, close } = await open(browser, server.origin);
    const markup = "<img src=x onerror=alert(1)><script>alert(2)</script> boots";
    await fill(page, "<b>boots</b>", [markup, `{"title": ${JSON.stringify(markup)}, "text": "</li>"}`]);
    await scored(page);
    const texts = await page.locator(".result .text").allTextContents();
    assert.equal(texts.filter((text) => text.includes(markup)).length, 2);
    assert.equal(await page.locator(".result img, .result script").count(), 0);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("the snippets are the same request", async () => {
    const { page, close } = await open(browser, server.origin);
    await fill(page, "it's “quoted” \\ $HOME `x`", ["a 'b' \"c\"", "{\"title\": \"t\", \"text\": \"true\", \"new\": true, \"old\": false, \"note\": null, \"tags\": [], \"sizes\": [1, {}]}", "émoji 🥾"]);
    await scored(page);
    const numbers = await page.locator(".number").allTextContents();
    const curl = await page.textContent("#snippet-text");
    const answer = JSON.parse(execFileSync("bash", ["-c", curl], { encoding: "utf8" }));
    assert.deepEqual(answer.results.map((result) => result.relevance_score.toFixed(3)), numbers);
    await page.click("#tab-python");
    const python = await page.textContent("#snippet-text");
    const printed = execFileSync("python3", ["-c", python], { encoding: "utf8" });
    assert.deepEqual(printed.trim().split("\n").map((line) => line.split(" ")[0]), numbers);
    await close();
  });
});

describe("what goes wrong is told in words", () => {
  const problem = async (page) => {
    await page.locator("#problem").waitFor();
    return page.textContent("#problem");
  };

  test("nothing to score, and a document that the server refuses", async () => {
    const { page, close } = await open(browser, server.origin);
    await fill(page, "", ["a"]);
    await page.click("#score");
    assert.match(await problem(page), /There is no query/);
    assert.equal(await page.evaluate(() => document.activeElement.id), "query");
    await fill(page, "q", []);
    await page.click("#score");
    assert.match(await problem(page), /There are no documents/);
    await fill(page, "q", ["a", '{"id": "only"}']);
    await page.click("#score");
    await page.getByText("Document 2: is empty").waitFor();
    assert.equal(await page.getAttribute("#documents", "aria-invalid"), "true");
    await close();
  });

  test("a server that asks for a key", async () => {
    const closed = await serve({ VERDICT_API_KEYS: "browser-key" });
    const { page, close } = await open(browser, closed.origin);
    await page.getByText("an API key is needed").waitFor();
    await page.click("#score");
    assert.match(await problem(page), /This server asks for an API key/);
    assert.equal(await page.evaluate(() => document.activeElement.id), "key");
    await page.keyboard.type("wrong-key");
    await page.keyboard.press("Control+Enter");
    await page.getByText("no such API key").waitFor();
    await page.fill("#key", "browser-key");
    await scored(page);
    await page.getByText("verdict-mini").waitFor();
    await page.locator(".why").first().click();
    await page.locator(".reason .note").first().waitFor();
    const curl = await page.textContent("#snippet-text");
    assert.ok(curl.includes("Bearer $VERDICT_API_KEY") && !curl.includes("browser-key"), curl);
    await close();
    await closed.stop();
  });

  test("a server that is gone", async () => {
    const { page, close } = await open(browser, server.origin);
    await page.route("**/score", (route) => route.abort());
    await page.click("#score");
    assert.match(await problem(page), /The server cannot be reached/);
    await page.unroute("**/score");
    await page.getByRole("button", { name: "Try again" }).click();
    await page.waitForSelector("#results .result");
    assert.equal(await page.locator("#problem").isVisible(), false);
    await close();
  });

  test("a busy server, with when to come back", async () => {
    const { page, close } = await open(browser, server.origin);
    const body = JSON.stringify({ status: 429, code: "overloaded", detail: "the queue is full", retryable: true });
    await page.route("**/score", (route) =>
      route.fulfill({ status: 429, contentType: "application/problem+json", headers: { "retry-after": "1" }, body }),
    );
    await page.click("#score");
    assert.match(await problem(page), /The server is busy.*the queue is full.*Try again in 1 s/s);
    await page.unroute("**/score");
    await page.getByRole("button", { name: "Try again", exact: true }).click();
    await page.waitForSelector("#results .result");
    await close();
  });

  test("an explanation that breaks off leaves the scores", async () => {
    const { page, close } = await open(browser, server.origin);
    await scored(page);
    await page.route("**/score?explain=true", (route) => route.abort());
    await page.locator(".why").first().click();
    await page.getByText("The server cannot be reached. Is it still running").waitFor();
    assert.ok((await page.locator(".result").count()) >= 5);
    await close();
  });
});

describe("the API reference", () => {
  test("shows every operation, and leads to the schemas", async () => {
    const { page, complaints, asked, close } = await open(browser, server.origin, { viewport: { width: 360, height: 740 } });
    await page.goto(`${server.origin}/docs`);
    await page.locator(".operation").first().waitFor();
    const titles = await page.locator(".operation h3").allTextContents();
    assert.equal(titles[0], "POST/score");
    assert.ok(titles.includes("GET/info"));
    for (const path of ["/rerank", "/v1/rerank", "/v2/rerank", "/predict", "/v1/score", "/v1/retrieval/{model}/reranking"]) {
      assert.ok(titles.includes(`POST${path}`), path);
    }
    assert.match(await page.locator("#post-score").textContent(), /429.*overloaded/s);
    await page.locator("#post-score").getByRole("link", { name: "ScoreRequest" }).click();
    assert.match(await page.locator("#schema-scorerequest").textContent(), /deadline_ms.*integer.*at least 1/s);
    const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(wide <= room, `${wide} of ${room}`);
    assert.deepEqual(complaints, []);
    assert.ok(asked.every(({ url }) => url.startsWith(`${server.origin}/`)));
    await close();
  });
});

describe("looks", () => {
  test("narrow screens need no sideways scrolling", async () => {
    const { page, complaints, close } = await open(browser, server.origin, { viewport: { width: 360, height: 740 } });
    await scored(page);
    await page.locator(".why").first().click();
    await page.locator(".reason .note").first().waitFor();
    const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(wide <= room, `${wide} of ${room}`);
    assert.deepEqual(complaints, []);
    await close();
  });

  test("it is dark where the system is", async () => {
    const light = await open(browser, server.origin);
    const dark = await open(browser, server.origin, { colorScheme: "dark" });
    const paper = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.notEqual(await paper(light.page), await paper(dark.page));
    assert.deepEqual(dark.complaints, []);
    await light.close();
    await dark.close();
  });

  test("everything can be reached with the keyboard, in reading order", async () => {
    const { page, close } = await open(browser, server.origin);
    await scored(page);
    await page.focus("#query");
    const order = [];
    for (let step = 0; step < 5; step += 1) {
      await page.keyboard.press("Tab");
      order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.className));
    }
    assert.deepEqual(order.slice(0, 4), ["documents", "instruction", "score", "quiet why"]);
    await close();
  });
});
