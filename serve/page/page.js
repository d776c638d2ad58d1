// The page: what is typed goes to the gateway, what comes back is shown.

import { Follower } from "./follow.js";
import * as form from "./form.js";
import * as gateway from "./gateway.js";
import * as history from "./history.js";
import * as pictures from "./pictures.js";
import { command } from "./request.js";
import * as timing from "./timing.js";

const SETTLED_MS = 700; // a picture that stays this long was meant
const SLOW_MS = 150;

const status = document.getElementById("status");
const spoken = document.getElementById("spoken");
const { prompt, class_label: label, seed, key, model } = document.getElementById("form").elements;

let known = false; // whether the gateway has said what it serves
let settled = 0;
let slow = 0;

const follower = new Follower(make, { made, refused });

function ask(options) {
  clearTimeout(settled);
  clearTimeout(slow);
  slow = setTimeout(() => pictures.state("busy"), SLOW_MS);
  follower.follow(form.settings(), options);
}

async function make(settings, signal) {
  if (!known) {
    form.serve(await gateway.models(signal));
    known = true;
    settings = form.settings();
  }
  if (!settings.prompt.trim() && !settings.class_label) return null;
  const result = await gateway.generate(settings, signal);
  return { ...result, settings };
}

async function made(_, result) {
  rest();
  say("");
  form.showProblems([]);
  if (result === null) return nothing();
  known = form.offers(result.model); // a new version may be served since
  const first = result.pictures[0].seed;
  const settings = { ...result.settings, seed: first };
  const exact = { ...settings, model: result.model };
  const line = (seeds) => command(location.origin, exact, seeds, gateway.key() !== "");
  const shown = {
    ...result,
    settings,
    pictures: result.pictures.map((one) => ({ ...one, command: line([one.seed]) })),
    command: line(result.pictures.map((one) => one.seed)),
  };
  settled = setTimeout(() => settle(shown), SETTLED_MS);
  await show(shown);
}

async function show(shown) {
  if (!await pictures.show(shown.pictures, shown.settings)) return;
  timing.show(shown.took, shown.roundTripMs);
  document.getElementById("served").textContent = shown.model;
  history.mark(shown);
}

function settle(shown) {
  history.keep(shown, recall);
  const number = shown.pictures.length === 1 ? "The picture" : `${shown.pictures.length} pictures`;
  spoken.textContent = `${number} took ${timing.milliseconds(shown.roundTripMs)}.`;
}

function recall(shown) {
  follower.stop();
  clearTimeout(settled);
  rest();
  say("");
  form.showProblems([]);
  form.fill(shown.settings);
  show(shown);
  pictures.reveal();
}

function nothing() {
  pictures.clear();
  timing.hide();
  history.mark(null);
}

function refused(error, againMs) {
  rest("stale");
  if (!(error instanceof gateway.Refused)) throw error;
  const unknown = error.status === 404;
  if (error.status === 0 || unknown) known = false; // other models may be served by now
  if (error.status === 401) {
    form.askForKey(gateway.key() !== "");
    return say("");
  }
  const others = form.showProblems(error.fields);
  const placed = error.fields.length > 0 && others.length === 0 && !unknown;
  say(placed ? "" : `${sentence(error.message)}${again(againMs)}`);
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1).replace(/\.$/, "") + ".";
}

function again(againMs) {
  return againMs === null ? "" : ` Trying again in ${Math.ceil(againMs / 1000)} s.`;
}

function rest(state = "fresh") {
  clearTimeout(slow);
  pictures.state(state);
}

function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

prompt.addEventListener("input", () => { form.grow(); ask(); });
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask({ now: true });
});
seed.addEventListener("input", () => ask());
label.addEventListener("input", () => { form.offerSubject(); ask(); });
document.getElementById("num_images").addEventListener("input", () => ask());
model.addEventListener("change", () => form.offer());
for (const name of ["model", "size", "format"]) {
  document.getElementById(name).addEventListener("change", () => ask({ now: true }));
}
document.getElementById("dice").addEventListener("click", () => {
  form.rollDice();
  ask({ now: true });
});
key.addEventListener("change", () => {
  const given = key.value.trim();
  if (/[^\x21-\x7e]/.test(given)) {
    return form.showProblems([{ name: "key", detail: "A key has no such characters." }]);
  }
  gateway.setKey(given);
  known = false;
  follower.forget();
  ask({ now: true });
});
document.getElementById("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ now: true });
});
addEventListener("resize", form.grow);
addEventListener("online", () => { follower.forget(); ask({ now: true }); });

form.rollDice();
form.grow();
ask({ now: true });
