// Where the time went: one bar, and its parts in words.

const section = document.getElementById("time");
const bar = document.getElementById("bar");
const list = document.getElementById("stages");

const MEANING = {
  queue: "waiting for its turn",
  tokenize: "words to numbers, seed to noise",
  infer: "the model, one step",
  encode: "pixels to a file",
  gateway: "the rest of the gateway's work",
  network: "there and back, and this browser",
};

// `took`: [[stage, milliseconds]], in order.
export function show(took, roundTripMs) {
  section.hidden = false;
  document.getElementById("round-trip").textContent = milliseconds(roundTripMs);
  bar.replaceChildren(...took.map(([name, duration]) => {
    const part = document.createElement("span");
    part.className = name;
    part.style.flexGrow = duration;
    return part;
  }));
  list.replaceChildren(...took.map(([name, duration]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.className = name;
    term.textContent = name;
    row.title = MEANING[name] ?? name;
    value.textContent = milliseconds(duration);
    row.append(term, value);
    return row;
  }));
}

export function hide() {
  section.hidden = true;
}

export function milliseconds(duration) {
  if (duration >= 1000) return `${(duration / 1000).toFixed(1)} s`;
  return `${duration.toFixed(duration < 10 ? 1 : 0)} ms`;
}
