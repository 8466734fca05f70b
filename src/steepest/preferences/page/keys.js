// Keys of the page: they can be changed, and switched off for those whose tools type single letters.

const STORED = "steepest-keys";

export const ACTIONS = [
  ["tie", "Equal", "0"],
  ["skip", "Skip", "s"],
  ["undo", "Undo", "u"],
  ["play", "Play or pause clips", " "],
  ["reveal", "Show invisible characters", "i"],
  ["unplace", "Take the last one off a ranking", "Backspace"],
  ...Array.from({ length: 9 }, (_, i) => [`choose-${i + 1}`, `Choose or place ${i + 1}`, String(i + 1)]),
];

const defaults = () => Object.fromEntries(ACTIONS.map(([action, , key]) => [action, key]));
const tidy = (key) => (key.length === 1 ? key.toLowerCase() : key);
export const named = (key) => (key === " " ? "Space" : key.length === 1 ? key.toUpperCase() : key);

export class Keys {
  constructor() {
    this.off = false;
    this.map = defaults();
    try {
      const stored = JSON.parse(localStorage.getItem(STORED) ?? "{}");
      for (const [action] of ACTIONS) if (typeof stored.map?.[action] === "string") this.map[action] = stored.map[action];
      this.off = stored.off === true;
    } catch { /* what is not readable is left at the defaults */ }
  }

  keep() {
    try { localStorage.setItem(STORED, JSON.stringify({ map: this.map, off: this.off })); } catch { /* private window */ }
  }

  // The action of a key press on the page itself, or null.
  action(event) {
    if (this.off || event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return null;
    const target = event.target;
    if (target instanceof HTMLInputElement && target.type === "text") return null;
    const key = tidy(event.key);
    if (key === " " && target instanceof HTMLButtonElement) return null; // it presses the button
    return ACTIONS.find(([action]) => this.map[action] === key)?.[0] ?? null;
  }

  // Give an action a key; returns the name of the action that has it already, or null.
  set(action, key) {
    const wanted = tidy(key);
    const taken = ACTIONS.find(([other]) => other !== action && this.map[other] === wanted);
    if (taken) return taken[1];
    this.map[action] = wanted;
    this.keep();
    return null;
  }

  reset() {
    this.map = defaults();
    this.off = false;
    this.keep();
  }
}
