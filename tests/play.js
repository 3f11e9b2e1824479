"use strict";

// What tests/test_play.py asks the page, in the page.

const models = {};

/** Load all models; returns test images, labels, and the medians of the plane. */
async function loadModels() {
  models.made = new Made(await unpack(WEIGHTS.made));
  models.correct = new Made(await unpack(WEIGHTS.correct));
  models.leaky = new Made(await unpack(WEIGHTS.leaky), true);
  models.decoder = new Decoder(await unpack(WEIGHTS.plane));
  return [unpackImages().map((x) => [...x]), WEIGHTS.images.labels, WEIGHTS.plane.medians];
}

function drawn([name, u, given, label]) {
  return [...passes(models[name], u, given, label).at(-1)];
}

function judged([image, n]) {
  const { logPosterior, surprise } = judge(models.made, image, n);
  return [logPosterior, [...surprise]];
}

/** A file, what comes out of it, and whether the state is back where it began. */
function coded([image, probabilities]) {
  let state = write(image, probabilities);
  const file = toHex(state);
  const found = [];
  for (const p of probabilities) {
    let pixel;
    [state, pixel] = pop(state, p);
    found.push(pixel);
  }
  return [file, found, state === SLOTS];
}

/** What a reader finds in the file of an image. */
function readBack([name, image]) {
  const network = models[name];
  return [...[...read(write(image, network.probabilities(image)), network)].at(-1)];
}

/** Milliseconds that handlers take: they compute, and paint, before they return. */
function answers(act) {
  const start = performance.now();
  act();
  return performance.now() - start;
}

function moveOverPlane() {
  const map = element("plane-map");
  const { left, top, width } = map.getBoundingClientRect();
  const [x, y] = [left + Math.random() * width, top + Math.random() * width];
  const at = { clientX: x, clientY: y, bubbles: true };
  return answers(() => map.dispatchEvent(new PointerEvent("pointermove", at)));
}

/** All that can be seen of the page. */
function state() {
  const canvases = [...document.querySelectorAll("canvas")].map((e) => e.toDataURL());
  const buttons = [...document.querySelectorAll("button")].map((e) => e.ariaPressed);
  return document.querySelector("article").innerText + canvases + buttons;
}

/** The endings that are in sight, the latest first. */
function endings() {
  return [...element("finish-before").children].map((small) => small.toDataURL());
}

const described = (elements) => elements.map((e) => e.outerHTML.slice(0, 80));

function smallTargets() {
  const targets = [...document.querySelectorAll("a, button, input, summary, canvas[tabindex]")];
  const least = (e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height);
  return described(targets.filter((e) => least(e) < 44));
}

function nameless() {
  const all = [...document.querySelectorAll("canvas, button, input, img")];
  const name = (e) => e.ariaLabel || e.alt || e.innerText || e.labels?.length;
  return described(all.filter((e) => !e.closest("[aria-hidden]") && !name(e)));
}

/** Texts whose contrast to what is behind them is below 4.5. */
function faint() {
  const numbers = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (e) => {
    const back = numbers(getComputedStyle(e).backgroundColor);
    return back[3] === 0 ? behind(e.parentElement) : back;
  };
  const written = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const contrast = (e) => {
    const two = [light(numbers(getComputedStyle(e).color)), light(behind(e))];
    return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) => written(e) && e.offsetParent);
  return described(texts.filter((e) => contrast(e) < 4.5));
}

const heard = []; // when something was announced

function listen() {
  const observer = new MutationObserver(() => heard.push(performance.now()));
  observer.observe(element("announcement"), { childList: true });
}
