// What is wrong with how the page looks, and what it shows.
const faults = [];
const wide = document.documentElement;
if (wide.scrollWidth > innerWidth) faults.push(`it is ${wide.scrollWidth} wide in a window of ${innerWidth}`);
for (const element of document.querySelectorAll("main *")) {
  const box = element.getBoundingClientRect();
  // Heads of tables whose rows stand one below the other are there for those who listen only.
  const head = element.closest("thead");
  const isHidden = head && getComputedStyle(head).position === "absolute";
  if (box.width > 1 && !isHidden && box.right > innerWidth + 1) {
    faults.push(`${element.tagName} ends at ${box.right}: ${element.textContent.slice(0, 40)}`);
  }
}

const numbers = (color) => color.match(/[\d.]+/g).map(Number);
const light = ([red, green, blue]) => {
  const [r, g, b] = [red, green, blue].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const color = numbers(getComputedStyle(element).backgroundColor);
    if (color[3] !== 0) return color;
  }
  return [255, 255, 255];
};
let texts = 0;
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || element.closest("[hidden],script,svg,thead") || !element.getClientRects().length) continue;
  texts += 1;
  const [one, other] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${element.textContent.slice(0, 40)}`);
}

const bars = [...document.querySelectorAll("svg.bar")].map((bar) => ({
  says: bar.getAttribute("aria-label"),
  height: bar.getBoundingClientRect().height,
  filled: bar.querySelector("rect").getBoundingClientRect().width / bar.getBoundingClientRect().width,
}));
const elsewhere = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith(location.origin) && !name.startsWith("data:"));
return {
  faults,
  texts,
  bars,
  elsewhere,
  title: document.title,
  scripts: document.scripts.length,
  background: getComputedStyle(document.body).backgroundColor,
  headings: [...document.querySelectorAll("h1,h2")].map((heading) => heading.textContent),
  finding: document.querySelector(".finding").innerText,
  applications: [...document.querySelectorAll("td[data-of=Application]")].map((cell) => cell.innerText),
};
