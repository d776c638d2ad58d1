// The form: its settings as strings by name, and what is wrong with each.

const NAMES = ["model", "prompt", "class_label", "seed", "num_images", "size", "format"];
const SEEDS = 2 ** 32; // as many streams of noise as there are

const form = document.getElementById("form");
const { prompt, class_label: label, seed, size, model, key, num_images: count } = form.elements;

let served = [];

export function settings() {
  const text = (name) => form.elements[name].value.trim();
  const read = Object.fromEntries(NAMES.map((name) => [name, text(name)]));
  return classes() ? { ...read, prompt: "" } : { ...read, prompt: prompt.value, class_label: "" };
}

export function fill(values) {
  for (const name of NAMES) form.elements[name].value = values[name];
  offer(values.size);
  grow();
}

export function rollDice() {
  seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS);
}

// Offer what the gateway serves; what was chosen stays chosen where it can.
export function serve(models) {
  const chosen = model.value;
  served = models;
  choices(model, models.map((one) => [one.id, `${one.id}/${one.version}`]));
  const wanted = models.find((one) => one.id === chosen) ?? models.find((one) => one.default);
  model.value = (wanted ?? models[0]).id;
  document.getElementById("model-field").hidden = models.length < 2;
  offer();
}

// Whether a model, named with its version, is among what is offered.
export function offers(label) {
  return served.some((one) => `${one.id}/${one.version}` === label);
}

// The classes of the chosen model, {count, names}; of one that draws prompts there are none.
function classes() {
  return served.find(({ id }) => id === model.value)?.classes;
}

// What the chosen model is asked for: a prompt, or the number of a class, and its name if it has one.
export function offerSubject() {
  const known = classes();
  document.getElementById("prompt-field").hidden = Boolean(known);
  document.getElementById("class_label-field").hidden = !known;
  if (!known) return;
  label.max = known.count - 1;
  document.getElementById("class_label-note").textContent = known.names[label.value] ?? "";
}

// The sizes of the chosen model, and how many pictures it makes at once.
export function offer(chosen = size.value) {
  const one = served.find(({ id }) => id === model.value);
  if (!one) return;
  choices(size, one.sizes.map((name) => [name, name.replace("x", " × ")]));
  size.value = one.sizes.includes(chosen) ? chosen : one.sizes[0];
  if (one.max_images) count.max = one.max_images;
  if (one.classes) label.value ||= "0";
  offerSubject();
}

function choices(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
}

// The prompt's box is as high as its text.
export function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + prompt.offsetHeight - prompt.clientHeight}px`;
}

// Show each problem at its field. Returns those whose name is no field of the form.
export function showProblems(problems) {
  for (const name of [...NAMES, "key"]) {
    const place = document.getElementById(`${name}-problem`);
    const found = problems.filter((problem) => problem.name === name);
    const told = name === "key" ? "" : `${name} `; // of the others, the gateway's words
    place.textContent = found.map(({ detail }) => told + detail).join("; ");
    place.hidden = found.length === 0;
    form.elements[name].setAttribute("aria-invalid", String(found.length > 0));
  }
  return problems.filter(({ name }) => !NAMES.includes(name) && name !== "key");
}

// The gateway wants a key: none was sent yet, or it knows another.
export function askForKey(sent) {
  document.getElementById("key-field").hidden = false;
  const detail = sent ? "The gateway does not know this key." : "The gateway asks for a key.";
  showProblems([{ name: "key", detail }]);
  if (document.activeElement !== prompt || !prompt.value) key.focus();
}
