"use strict";

// The leak: two small networks, one with a fault; their scores, and what comes out of their files.

(async () => {
  const FRAME = 60; // milliseconds for a row that is read
  const NATS_OF_A_BYTE = 8 * Math.log(2);
  const RIGHT = `All ${PIXELS} pixels came back. The score is what a file costs.`;
  const FAULT =
    "To predict a pixel, this network has to see it, and the reader does not have it yet. " +
    "Its score was too good to be true, and the file shows it.";
  const FLOOR = "The black floor begins where the file was used up.";

  const networks = {
    correct: new Made(await unpack(WEIGHTS.correct)),
    leaky: new Made(await unpack(WEIGHTS.leaky), true),
  };
  const testImages = unpackImages();
  let name = "correct"; // the network that is in use
  let shown = 1; // test image

  const inBytes = (nats) => `${(nats / NATS_OF_A_BYTE).toFixed(1)} bytes`;
  const play = player((image) => paintInk(element("leak-read"), image), FRAME);

  function run() {
    const [network, { cost, floor }] = [networks[name], WEIGHTS[name]];
    const image = testImages[shown];
    const probabilities = network.probabilities(image);
    const nats = -network.logConditionals(image).reduce((sum, value) => sum + value, 0);
    const file = toHex(write(image, probabilities));

    paintInk(element("leak-image"), image);
    paintInk(element("leak-prediction"), probabilities);
    showFacts(element("leak-facts"), [
      ["score, the lower the better", inBytes(cost.after)],
      ["least that is possible", inBytes(floor)],
      ["promised for this image", inBytes(nats)],
      ["its file", `${file.length / 2} bytes`],
      ["what is in the file", file.replace(/../g, "$& "), true],
    ]);

    let found = image;
    const rows = function* () {
      for (found of read(BigInt(`0x${file}`), network)) yield found;
    };
    element("leak-now").textContent = "The reader opens the file …";
    play(rows(), () => {
      const wrong = found.filter((pixel, i) => pixel !== image[i]).length;
      const floor = found.slice(-SIDE).every((pixel) => pixel === 1) ? FLOOR : "";
      say("leak-now", wrong ? `${wrong} of ${PIXELS} pixels are wrong. ${FAULT} ${floor}` : RIGHT);
    });
  }

  element("leak-switch").addEventListener("click", (event) => {
    name = turn(event.currentTarget, "aria-checked") ? "leaky" : "correct";
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
