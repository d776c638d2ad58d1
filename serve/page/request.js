// One request in words: as the body of POST /generate, and as a command for a shell.

const NAMES = ["model", "prompt", "class_label", "size", "format", "num_images", "seed"];
const NUMBERS = ["class_label", "num_images", "seed"];

// Settings (strings by name; "" is left out) as JSON. A seed has up to 64 bits, more than
// JavaScript's numbers hold, so its digits go into the text as they are.
export function body(settings) {
  const given = NAMES.filter((name) => settings[name]);
  const fields = given.map((name) => {
    const text = settings[name];
    return `"${name}": ${NUMBERS.includes(name) ? number(text) : JSON.stringify(text)}`;
  });
  return `{${fields.join(", ")}}`;
}

// Digits as a JSON number; anything else as a string, which the gateway refuses in its own words.
function number(text) {
  return /^-?\d{1,40}$/.test(text) ? String(BigInt(text)) : JSON.stringify(text);
}

// What a picture shows, in words.
export function subject({ prompt, class_label: label }) {
  return prompt || `class ${label}`;
}

// The seeds of `count` pictures, of which the first has `seed`.
export function seedsFrom(seed, count) {
  return Array.from({ length: count }, (_, index) => String(BigInt(seed) + BigInt(index)));
}

// A POSIX shell command that writes the pictures of these seeds into files, byte for byte.
// `settings` names model and version, size and format.
export function command(origin, settings, seeds, withKey) {
  const rest = body({ ...settings, num_images: "", seed: "" }).slice(0, -1);
  if (seeds.length === 1) {
    const data = quoted(`${rest}, "seed": ${seeds[0]}}`);
    return curl(origin, data, `${seeds[0]}.${settings.format}`, withKey);
  }
  const data = `${quoted(`${rest}, "seed": `)}$seed'}'`;
  const each = curl(origin, data, `$seed.${settings.format}`, withKey);
  return `for seed in ${seeds.join(" ")}; do ${each}; done`;
}

function curl(origin, data, file, withKey) {
  const key = withKey ? ' -H "Authorization: Bearer $SINGLEPASS_KEY"' : "";
  const type = "-H 'Content-Type: application/json'";
  return `curl -fsS ${origin}/generate${key} ${type} -d ${data} -o ${file}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
