// The noise of a seed as torch draws it: torch.Generator("cpu").manual_seed(seed), then randn.

/** Whole numbers below 2**32 of the Mersenne twister MT19937, as a function that gives the next. */
function twister(seed) {
  const state = new Uint32Array(624);
  state[0] = Number(BigInt(seed) & 0xffffffffn);
  for (let j = 1; j < 624; j++) {
    const before = state[j - 1] ^ (state[j - 1] >>> 30);
    state[j] = Math.imul(1812433253, before) + j;
  }
  let at = 624;

  function refill() {
    for (let j = 0; j < 624; j++) {
      const y = (state[j] & 0x80000000) | (state[(j + 1) % 624] & 0x7fffffff);
      state[j] = state[(j + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  }

  return () => {
    if (at === 624) refill();
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

/** `count` standard normal numbers, a multiple of 16, as Float32Array. */
export function normal(seed, count) {
  if (count % 16) throw new Error(`torch draws ${count} numbers in another way`);
  const next = twister(seed);
  const values = Float32Array.from({ length: count }, () => (next() & 0xffffff) / 2 ** 24);
  for (let start = 0; start < count; start += 16) {
    for (let j = start; j < start + 8; j++) { // Box and Muller, on pairs that lie eight apart
      const radius = Math.sqrt(-2 * Math.log(1 - values[j]));
      const angle = 2 * Math.PI * values[j + 8];
      values[j] = radius * Math.cos(angle);
      values[j + 8] = radius * Math.sin(angle);
    }
  }
  return values;
}
