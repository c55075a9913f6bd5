// Pictures of the page as its files are now, without building: node shot.js FOLDER

import { readFileSync } from "node:fs";

import { browse, open, serve } from "./server.js";

const folder = process.argv[2] ?? ".";
const server = await serve();
const browser = await browse();
const looks = {
  light: { viewport: { width: 1280, height: 900 } },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  narrow: { viewport: { width: 390, height: 844 } },
};

/** Answers with the files of the source tree in place of those in the program. */
async function fresh(route) {
  const name = new URL(route.request().url()).pathname.replace("/playground/", "").replace(/^\/$/, "index.html");
  const body = readFileSync(new URL(`../../src/server/playground/${name}`, import.meta.url));
  await route.fulfill({ response: await route.fetch(), body });
}

for (const [name, options] of Object.entries(looks)) {
  const { page, complaints, close } = await open(browser, server.origin, options);
  await page.route(/\/(playground\/.*)?$/, fresh);
  await page.reload();
  await page.waitForSelector('#state[data-state="ready"]');
  if (name === "light") await page.screenshot({ path: `${folder}/empty.png` });
  await page.keyboard.press("Control+Enter");
  await page.locator(".why").first().click();
  await page.locator(".reason .note").first().waitFor();
  await page.waitForTimeout(600);
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: name !== "light" });
  if (complaints.length) console.error(name, complaints);
  await close();
}
await browser.close();
await server.stop();
