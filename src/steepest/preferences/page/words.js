// What the page says of how far all is. `live`: how far the run is that asks while it trains; null where none does.

const figure = (number) => number.toLocaleString("en");

// The text beside the meter, the meter's end, and where it stands.
export function counts(live, done, left) {
  if (live === null) return [`${figure(done)} judged, ${figure(left)} to go`, Math.max(1, done + left), done];
  const now = live.pending ? `, ${figure(live.pending)} to go now` : "";
  return [`${figure(live.answered)} of ${figure(live.labels)} labels${now}`, live.labels, live.answered];
}

// A title and a text, where there is nothing to judge.
export function nothingNow(live, done) {
  if (live === null) {
    return done
      ? ["All done", "There is nothing left for you to judge. New comparisons appear here by themselves."]
      : ["Nothing to label yet", "Comparisons appear here by themselves as soon as there are any."];
  }
  if (live.making) return ["The next pairs are being made", "They appear here by themselves, in a moment."];
  if (live.pending) return ["Nothing left for you", "Somebody else has the last pairs of this round. The next ones appear here by themselves."];
  if (live.answered >= live.labels) return ["All labels are in", "The agent learns on and asks nothing more. You can close this page."];
  return ["The agent is learning", "The next pairs appear here by themselves."];
}

// Milliseconds between two questions for more. A run waits for the answers, so its pairs should be seen at once.
export const pollEvery = (live) => (live === null ? 3000 : 1000);
