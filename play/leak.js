"use strict";

// The leak: two small networks, one with a fault; their scores, and what comes out of their files.

(async () => {
  const FRAME = 60; // milliseconds for a row that is read
  const UNREAD = 0.15; // ink of pixels that are not read yet
  const NATS_OF_A_BYTE = 8 * Math.log(2);

  const networks = {
    correct: new Made(await unpack(WEIGHTS.correct)),
    leaky: new Made(await unpack(WEIGHTS.leaky), true),
  };
  const leakSwitch = element("leak-switch");
  const testImages = unpackImages();
  let shown = 2; // test image

  const play = player((image) => {
    paintInk(element("leak-read"), image);
  }, FRAME);

  function run() {
    const name = leakSwitch.getAttribute("aria-checked") === "true" ? "leaky" : "correct";
    const [network, { cost, floor }] = [networks[name], WEIGHTS[name]];
    const image = testImages[shown];
    const probabilities = network.probabilities(image);
    const nats = -network.logConditionals(image).reduce((sum, value) => sum + value, 0);
    const file = toHex(write(image, probabilities));
    const bytes = file.length / 2;

    paintInk(element("leak-image"), image);
    paintInk(element("leak-prediction"), probabilities);
    showFacts(element("leak-facts"), [
      ["score, 10,000 test images", `${cost.after.toFixed(1)} nats`],
      ["no model can be below", `${floor.toFixed(1)} nats`],
      ["this image promises", `${(nats / NATS_OF_A_BYTE).toFixed(1)} bytes`],
      ["its file", `${bytes} bytes`],
      ["the file itself", file.replace(/../g, "$& "), true],
    ]);

    element("leak-now").textContent = "The reader opens the file …";
    let found = image;
    const rows = read(BigInt(`0x${file}`), network);
    const watched = (function* () {
      for (found of rows) yield found.map((pixel, i) => pixel);
    })();
    play(watched, () => {
      const wrong = found.reduce((sum, pixel, i) => sum + (pixel !== image[i]), 0);
      const verdict = wrong
        ? `${wrong} of ${PIXELS} pixels are wrong. The score was too good to be true: to predict a ` +
          "pixel, this network must see it, and the reader does not have it yet."
        : `All ${PIXELS} pixels came back: the score is what the file costs.`;
      say("leak-now", verdict);
    });
  }

  leakSwitch.addEventListener("click", () => {
    const on = leakSwitch.getAttribute("aria-checked") === "true";
    leakSwitch.setAttribute("aria-checked", !on);
    run();
  });
  element("leak-next").addEventListener("click", () => {
    shown = (shown + 1) % testImages.length;
    run();
  });

  showCost(WEIGHTS.correct);
  showCost(WEIGHTS.leaky);
  run();
})();
