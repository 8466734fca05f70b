// Untrusted text: shown as text whatever it holds. Nothing here makes markup out of a string.

const SHOWN = 20000; // characters at first: a megabyte would be laid out at once

// Controls, formatting and unassigned characters, and those that look like nothing. A joiner inside an emoji is part of
// a picture that can be seen.
const INVISIBLE =
  /(?<!\p{Extended_Pictographic}\uFE0F?)\u200D|[\p{Cc}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u00A0\u115F\u1160\u2800\u3164\uFFA0\uFE00-\uFE0E]|(?!\u200D)\p{Cf}/gu;
const PLAIN = new Set(["\n", "\t"]);

const isInvisible = (char) => !PLAIN.has(char);

export function countInvisible(text) {
  let count = 0;
  for (const [char] of text.matchAll(INVISIBLE)) if (isInvisible(char)) count += 1;
  return count;
}

function code(char) {
  return "U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

// Put a text into an element: as it is, or with its invisible characters spelled out.
function fill(element, text, revealed) {
  element.replaceChildren();
  if (!revealed) {
    element.textContent = text;
    return;
  }
  let from = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (!isInvisible(match[0])) continue;
    element.append(text.slice(from, match.index));
    const mark = document.createElement("span");
    mark.className = "seen";
    mark.textContent = code(match[0]);
    element.append(mark);
    from = match.index + match[0].length;
  }
  element.append(text.slice(from));
}

const head = (text, limit) => {
  const cut = text.slice(0, limit);
  return /[\uD800-\uDBFF]$/.test(cut) ? cut.slice(0, -1) : cut; // not through the middle of a character
};

// A text as an element in its own direction; it can be revealed and shown whole.
export function textBlock(text) {
  const element = document.createElement("bdi");
  element.dir = "auto";
  const block = { element, length: text.length, invisible: countInvisible(text), revealed: false, whole: text.length <= SHOWN };
  const draw = () => fill(element, block.whole ? text : head(text, SHOWN) + "…", block.revealed);
  block.reveal = (on) => { block.revealed = on; draw(); };
  block.showWhole = () => { block.whole = true; draw(); };
  draw();
  return block;
}

// The buttons that a text needs, if any: to reveal what cannot be seen, to show what was left out.
export function textTools(block, what) {
  const tools = [];
  if (block.invisible > 0) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "small reveal";
    const noun = block.invisible === 1 ? "invisible character" : "invisible characters";
    button.textContent = `${block.invisible.toLocaleString("en")} ${noun}`;
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", `Show ${block.invisible} ${noun} of ${what}`);
    button.addEventListener("click", () => {
      block.reveal(!block.revealed);
      button.setAttribute("aria-pressed", String(block.revealed));
    });
    tools.push(button);
  }
  if (!block.whole) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "small";
    button.textContent = `Show all ${block.length.toLocaleString("en")} characters`;
    button.setAttribute("aria-label", `Show all ${block.length.toLocaleString("en")} characters of ${what}`);
    button.addEventListener("click", () => { block.showWhole(); button.remove(); });
    tools.push(button);
  }
  return tools;
}
