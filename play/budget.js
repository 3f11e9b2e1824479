"use strict";

// The budget: what a bound on the rate gives, and one weight on other images. All of it was prepared.

(() => {
  const WIDEST = 5; // bytes that a bar has room for

  const { stops, others } = WEIGHTS.budget;
  const slider = element("budget-bytes");
  const inBytes = (count) => `${count} ${count === 1 ? "byte" : "bytes"}`;

  function show() {
    const stop = stops[slider.value - 1];
    const rate = stop.rate.toFixed(2);
    element("budget-asked").textContent = inBytes(stop.bytes);
    slider.setAttribute("aria-valuetext", inBytes(stop.bytes));
    element("budget-picture").src = stop.picture;
    element("budget-picture").alt =
      `Ten test images and, below each, what comes back from codes of at most ${inBytes(stop.bytes)}`;
    showFacts(element("budget-facts"), [
      ["λ that training found", stop.price.toFixed(2)],
      ["rate, test images", `${rate} bytes`],
      ["distortion", `${stop.distortion.toFixed(1)} nats`],
    ]);
    const kept = stop.rate <= stop.bytes ? "The bound is kept" : "The bound is missed";
    const verdict = `${kept}: ${rate} of ${inBytes(stop.bytes)}. In each pair of rows, test images above, ` +
      "and what comes back below.";
    element("budget-now").textContent = verdict;
  }

  /** A bar that ends at the rate; a mark stands at three bytes. */
  function bar(name, { rate, price }, kind) {
    const row = make("div", "", `bar ${kind}`);
    const track = make("div");
    const length = make("i");
    length.style.width = `${Math.min(rate / WIDEST, 1) * 100}%`;
    track.append(length, make("span", `${rate.toFixed(2)} bytes, ${name} ${price.toFixed(2)}`));
    row.append(make("span", kind), track);
    return row;
  }

  for (const { images, weight, bound, picture } of others) {
    const card = make("div");
    const sheet = make("img", "", "sheet");
    sheet.src = picture;
    sheet.alt = "Test images; what comes back by the weight; what comes back by the bound";
    card.append(make("h4", images), sheet);
    card.append(bar("β =", weight, "weight"), bar("λ =", bound, "bound"));
    element("budget-others").append(card);
  }
  slider.addEventListener("input", () => {
    show();
    announce(element("budget-now").textContent);
  });
  show();
})();
