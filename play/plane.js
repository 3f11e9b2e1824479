"use strict";

// The map: a code of two numbers under the pointer, and what it decodes to.

(async () => {
  const EDGE = 2.4; // the map is drawn from −EDGE to EDGE
  const GRID = 17; // digits across and down
  const FAINT = 0.3; // their ink
  const STEP = 0.1; // of an arrow key
  const ASIDE = { 4: [0.45, 0], 5: [-0.5, 0], 9: [-0.4, 0.2] }; // numbers that would hide another
  const TOUR = [0, 6, 2, 3, 5, 8, 1, 7, 9, 4]; // of the path, from each class to a near one
  const LEG = 1800; // milliseconds from one class to the next
  const CATCH = 0.2; // a touch so near a number is at its spot

  const { medians } = WEIGHTS.plane;
  const decoder = new Decoder(await unpack(WEIGHTS.plane));
  const [map, path] = [element("plane-map"), element("plane-path")];
  let code = medians[TOUR[0]];
  let started = null; // when the path began, if it is followed

  /** Where a code is on the map, each from 0 to 1. */
  const across = (z) => (z + EDGE) / (2 * EDGE);
  const put = (mark, z) => {
    mark.style.left = `${100 * across(z[0])}%`;
    mark.style.top = `${100 * across(-z[1])}%`;
  };

  function nearestClass(z) {
    const distances = medians.map((median) => Math.hypot(median[0] - z[0], median[1] - z[1]));
    return distances.indexOf(Math.min(...distances));
  }

  function show(z) {
    code = z;
    paintInk(element("plane-digit"), decoder.probabilities(z));
    put(element("plane-marker"), z);
    const [first, second] = z.map((value) => value.toFixed(2).replace("-", "−"));
    element("plane-now").textContent =
      `The two numbers: ${first} and ${second}. Nearest circle: ${nearestClass(z)}.`;
  }

  function follow(now) {
    if (started === null) return;
    const legs = Math.max(now - started, 0) / LEG; // a frame may be older than the touch
    const from = Math.floor(legs) % TOUR.length;
    const to = (from + 1) % TOUR.length;
    const share = (1 - Math.cos(Math.PI * (legs % 1))) / 2; // slow at both ends
    show(mix(medians[TOUR[from]], medians[TOUR[to]], share));
    requestAnimationFrame(follow);
  }

  function setPath(on) {
    started = on ? performance.now() : null;
    path.textContent = on ? "Pause" : "Play";
    if (on) requestAnimationFrame(follow);
  }

  function go(z) {
    if (started !== null) setPath(false);
    show(z.map((value) => Math.min(Math.max(value, -EDGE), EDGE)));
    announce(element("plane-now").textContent);
  }

  show(code);
  performance.mark("first picture");
  const context = map.getContext("2d");
  const middle = (cell) => ((cell + 0.5) / GRID) * 2 * EDGE - EDGE;
  for (let row = 0; row < GRID; row++) {
    for (let column = 0; column < GRID; column++) {
      const p = decoder.probabilities([middle(column), -middle(row)]);
      const digit = picture((i) => mix(PAPER, INK, FAINT * p[i]));
      context.putImageData(digit, column * SIDE, row * SIDE);
    }
  }
  [context.strokeStyle, context.lineWidth] = ["#1a56c4", 3];
  context.beginPath();
  const spots = medians.map((median, label) => add(median, ASIDE[label] ?? [0, 0]));
  medians.forEach((median, label) => {
    const [spot, mark] = [spots[label], make("span", label)];
    context.moveTo(across(median[0]) * map.width, across(-median[1]) * map.height);
    context.lineTo(across(spot[0]) * map.width, across(-spot[1]) * map.height);
    put(mark, spot);
    element("plane-labels").append(mark);
  });
  context.stroke();

  for (const kind of ["pointerdown", "pointermove"]) {
    map.parentElement.addEventListener(kind, (event) => {
      const [x, y] = place(event, map);
      const z = [(2 * x - 1) * EDGE, (1 - 2 * y) * EDGE];
      const touched = spots.findIndex((s) => Math.hypot(s[0] - z[0], s[1] - z[1]) < CATCH);
      go(kind === "pointerdown" && touched >= 0 ? medians[touched] : z);
    });
  }
  map.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    go([code[0] + STEP * arrow[0], code[1] - STEP * arrow[1]]);
  });
  path.addEventListener("click", () => setPath(started === null));

  showCost(WEIGHTS.plane);
  setPath(!stillness.matches);
})();
