// Opens reports from disk in headless Chromium and prints what is seen, as JSON.
// Arguments: the browser; the pages of a detector, a semantic and a panoptic segmenter.
const { chromium } = require("playwright-core");

async function open(browser, path, seen) {
  const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("console", (line) => line.type() === "error" && seen.errors.push(line.text()));
  page.on("requestfailed", (request) => seen.errors.push(`failed: ${request.url()}`));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) seen.errors.push(`elsewhere: ${request.url()}`);
  });
  await page.goto(`file://${path}`);
  await page.locator(".card").first().waitFor();
  return page;
}

const count = (page) => page.locator("#count").innerText();

/** The number in each cell of the matrix, and what the images say when it is clicked. */
async function clickConfusions(page) {
  const cells = page.locator("#matrix td[tabindex]"), seen = [];
  for (let i = 0; i < await cells.count(); i += 1) {
    await cells.nth(i).click();
    seen.push([await cells.nth(i).innerText(), await count(page)]);
  }
  return seen;
}

/** What the images say when each kind of error is clicked. */
async function clickKinds(page) {
  const seen = [];
  for (const bar of await page.locator("#error-bars .bar").all()) {
    await bar.locator("button").click();
    seen.push(await count(page));
  }
  return seen;
}

async function visitDetector(browser, path) {
  const seen = { errors: [] };
  const page = await open(browser, path, seen);
  seen.all = await count(page);
  await page.locator("#class-table th button", { hasText: /^AP$/ }).click();
  seen.sorted = await page.locator("#class-table tbody td:first-child").allInnerTexts();
  await page.locator("#class-table tbody tr").first().click();
  await page.locator("#filter-threshold").fill("0.6");
  await page.locator("#filter-kind").selectOption("bkg");
  await page.locator("#filter-size").selectOption("2");
  await page.waitForFunction(() => document.querySelector("#count").innerText.includes(" in "));
  await page.waitForTimeout(150); // sliders wait until they rest
  seen.filtered = await count(page);
  seen.cards = await page.locator(".card").count();
  await page.locator("#reset").click();
  seen.reset = await count(page);
  await page.locator("#cards").scrollIntoViewIfNeeded();
  await page.locator(".card svg rect").first().waitFor({ state: "attached" });
  seen.rects = [await page.locator(".card svg rect").count()];
  await page.locator("#filter-boxes").uncheck();
  // The cards are drawn anew in the next frame.
  await page.locator(".card svg rect").first().waitFor({ state: "detached", timeout: 5000 });
  await page.locator(".card svg path.mask").first().waitFor({ state: "attached" });
  seen.rects.push(await page.locator(".card svg rect").count());
  seen.masks = await page.locator(".card svg path.mask").count();
  await page.locator(".card").first().click();
  await page.locator("dialog[open] .panels svg").nth(1).waitFor();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Escape");
  seen.confused = await clickConfusions(page);
  seen.kinds = await clickKinds(page);
  await page.locator("#filter-class").fill("no such class");
  seen.unknown = await page.locator("#filter-class").evaluate((node) => node.matches(":invalid"));
  seen.rates = await page.locator(".chart", { hasText: "Learning rate" }).locator("text.tick").allTextContents();
  await page.getByRole("button", { name: "Boxes", exact: true }).click();
  seen.confused.push(...await clickConfusions(page));
  seen.kinds_of_boxes = await page.locator("#error-bars button").count();
  await page.locator("#reset").click();
  seen.second = await page.locator(".card .name span").nth(2).innerText();
  await page.locator(".card").first().click();
  await page.keyboard.press("ArrowRight");
  seen.viewed = await page.locator("dialog[open] h3").innerText();
  await page.keyboard.press("Escape");
  seen.of_boxes = await page.getByRole("button", { name: "Boxes", exact: true }).getAttribute("aria-pressed");
  return seen;
}

async function visitSegmenter(browser, path) {
  const seen = { errors: [] };
  const page = await open(browser, path, seen);
  await page.locator("#matrix tbody tr").nth(0).locator("td").nth(1).click();
  seen.pair = await page.locator(".filters").innerText();
  seen.cards = await page.locator(".card").count();
  await page.locator("#filter-layer").selectOption("truth");
  await page.locator(".card img.over").first().waitFor();
  await page.locator(".card").first().click();
  await page.locator("dialog[open] .panels img.over").nth(2).waitFor();
  seen.panels = await page.locator("dialog[open] .panels figure").count();
  return seen;
}

async function visitPanoptic(browser, path) {
  const seen = { errors: [] };
  const page = await open(browser, path, seen);
  await page.locator("#filter-kind").selectOption("cls");
  seen.filtered = await count(page);
  await page.locator(".card").first().click();
  await page.locator("dialog[open] .panels path.mask").first().waitFor({ state: "attached" });
  return seen;
}

async function main([executablePath, detector, segmenter, panoptic]) {
  const browser = await chromium.launch({ executablePath, chromiumSandbox: false });
  const seen = [
    await visitDetector(browser, detector),
    await visitSegmenter(browser, segmenter),
    await visitPanoptic(browser, panoptic),
  ];
  await browser.close();
  console.log(JSON.stringify(seen));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
