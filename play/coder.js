"use strict";

// A file as one large number, a stack of pixels (asymmetric numeral systems; Duda 2013), as in the notebook.

const BITS = 28n; // probabilities are counted in units of 2^-28
const SLOTS = 1n << BITS;

/** How many slots a black pixel of probability p owns: from 1 to SLOTS − 1; halves go to the even number. */
function ones(p) {
  const exact = p * Number(SLOTS);
  let count = Math.round(exact);
  if (count - exact === 0.5 && count % 2) count -= 1;
  return BigInt(Math.min(Math.max(count, 1), Number(SLOTS) - 1));
}

/** The slots of a pixel, black below white: where they begin, and how many they are. */
function slots(pixel, p) {
  return pixel ? [0n, ones(p)] : [ones(p), SLOTS - ones(p)];
}

function push(state, pixel, p) {
  const [start, count] = slots(pixel, p);
  return (state / count) * SLOTS + (state % count) + start;
}

/** The state before, and the pixel that was pushed last. */
function pop(state, p) {
  const pixel = Number(state % SLOTS < ones(p));
  const [start, count] = slots(pixel, p);
  return [(state / SLOTS) * count + (state % SLOTS) - start, pixel];
}

/** A state as the bytes of a file, in hexadecimal. */
function toHex(state) {
  const digits = state.toString(16);
  return digits.length % 2 ? `0${digits}` : digits;
}

/** An image as one number: the last pixel is pushed first, so that the first is on top. */
function write(image, probabilities) {
  let state = SLOTS;
  for (let i = image.length - 1; i >= 0; i--) {
    state = push(state, image[i], probabilities[i]);
  }
  return state;
}

/** What a reader finds who has the file and the network: the image so far, after each row. */
function* read(state, network) {
  const image = new Uint8Array(PIXELS);
  for (let i = 0; i < PIXELS; i++) {
    [state, image[i]] = pop(state, network.probabilities(image)[i]);
    if (i % SIDE === SIDE - 1) yield image.slice();
  }
}
