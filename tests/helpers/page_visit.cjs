// Visits the page of `vitadapter web` in headless Chromium and prints what is seen, as JSON.
// Arguments: the address, the browser, a photo, a damaged file, a folder for downloads.
const { chromium } = require("playwright-core");

async function main([address, executablePath, photo, damaged, folder]) {
  const browser = await chromium.launch({ executablePath, chromiumSandbox: false });
  const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
  const seen = { elsewhere: [], errors: [], words: [] };
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(address) && !/^(blob|data):/.test(url)) seen.elsewhere.push(url);
  });
  page.on("pageerror", (error) => seen.errors.push(error.message));

  const words = page.locator("#words textarea");
  const changed = async (before) => {
    await page.waitForFunction(
      // While the page is still being drawn, it is not there.
      (old) => (document.querySelector("#words textarea")?.value ?? old) !== old, before
    );
    seen.words.push(await words.inputValue());
  };
  const threshold = async (value) => {
    const before = await words.inputValue();
    await page.locator("#threshold input[type=number]").fill(value);
    await page.locator("#threshold input[type=number]").press("Enter");
    await changed(before);
  };

  await page.goto(address);
  await page.locator("#upload input[type=file]").waitFor({ state: "attached" });
  await page.setInputFiles("#upload input[type=file]", photo);
  await changed("");
  await threshold("0");
  const pictureOf = () => page.locator("#picture img").getAttribute("src");
  const drawn = await pictureOf();
  await page.getByLabel("Boxes", { exact: true }).uncheck();
  await page.waitForFunction(
    (old) => document.querySelector("#picture img").getAttribute("src") !== old, drawn
  );
  await page.getByLabel("Boxes", { exact: true }).check();
  await page.waitForFunction(
    (old) => document.querySelector("#picture img").getAttribute("src") === old, drawn
  );
  await page.locator("#picture img").evaluate((image) => image.decode());
  await page.screenshot({ path: `${folder}/page.png` });
  for (const name of ["Download the picture", "Download the results (JSON)"]) {
    const download = page.waitForEvent("download");
    await page.getByRole("button", { name }).click();
    await (await download).saveAs(`${folder}/${(await download).suggestedFilename()}`);
  }
  await threshold("1");
  await page.locator("#upload button[aria-label='Remove Image']").click();
  await changed("nothing");
  await page.setInputFiles("#upload input[type=file]", damaged);
  seen.message = await page.locator(".toast-body").innerText();
  await browser.close();
  console.log(JSON.stringify(seen));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
