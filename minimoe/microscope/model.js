/* The model: weights as they are packed, and one token at a time through the blocks, with a cache of keys and values.

   Letters as in the Python code: D model width, N query heads, M key/value heads, H head width, F expert width,
   E experts, K experts a token, V vocabulary. A matrix is stored output first: [O, I], so y = W x is a dot product a row.
   Weights are float32 or codes; everything computed from them is float64, the only arithmetic that JavaScript has. */
"use strict";

const MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]; // of the 4-bit float e2m1; the fourth bit is the sign
const MODES = ["float", "int8", "w8a8", "fp4"];

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/* int8: value = code * scale, one scale a row. */
function decodeInt8(codes, scale, columns) {
  const values = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) values[i] = codes[i] * scale[(i / columns) | 0];
  return values;
}

/* MXFP4: two codes a byte, the lower nibble first; 32 values share a power of two, stored as its exponent + 127. */
function decodeFp4(packed, exponents) {
  const values = new Float32Array(packed.length * 2);
  for (let i = 0; i < values.length; i++) {
    const code = i % 2 ? packed[i >> 1] >> 4 : packed[i >> 1] & 15;
    const value = MAGNITUDES[code & 7] * 2 ** (exponents[i >> 5] - 127);
    values[i] = code & 8 ? -value : value;
  }
  return values;
}

/* bfloat16 is the upper half of a float32. */
function decodeBfloat16(halves) {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}

const VIEWS = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array, bfloat16: Uint16Array };

class Model {
  /* header: what pack.py wrote about the bytes. */
  constructor(header, bytes) {
    this.config = header.config;
    this.stored = {};
    for (const [name, { dtype, offset, length }] of Object.entries(header.tensors))
      this.stored[name] = new VIEWS[dtype](bytes.buffer, bytes.byteOffset + offset, length);
    this.decoded = {};
    this.turns = this.makeTurns();
    this.use("float");
  }

  /* Switches the arithmetic, to that of a recipe of minimoe.quant. float: the weights as they are packed. int8: weights
     as whole numbers times a scale. w8a8 (recipe int8-w8a8): activations too. fp4 (recipe mxfp4): the experts' weights in
     4 bits, the rest as float. */
  use(mode) {
    const { num_layers } = this.config;
    if (mode === this.mode) return;
    this.mode = mode;
    const inner = (name) => this.matrix(name, mode === "fp4" ? "float" : mode);
    const expert = (name) => this.matrix(name, mode);
    this.embed = inner("embed");
    this.head = "head.codes" in this.stored ? inner("head") : this.embed;
    this.layers = Array.from({ length: num_layers }, (_, i) => ({
      attentionNorm: this.stored[`${i}.attention_norm`],
      ffnNorm: this.stored[`${i}.ffn_norm`],
      router: { values: this.stored[`${i}.router`], columns: this.config.d_model },
      bias: this.stored[`${i}.bias`],
      q: inner(`${i}.q`), k: inner(`${i}.k`), v: inner(`${i}.v`), o: inner(`${i}.o`),
      gateUp: expert(`${i}.gate_up`), down: expert(`${i}.down`),
      shared: `${i}.shared_down.codes` in this.stored && {
        gateUp: inner(`${i}.shared_gate_up`), down: inner(`${i}.shared_down`),
      },
    }));
  }

  /* A matrix in one of its forms, decoded once. A model that was stored in int8 has no floats but the decoded codes. */
  matrix(name, mode) {
    const s = this.stored, codes = s[`${name}.codes`], scale = s[`${name}.scale`], columns = codes.length / scale.length;
    if (mode === "w8a8") return { codes, scale, columns };
    const form = mode === "float" && !s[`${name}.float`] ? "int8" : mode, key = `${name}/${form}`;
    const decode = {
      float: () => decodeBfloat16(s[`${name}.float`]),
      int8: () => decodeInt8(codes, scale, columns),
      fp4: () => decodeFp4(s[`${name}.fp4`], s[`${name}.fp4_scale`]),
    };
    this.decoded[key] ||= { values: decode[form](), columns };
    return this.decoded[key];
  }

  /* Cosine and sine of position * theta^(-2i/H), for every position and pair. */
  makeTurns() {
    const { context_length, head_dim, rope_theta } = this.config, half = head_dim / 2;
    const cos = new Float64Array(context_length * half), sin = new Float64Array(context_length * half);
    for (let p = 0; p < context_length; p++)
      for (let i = 0; i < half; i++) {
        const angle = p * rope_theta ** (-2 * i / head_dim);
        cos[p * half + i] = Math.cos(angle);
        sin[p * half + i] = Math.sin(angle);
      }
    return { cos, sin, half };
  }

  newCache() {
    const { num_layers, context_length, num_kv_heads, head_dim } = this.config;
    const room = () => new Float64Array(context_length * num_kv_heads * head_dim);
    return { length: 0, layers: Array.from({ length: num_layers }, () => ({ keys: room(), values: room() })) };
  }

  /* One token after those in the cache. edits: what was added to the selection bias, and which experts are off; both by
     layer. Returns the hidden state before the head, and each layer's experts, weights and affinities. */
  step(token, cache, edits) {
    const { d_model } = this.config;
    const x = rowOf(this.embed, token, d_model), routes = [];
    this.layers.forEach((layer, i) => {
      add(x, this.attend(layer, this.norm(x, layer.attentionNorm), cache.layers[i], cache.length));
      const h = this.norm(x, layer.ffnNorm);
      const route = this.route(layer, h, edits && edits[i]);
      routes.push(route);
      if (layer.shared) add(x, feedForward(layer.shared.gateUp, layer.shared.down, h, 0, this.config));
      route.experts.forEach((expert, k) => {
        const y = feedForward(layer.gateUp, layer.down, h, expert, this.config);
        for (let j = 0; j < d_model; j++) x[j] += route.weights[k] * y[j];
      });
    });
    cache.length += 1;
    return { hidden: this.norm(x, this.stored["norm"]), routes };
  }

  /* Scores of the next token, [V]. */
  logits(hidden) {
    return multiply(this.head, hidden);
  }

  norm(x, scale) {
    let sum = 0;
    for (const value of x) sum += value * value;
    const factor = 1 / Math.sqrt(sum / x.length + this.config.norm_eps);
    return x.map((value, i) => value * factor * scale[i]);
  }

  /* Grouped-query attention: N/M query heads share one key/value head. */
  attend(layer, h, kept, position) {
    const { num_heads, num_kv_heads, head_dim } = this.config, width = num_kv_heads * head_dim;
    const q = multiply(layer.q, h), k = multiply(layer.k, h), v = multiply(layer.v, h);
    this.turn(q, position);
    this.turn(k, position);
    kept.keys.set(k, position * width);
    kept.values.set(v, position * width);
    const out = new Float64Array(num_heads * head_dim), weights = new Float64Array(position + 1);
    for (let n = 0; n < num_heads; n++) {
      const own = n * head_dim, shared = Math.floor(n * num_kv_heads / num_heads) * head_dim;
      for (let s = 0; s <= position; s++)
        weights[s] = dot(q, own, kept.keys, s * width + shared, head_dim) / Math.sqrt(head_dim);
      softmax(weights);
      for (let s = 0; s <= position; s++)
        for (let j = 0; j < head_dim; j++) out[own + j] += weights[s] * kept.values[s * width + shared + j];
    }
    return multiply(layer.o, out);
  }

  /* Turns the pairs (i, i + H/2) of each head by their angle. */
  turn(x, position) {
    const { cos, sin, half } = this.turns, at = position * half;
    for (let head = 0; head < x.length; head += 2 * half)
      for (let i = head; i < head + half; i++) {
        const a = x[i], b = x[i + half], c = cos[at + i - head], s = sin[at + i - head];
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
      }
  }

  /* The K experts of largest affinity + bias; what they weigh comes from the affinity alone. */
  route(layer, h, edit) {
    const { num_experts, top_k, normalize_weights, routed_scaling_factor } = this.config;
    const affinities = AFFINITIES[this.config.score](multiply(layer.router, h));
    const scores = affinities.map((value, e) => {
      if (edit && edit.off[e]) return -Infinity;
      return value + layer.bias[e] + (edit ? edit.bias[e] : 0);
    });
    const order = Array.from({ length: num_experts }, (_, e) => e).sort((a, b) => scores[b] - scores[a] || a - b);
    const experts = order.slice(0, top_k);
    const sum = normalize_weights ? experts.reduce((total, e) => total + affinities[e], 0) : 1;
    const weights = experts.map((e) => affinities[e] / sum * routed_scaling_factor);
    return { experts, weights, affinities };
  }
}

const AFFINITIES = {
  sigmoid: (logits) => logits.map((x) => 1 / (1 + Math.exp(-x))),
  softmax: (logits) => softmax(logits),
  sqrtsoftplus: (logits) => logits.map((x) => Math.sqrt(Math.log1p(Math.exp(-Math.abs(x))) + Math.max(x, 0))),
};

/* SwiGLU of one expert of a stack: down(silu(gate) * up), gate and up side by side. */
function feedForward(gateUp, down, h, expert, { d_model, swiglu_limit }) {
  const width = down.columns, both = multiply(gateUp, h, expert * 2 * width, 2 * width), hidden = new Float64Array(width);
  for (let i = 0; i < width; i++) {
    let gate = both[i], up = both[width + i];
    if (swiglu_limit !== null) {
      gate = Math.min(gate, swiglu_limit);
      up = Math.max(-swiglu_limit, Math.min(up, swiglu_limit));
    }
    hidden[i] = gate / (1 + Math.exp(-gate)) * up;
  }
  return multiply(down, hidden, expert * d_model, d_model);
}

/* W x for `rows` rows from `first` on. If W is given as codes, x is rounded to int8 too, and products are whole numbers. */
function multiply(matrix, x, first = 0, rows = null) {
  const { columns } = matrix, all = matrix.codes || matrix.values;
  const out = new Float64Array(rows === null ? all.length / columns : rows);
  if (!matrix.codes) {
    for (let o = 0; o < out.length; o++) out[o] = dot(x, 0, all, (first + o) * columns, columns);
    return out;
  }
  const rounded = roundToInt8(x);
  for (let o = 0; o < out.length; o++)
    out[o] = dot(rounded.codes, 0, all, (first + o) * columns, columns) * rounded.scale * matrix.scale[first + o];
  return out;
}

/* The largest value gets the code 127; halves go to the even code. */
function roundToInt8(x) {
  let largest = 0;
  for (const value of x) largest = Math.max(largest, Math.abs(value));
  const scale = largest === 0 ? 1 : largest / 127, codes = new Int8Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const steps = x[i] / scale, below = Math.floor(steps), rest = steps - below;
    codes[i] = rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
  }
  return { codes, scale };
}

/* Four sums at once, because each addition would wait for the one before it. */
function dot(a, i, b, j, count) {
  let p = 0, q = 0, r = 0, s = 0, n = 0;
  for (; n + 3 < count; n += 4) {
    p += a[i + n] * b[j + n];
    q += a[i + n + 1] * b[j + n + 1];
    r += a[i + n + 2] * b[j + n + 2];
    s += a[i + n + 3] * b[j + n + 3];
  }
  for (; n < count; n++) p += a[i + n] * b[j + n];
  return p + q + (r + s);
}

function rowOf({ codes, scale, values }, row, columns) {
  const x = Float64Array.from((codes || values).subarray(row * columns, (row + 1) * columns));
  return codes ? x.map((code) => code * scale[row]) : x;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/* In place; returned as well. */
function softmax(x) {
  let largest = -Infinity, sum = 0;
  for (const value of x) largest = Math.max(largest, value);
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) x[i] /= sum;
  return x;
}

/* One token at random from softmax(logits / temperature); the likeliest at temperature 0. */
function sample(logits, temperature, random = Math.random) {
  if (temperature === 0) return largestOf(logits);
  const probabilities = softmax(logits.map((x) => x / temperature));
  let left = random();
  for (let token = 0; token < probabilities.length; token++) if ((left -= probabilities[token]) < 0) return token;
  return largestOf(logits);
}

function largestOf(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
