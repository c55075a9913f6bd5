// A real server on free ports, and a browser without a window.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

const BINARY = process.env.VERDICT_BIN ?? fileURLToPath(new URL("../../target/release/verdict", import.meta.url));
const CHROMIUM = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** Starts the server; its origin, and how to stop it. */
export async function serve(settings = {}) {
  const env = { PATH: process.env.PATH, VERDICT_PORT: "0", VERDICT_ADMIN_PORT: "0", ...settings };
  const server = spawn(BINARY, ["serve"], { env, stdio: ["ignore", "ignore", "pipe"] });
  const lines = [];
  let address;
  for await (const line of createInterface({ input: server.stderr })) {
    lines.push(line);
    address ??= /address=(\S+)/.exec(line)?.[1];
    if (/ ready /.test(line)) break;
  }
  if (!address) throw new Error(`the server did not start:\n${lines.join("\n")}`);
  server.stderr.resume();
  const ended = new Promise((resolve) => server.once("exit", resolve));
  return {
    origin: `http://${address}`,
    async stop() {
      server.kill("SIGTERM");
      await ended;
    },
  };
}

/** Starts the browser. */
export async function browse() {
  const executablePath = CHROMIUM.find((path) => path && existsSync(path));
  const args = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ];
  return chromium.launch({ executablePath, headless: true, args });
}

/** A page that notes what it complains of and whom it asks. */
export async function open(browser, origin, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1240, height: 900 }, ...options });
  const page = await context.newPage();
  const complaints = [];
  const asked = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("dialog", (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => asked.push({ url: request.url(), body: request.postData() }));
  await page.goto(`${origin}/`);
  await page.waitForSelector('#state[data-state="ready"], #state[data-state="waiting"]');
  return { page, complaints, asked, close: () => context.close() };
}
