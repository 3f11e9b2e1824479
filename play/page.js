"use strict";

// What the toys share: painting, speaking, playing frame by frame.

const PAPER = [255, 255, 255];
const INK = [22, 24, 30];
const DRAWN = [26, 86, 196]; // ink of the network
const OPEN = [225, 232, 246]; // paper that is still to be drawn on
const QUIET = 1000; // milliseconds, at least, from one announcement to the next

const NATS_OF_A_BYTE = 8 * Math.log(2);

const stillness = matchMedia("(prefers-reduced-motion: reduce)");

const element = (id) => document.getElementById(id);

/** A number of things: 1 byte, 2 bytes. */
const count = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;
const inBytes = (nats) => `${(nats / NATS_OF_A_BYTE).toFixed(1)} bytes`;

/** What lies between two colours, or places: share 0 is the first. */
const mix = (first, second, share) => first.map((v, i) => v + (second[i] - v) * share);

/** An image in colours: colourOf(pixel) is [red, green, blue]. */
function picture(colourOf) {
  const data = new ImageData(SIDE, SIDE);
  for (let i = 0; i < PIXELS; i++) data.data.set([...colourOf(i), 255], 4 * i);
  return data;
}

/** Paint a canvas of SIDE × SIDE pixels. */
function paint(canvas, colourOf) {
  canvas.getContext("2d").putImageData(picture(colourOf), 0, 0);
}

/** Paint probabilities of black, or pixels. */
const paintInk = (canvas, image) => paint(canvas, (i) => mix(PAPER, INK, image[i]));

/** An element with text. */
function make(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

/** Show facts as a list: a name, a text and perhaps a warning. */
function showFacts(list, facts) {
  const items = facts.map(([name, text, warning]) => {
    const item = make("div");
    item.append(make("dt", name), make("dd", text, warning ? "warning" : ""));
    if (warning) item.append(make("dd", warning, "warning"));
    return item;
  });
  list.replaceChildren(...items);
}

let waiting = 0;
let spoken = -QUIET;

/** Tell those who listen to the page; of what comes too fast, only the last. */
function announce(text) {
  clearTimeout(waiting);
  const speak = () => {
    element("announcement").textContent = text;
    spoken = performance.now();
  };
  waiting = setTimeout(speak, Math.max(0, spoken + QUIET - performance.now()));
}

/** A line that says what is seen right now. */
function say(id, text) {
  element(id).textContent = text;
  announce(text);
}

/** A player of frames, which stops what it played before; without motion the last frame is seen at once. */
function player(show, milliseconds) {
  let latest;
  return async (frames, finished) => {
    latest = frames;
    let frame;
    for (frame of frames) {
      show(frame);
      if (!stillness.matches) await new Promise((next) => setTimeout(next, milliseconds));
      if (latest !== frames) return;
    }
    finished?.(frame);
  };
}

/** Where a pointer is on a canvas: across and down, each from 0 to 1. */
function place(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width;
  const y = (event.clientY - box.top) / box.height;
  return [x, y].map((share) => Math.min(Math.max(share, 0), 1 - 1e-9));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A row of the table of what eight bits cost. */
function showCost({ cost }) {
  const row = make("tr");
  const cells = [cost.model, cost.before.toFixed(2), cost.after.toFixed(2)];
  row.append(...cells.map((text) => make("td", text)));
  element("costs").append(row);
}

/** The test images of the page, one of each class first. */
function unpackImages() {
  const bytes = bytesOf(WEIGHTS.images.bits);
  const pixel = (i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  return WEIGHTS.images.labels.map((_, image) =>
    Uint8Array.from({ length: PIXELS }, (_, i) => pixel(image * PIXELS + i)),
  );
}
