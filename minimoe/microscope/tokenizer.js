/* The tokenizer: text to UTF-8 bytes, bytes to tokens by merging pairs in the order in which they were learnt. */
"use strict";

/* How text is cut before merging; tokens never cross a cut. White space is Unicode's, which JavaScript's \s is not. The
   letters after an apostrophe are case-insensitive as in Unicode: U+017F is a long s. */
const SPACE = "\\p{White_Space}";
const PIECE = new RegExp(
  ["'[sS\u017f]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]",
   "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
   "\\p{N}",
   ` ?[^${SPACE}\\p{L}\\p{N}]+(?:[\\r\\n]+(?: +(?= ))?)?`,
   `${SPACE}*[\\r\\n]+(?: +(?= ))?`,
   `${SPACE}+(?!\\P{White_Space})`,
   `${SPACE}+`].join("|"), "gu");

class Tokenizer {
  /* parts: the token of each byte, and the merges as triples: left token, right token, merged token. */
  constructor({ eot, bytes, merges, cut }) {
    this.eot = eot;
    this.ofByte = bytes;
    this.cut = cut;
    this.pieces = [];
    this.pieces[eot] = [];
    this.merges = new Map();
    bytes.forEach((token, byte) => (this.pieces[token] = [byte]));
    for (let i = 0; i < merges.length; i += 3) {
      const [left, right, merged] = merges.slice(i, i + 3);
      this.pieces[merged] = [...this.pieces[left], ...this.pieces[right]];
      this.merges.set(left * 65536 + right, { rank: i, merged });
    }
    this.known = new Map(); // tokens of pieces seen before
    this.encoder = new TextEncoder();
  }

  /* Half of a surrogate pair, as while an emoji is typed, counts as U+FFFD. */
  encode(text) {
    const tokens = [];
    const whole = text.replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, (found) => (found.length === 2 ? found : "\ufffd"));
    for (const piece of this.cut ? whole.match(PIECE) || [] : [whole]) {
      if (!this.known.has(piece)) this.known.set(piece, this.merge(piece));
      for (const token of this.known.get(piece)) tokens.push(token);
    }
    return tokens;
  }

  /* Joins the neighbours whose merge was learnt first, the leftmost of equals, until none is left. */
  merge(piece) {
    const tokens = Array.from(this.encoder.encode(piece), (byte) => this.ofByte[byte]);
    while (this.merges.size) {
      let best = null, place = -1;
      for (let i = 0; i + 1 < tokens.length; i++) {
        const found = this.merges.get(tokens[i] * 65536 + tokens[i + 1]);
        if (found && (best === null || found.rank < best.rank)) [best, place] = [found, i];
      }
      if (best === null) break;
      tokens.splice(place, 2, best.merged);
    }
    return tokens;
  }

  bytesOf(tokens) {
    return Uint8Array.from(tokens.flatMap((token) => this.pieces[token]));
  }

  /* Bytes that are not UTF-8 become U+FFFD. */
  decode(tokens) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytesOf(tokens));
  }

  /* How a token is shown: its text with visible white space, or its bytes where it ends inside a character. */
  show(token) {
    if (token === this.eot) return "⊢";
    const bytes = this.bytesOf([token]);
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
      return text.replace(/ /g, "·").replace(/\r/g, "␍").replace(/\n/g, "↵").replace(/\t/g, "⇥");
    } catch {
      return "‹" + Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(" ") + "›";
    }
  }
}
