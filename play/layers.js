"use strict";

// The networks of the notebooks, one image at a time. Nothing here knows the page.

const SIDE = 28;
const PIXELS = SIDE * SIDE;
const UNKNOWN = 2; // a pixel that is neither white, 0, nor black, 1
const LEAST_VARIANCE = 1e-5; // of layer norm, as PyTorch has it
const WEIGHTS = {}; // by name; each script in weights/ adds one

const KINDS = { i1: Int8Array, i2: Int16Array, f4: Float32Array };

/** The bytes of a text in base64. */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** The arrays of a model by name. Its parts say [name, kind, how many numbers]. */
async function unpack({ parts, bytes }) {
  const stream = new Blob([bytesOf(bytes)]).stream();
  const inflated = stream.pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(inflated).arrayBuffer();

  const arrays = {};
  let start = 0;
  for (const [name, kind, count] of parts) {
    const end = start + count * KINDS[kind].BYTES_PER_ELEMENT;
    arrays[name] = new KINDS[kind](buffer.slice(start, end));
    start = end;
  }
  return arrays;
}

const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
const silu = (h) => h * sigmoid(h);
const add = (a, b) => a.map((value, i) => value + b[i]);

/** log p(pixel) in nats, from the logit of black. */
const logProbability = (pixel, logit) => -Math.log1p(Math.exp(pixel ? -logit : logit));

/** log Σ exp(values), without overflow. */
function logSumExp(values) {
  const largest = Math.max(...values);
  return largest + Math.log(values.reduce((sum, v) => sum + Math.exp(v - largest), 0));
}

/**
 * A linear layer in eight bits a number. Output i sees the first seen[i] inputs. Only these weights are
 * stored, row after row: whole numbers, to be multiplied by the scale of the row.
 */
class Linear {
  constructor(arrays, name, seen) {
    this.weight = arrays[`${name}.weight`];
    this.scale = arrays[`${name}.weight.scale`];
    this.bias = arrays[`${name}.bias`] ?? new Float32Array(this.scale.length);
    this.seen = seen ?? this.scale.map(() => this.weight.length / this.scale.length);
  }

  /** Inputs to outputs, both Float32Array. */
  of(x) {
    const { weight, scale, bias, seen } = this;
    const outputs = new Float32Array(bias.length);
    let next = 0;
    for (let i = 0; i < outputs.length; i++) {
      const count = seen[i];
      let sum = 0;
      for (let j = 0; j < count; j++) sum += weight[next + j] * x[j];
      next += count;
      outputs[i] = sum * scale[i] + bias[i];
    }
    return outputs;
  }
}

/** p(x | z) of a VAE: a layer in, a residual block with layer norm, a layer out. */
class Decoder {
  constructor(arrays) {
    this.first = new Linear(arrays, "decoder.0");
    this.gain = arrays["decoder.1.branch.0.weight"];
    this.shift = arrays["decoder.1.branch.0.bias"];
    this.block = new Linear(arrays, "decoder.1.branch.2");
    this.last = new Linear(arrays, "decoder.3");
  }

  normalise(h) {
    const mean = h.reduce((sum, v) => sum + v, 0) / h.length;
    const variance = h.reduce((sum, v) => sum + (v - mean) ** 2, 0) / h.length;
    const scale = 1 / Math.sqrt(variance + LEAST_VARIANCE);
    return h.map((v, i) => (v - mean) * scale * this.gain[i] + this.shift[i]);
  }

  /** Probabilities of black, from a code. */
  probabilities(z) {
    const h = this.first.of(Float32Array.from(z));
    const more = this.block.of(this.normalise(h).map(silu));
    return this.last.of(add(h, more).map(silu)).map(sigmoid);
  }
}

/** MADE, in reading order. Units are stored in the order of their degrees: a mask keeps the first of a row. */
class Made {
  constructor(arrays, leaky = false) {
    const { degrees, mean } = arrays;
    this.mean = mean;
    this.logShares = arrays.log_shares ?? []; // log p(c), if it is told the class
    this.classes = this.logShares.length;

    const places = Array.from(mean, (_, pixel) => pixel + 1);
    const unitsUpTo = (place) => degrees.filter((degree) => degree <= place).length;
    const hidden = Array.from(degrees, unitsUpTo);
    const last = places.map((place) => unitsUpTo(leaky ? place : place - 1)); // the fault

    this.first = new Linear(arrays, "first", Array.from(degrees, (m) => this.classes + m));
    this.inner = new Linear(arrays, "blocks.0.inner", hidden);
    this.outer = new Linear(arrays, "blocks.0.outer", hidden);
    this.last = new Linear(arrays, "last", last);
    if (arrays["direct.weight"]) {
      const earlier = places.map((place) => this.classes + place - 1);
      this.direct = new Linear(arrays, "direct", earlier);
    }
  }

  /** Logits of p(x_i = 1 | earlier pixels, label), for a binary image. */
  logits(image, label) {
    const x = new Float32Array(this.classes + PIXELS);
    if (this.classes) x[label] = 1;
    image.forEach((pixel, i) => (x[this.classes + i] = pixel - this.mean[i]));

    const h = this.first.of(x);
    const more = this.outer.of(this.inner.of(h.map(silu)).map(silu));
    const logits = this.last.of(add(h, more).map(silu));
    return this.direct ? add(logits, this.direct.of(x)) : logits;
  }

  probabilities(image, label) {
    return this.logits(image, label).map(sigmoid);
  }

  /** log p(x_i | earlier pixels, label) in nats. */
  logConditionals(image, label) {
    return this.logits(image, label).map((logit, i) => logProbability(image[i], logit));
  }
}

/** `given` without what is unknown, which becomes white. */
const known = (given) => given.map((pixel) => (pixel === UNKNOWN ? 0 : pixel));

/**
 * Guess and correct: all images, from what is given to the fixed point, where a pass changes nothing.
 * u is uniform noise. The last image is a draw from p(rest | given), if all that is given comes first.
 */
function passes(made, u, given, label) {
  const images = [known(given)];
  for (;;) {
    const before = images.at(-1);
    const p = made.probabilities(before, label);
    const draw = (pixel, i) => (pixel === UNKNOWN ? Number(u[i] < p[i]) : pixel);
    const image = given.map(draw);
    if (image.every((pixel, i) => pixel === before[i])) return images;
    images.push(image);
  }
}

/** How many pixels are given before the first that is unknown. */
function givenFirst(given) {
  const gap = given.indexOf(UNKNOWN);
  return gap < 0 ? given.length : gap;
}

/**
 * What the first pixels of an image say, n of them: log p(c | these) for each class by Bayes' rule, and
 * the surprise at each, −log p(x_i | earlier pixels), in nats, of the mixture of all classes.
 */
function judge(made, image, n) {
  const conditionals = Array.from(made.logShares, (_, c) => made.logConditionals(image, c));
  let joint = Array.from(made.logShares); // log p(c, pixels so far)
  let before = logSumExp(joint);
  const surprise = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    joint = joint.map((value, c) => value + conditionals[c][i]);
    const after = logSumExp(joint);
    surprise[i] = before - after;
    before = after;
  }
  return { logPosterior: joint.map((value) => value - before), surprise };
}
