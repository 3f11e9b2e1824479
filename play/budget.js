"use strict";

// The budget: what a bound on the rate gives, and one weight on other images. All of it was prepared.

(() => {
  const BUDGET = 3; // bytes, of the comparison

  const { stops, others } = WEIGHTS.budget;
  const slider = element("budget-bytes");

  function show() {
    const stop = stops[slider.value - 1];
    const bytes = `${stop.bytes} ${stop.bytes === 1 ? "byte" : "bytes"}`;
    element("budget-asked").textContent = bytes;
    slider.setAttribute("aria-valuetext", bytes);
    element("budget-picture").src = stop.picture;
    element("budget-picture").alt = `Test images, and what comes back from codes of at most ${bytes}`;
    showFacts(element("budget-facts"), [
      ["λ, found by training", stop.price.toFixed(2)],
      ["rate: bytes of a code", stop.rate.toFixed(2)],
      ["distortion: cost of the rest", `${stop.distortion.toFixed(1)} nats`],
    ]);
    const kept = stop.rate <= stop.bytes ? "The bound is kept" : "The bound is missed";
    element("budget-now").textContent = `${kept}, on 10,000 images that took no part in the training.`;
  }

  /** What a bar says, and the bar; its mark, at the right end, stands at the budget. */
  function bar(text, rate, kind) {
    const track = make("div", "", `bar ${kind}`);
    const length = make("i");
    length.style.width = `${(100 * rate) / BUDGET}%`;
    track.append(length);
    return [make("div", text), track];
  }

  for (const { images, weight, bound, picture } of others) {
    const sheet = make("img", "", "sheet");
    sheet.src = picture;
    sheet.alt = `${images}: test images; below, what comes back by weight, and by bound`;
    const byWeight = `weight ${weight.price.toFixed(2)}: ${weight.rate.toFixed(2)} bytes`;
    const byBound = `bound: ${bound.rate.toFixed(2)} bytes, with λ = ${bound.price.toFixed(2)}`;

    const card = make("div");
    card.append(make("h4", images), sheet);
    card.append(...bar(byWeight, weight.rate, "weight"), ...bar(byBound, bound.rate, "bound"));
    element("budget-others").append(card);
  }

  const kept = others.filter(({ bound }) => bound.rate <= BUDGET).length;
  const least = Math.min(...others.map(({ weight }) => weight.rate)).toFixed(1);
  element("budget-verdict").textContent =
    `By bound, ${kept} of ${others.length} stay within three bytes, each with a λ of its own. ` +
    `By weight, some take only ${least}, and most of what was allowed stays unused.`;
  slider.addEventListener("input", () => {
    show();
    announce(`${element("budget-asked").textContent}. ${element("budget-now").textContent}`);
  });
  show();
})();
