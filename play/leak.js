"use strict";

// The leak: two small networks, one with a fault; their scores, and what comes out of their files.

(async () => {
  const FRAME = 60; // milliseconds for a row that is read
  const RIGHT = `All ${PIXELS} pixels came back. The promise was honest.`;
  const FAULT = "It guessed by peeking, but whoever opens the file does not have the answers yet.";
  const FLOOD = "Black at the bottom: there the file had run out.";
  const CHEAT = "below what is possible: something cheats";

  const networks = {
    correct: new Made(await unpack(WEIGHTS.correct)),
    leaky: new Made(await unpack(WEIGHTS.leaky), true),
  };
  const testImages = unpackImages();
  let name = "correct"; // the network that is in use
  let shown = 1; // test image

  const play = player((image) => paintInk(element("leak-read"), image), FRAME);

  function run() {
    const [network, { cost, floor }] = [networks[name], WEIGHTS[name]];
    const image = testImages[shown];
    const probabilities = network.probabilities(image);
    const nats = -network.logConditionals(image).reduce((sum, value) => sum + value, 0);
    const file = toHex(write(image, probabilities));

    paintInk(element("leak-image"), image);
    paintInk(element("leak-prediction"), probabilities);
    showFacts(element("leak-average"), [
      ["score", inBytes(cost.after), cost.after < floor && CHEAT],
      ["least possible, on average", inBytes(floor)],
    ]);
    showFacts(element("leak-this"), [
      ["promised", inBytes(nats)],
      ["file", `${file.length / 2} bytes`],
    ]);
    element("leak-bytes").textContent = file.replace(/../g, "$& ");

    element("leak-now").textContent = "Opening the file …";
    play(read(BigInt(`0x${file}`), network), (found) => {
      const wrong = found.filter((pixel, i) => pixel !== image[i]).length;
      const flood = found.slice(-SIDE).every((pixel) => pixel === 1) ? FLOOD : "";
      say("leak-now", wrong ? `${wrong} of ${PIXELS} pixels are wrong. ${FAULT} ${flood}` : RIGHT);
    });
  }

  element("leak-switch").addEventListener("click", (event) => {
    name = name === "leaky" ? "correct" : "leaky";
    event.currentTarget.setAttribute("aria-checked", name === "leaky");
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
