// Text to the clipboard, also where the page came over plain HTTP from another machine.

const SHOWN_MS = 1500;

// A button that copies `text` and says that it did.
export function copyButton(text, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy curl";
  button.setAttribute("aria-label", label);
  button.title = text;
  button.addEventListener("click", async () => {
    const done = await copy(text);
    button.textContent = done ? "Copied" : "Not allowed";
    document.getElementById("spoken").textContent = done ? "The command is copied." : "";
    setTimeout(() => { button.textContent = "Copy curl"; }, SHOWN_MS);
  });
  return button;
}

async function copy(text) {
  if (!navigator.clipboard) return copyByHand(text); // only secure contexts have it
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByHand(text);
  }
}

function copyByHand(text) {
  const active = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  active?.focus();
  return done;
}
