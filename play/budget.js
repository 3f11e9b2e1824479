"use strict";

// The budget: what a limit of bytes gives, and one weight on other images. All of it was prepared.

(() => {
  const BUDGET = 3; // bytes, of the comparison

  const { stops, others } = WEIGHTS.budget;
  const slider = element("budget-bytes");

  function show() {
    const stop = stops[slider.value - 1];
    const bytes = count(stop.bytes, "byte");
    element("budget-asked").textContent = bytes;
    slider.setAttribute("aria-valuetext", bytes);
    element("budget-picture").src = stop.picture;
    element("budget-picture").alt = `Test images, and what comes back from codes of at most ${bytes}`;
    showFacts(element("budget-facts"), [
      ["still missing after the code", inBytes(stop.distortion)],
      ["strictness, found by training (λ)", stop.price.toFixed(2)],
    ]);
    const kept = stop.rate <= stop.bytes ? "within the limit" : "over the limit";
    element("budget-now").textContent =
      `On 10,000 new images a code took ${stop.rate.toFixed(2)} bytes on average: ${kept}.`;
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
    sheet.alt = `${images}: originals; below, what comes back by one strictness, and by limit`;
    const byWeight = `one strictness: ${weight.rate.toFixed(2)} bytes`;
    const byBound = `by limit: ${bound.rate.toFixed(2)} bytes (strictness ${bound.price.toFixed(2)})`;

    const [card, rows, names] = [make("div"), make("div", "", "rows"), make("div", "", "names")];
    names.append(...["original", "one strictness", "limit"].map((name) => make("span", name)));
    rows.append(names, sheet);
    card.append(make("h4", images), rows);
    card.append(...bar(byWeight, weight.rate, "weight"), ...bar(byBound, bound.rate, "bound"));
    element("budget-others").append(card);
  }

  const kept = others.filter(({ bound }) => bound.rate <= BUDGET).length;
  const least = Math.min(...others.map(({ weight }) => weight.rate)).toFixed(1);
  element("budget-verdict").textContent =
    `By limit, ${kept} of ${others.length} stay within three bytes, each with a strictness of its own. ` +
    `With one strictness, one takes only ${least}: most of what was allowed stays unused.`;
  slider.addEventListener("input", () => {
    show();
    announce(`${element("budget-asked").textContent}. ${element("budget-now").textContent}`);
  });
  show();
})();
