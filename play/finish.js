"use strict";

// Finish my drawing: MADE, told the class, draws what is not on the page yet.

(async () => {
  const [BLACK, BLANK] = [1, UNKNOWN]; // a pixel of the page; 0 is white, and 3 a hole
  const TIP = [[0, 0], [1, 0], [0, 1], [1, 1]]; // pixels under the pen
  const FRAME = 50; // milliseconds for a round
  const MOST = 2; // nats of surprise that have the full colour
  const KEPT = 6; // endings that stay in sight

  const made = new Made(await unpack(WEIGHTS.made));
  const canvas = element("finish-page");
  const pens = [...element("finish-pens").querySelectorAll("[data-pen]")];
  const testImages = unpackImages();

  const pages = []; // what was drawn, after each stroke
  let page; // the same now
  let image; // the same with its ending
  let pen = BLACK;
  let asked = null; // a class, or any
  let mapped = false; // whether surprise is shown
  let judged = null; // what `judge` says of what is known
  let next = 12; // test image: the upper half of this one leaves much open
  let cursor = [14, 6];
  let last = null; // where the pen was a moment ago

  /** What is known: blank paper before the last pixel that was drawn is white. */
  function given() {
    const end = page.findLastIndex((pixel) => pixel <= BLACK);
    const seen = (pixel, i) => (pixel === BLANK && i < end ? 0 : Math.min(pixel, UNKNOWN));
    return page.map(seen);
  }

  function show() {
    element("finish-hint").hidden = image.includes(BLACK);
    const facts = given();
    paint(canvas, (i) => {
      if (facts[i] === UNKNOWN) return image[i] === BLACK ? DRAWN : OPEN;
      if (!mapped) return facts[i] ? INK : PAPER;
      const paper = mix(PAPER, INK, 0.15 * facts[i]);
      return mix(paper, DRAWN, Math.min((judged.surprise[i] ?? 0) / MOST, 1));
    });
  }

  const play = player((drawn) => {
    image = drawn;
    show();
  }, FRAME);

  /** A class, drawn from its probabilities. */
  function drawClass(posterior) {
    let u = Math.random();
    return Math.max(posterior.findIndex((p) => (u -= p) < 0), 0);
  }

  function keep() {
    const small = make("canvas", "", "digit");
    small.width = small.height = SIDE;
    paintInk(small, image);
    const before = element("finish-before");
    const isCopy = [...before.children].some((old) => old.toDataURL() === small.toDataURL());
    if (!isCopy) before.prepend(small);
    before.children[KEPT]?.remove();
  }

  function sayWhatHappened(facts, rounds) {
    const first = givenFirst(facts);
    const unknown = facts.filter((pixel) => pixel === UNKNOWN).length;
    const nats = judged.surprise.reduce((sum, value) => sum + value, 0).toFixed(1);
    const exact = first + unknown === PIXELS;
    element("finish-details").textContent =
      `Given first: ${count(first, "pixel")}, a surprise of ${nats} nats. Drawn: ${count(unknown, "pixel")}, ` +
      `in ${count(rounds, "round")}. ${exact ? "An exact draw." : "Not an exact draw."}`;

    const added = image.some((pixel, i) => facts[i] === UNKNOWN && pixel === BLACK);
    if (added) keep();
    if (!exact) say("finish-now", "It filled the hole without looking at what is below it.");
    else if (added) say("finish-now", "Black was given. Blue is its ending.");
    else say("finish-now", "You drew it all; leave the bottom empty.");
  }

  /** Probabilities of the classes, from what is known; each is shown on its key. */
  function bet(facts) {
    judged = judge(made, known(facts), givenFirst(facts));
    const posterior = judged.logPosterior.map(Math.exp);
    [...element("finish-classes").children].forEach((button, label) => {
      const percent = Math.round(100 * posterior[label]);
      button.querySelector("span").textContent = `${percent} %`;
      button.querySelector("i").style.width = `${percent}%`;
      button.setAttribute("aria-pressed", label === asked);
    });
    return posterior;
  }

  function finish() {
    const facts = given();
    const posterior = bet(facts);
    const u = Float32Array.from(facts, Math.random);
    const images = passes(made, u, facts, asked ?? drawClass(posterior));
    play(images, () => sayWhatHappened(facts, images.length));
  }

  /** Go on with a page: a blank one waits for a stroke. */
  function turnTo(next) {
    page = next;
    last = null;
    pages.push(page.slice());
    if (page.includes(BLACK)) return finish();
    bet(given());
    play([page]);
    say("finish-now", "Draw the top of a digit.");
  }

  function setMapped(on) {
    mapped = on;
    element("finish-surprise").setAttribute("aria-pressed", on);
    show();
  }

  /** Draw from the last place of the pen to this one, in pixels. */
  function stroke(to) {
    const from = last ?? to;
    const steps = Math.max(1, ...to.map((v, i) => Math.abs(v - from[i])));
    for (let step = 0; step <= steps; step++) {
      const [x, y] = mix(from, to, step / steps).map(Math.round);
      for (const [right, down] of TIP) {
        if (x + right < SIDE && y + down < SIDE) page[(y + down) * SIDE + x + right] = pen;
      }
    }
    last = to;
    image = page;
    setMapped(false);
    play([page]);
  }

  const blank = () => turnTo(new Uint8Array(PIXELS).fill(BLANK));

  /** The upper half of the next test image. */
  const half = () => turnTo(testImages[next++ % testImages.length].slice().fill(BLANK, PIXELS / 2));

  function moveCursor([right, down]) {
    cursor = [cursor[0] + right, cursor[1] + down].map((v) => Math.min(Math.max(v, 0), SIDE - 2));
    const [left, top] = cursor.map((v) => `${(100 * v) / SIDE}%`);
    Object.assign(element("finish-cursor").style, { left, top });
    announce(`row ${cursor[1] + 1}, column ${cursor[0] + 1}`);
  }

  const pixelAt = (event) => place(event, canvas).map((share) => Math.floor(share * SIDE));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(pixelAt(event));
  });
  canvas.addEventListener("pointermove", (event) => last && stroke(pixelAt(event)));
  canvas.addEventListener("lostpointercapture", () => turnTo(page));
  canvas.addEventListener("keydown", (event) => {
    if (ARROWS[event.key]) moveCursor(ARROWS[event.key]);
    else if (event.key === " ") {
      stroke(cursor);
      turnTo(page);
    } else if (event.key === "Enter") finish();
    else return;
    event.preventDefault();
  });

  for (const button of pens) {
    button.addEventListener("click", () => {
      pen = Number(button.dataset.pen);
      for (const other of pens) other.setAttribute("aria-pressed", other === button);
    });
  }
  for (let label = 0; label < 10; label++) {
    const button = make("button");
    button.append(make("b", label), make("span"), make("i"));
    button.addEventListener("click", () => {
      asked = asked === label ? null : label;
      finish();
    });
    element("finish-classes").append(button);
  }
  element("finish-surprise").addEventListener("click", () => setMapped(!mapped));
  element("finish-another").addEventListener("click", finish);
  element("finish-half").addEventListener("click", half);
  element("finish-blank").addEventListener("click", blank);
  element("finish-undo").addEventListener("click", () => turnTo(pages.splice(-2)[0])); // the last is of now

  showCost(WEIGHTS.made);
  moveCursor([0, 0]);
  half();
})();
