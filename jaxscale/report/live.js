// The page of a run that goes on: asks the server for newer figures, and says how old they are.

const WAIT = 2000; // milliseconds between two questions
let stamp = PAGE.stamp;

/** What must stay for the figures to be drawn where they stand: the same plots of the same series. */
const outline = (page) => JSON.stringify([page.sources.map((s) => s.name), page.sections.map((s) => [s.id, s.plots.map((p) => [p.id, p.x.map((a) => a.key), p.y.map((a) => a.key), p.series.map((r) => r.name)])])]);
const first = outline(PAGE);

function say(text, stopped) {
  const node = document.getElementById("live");
  node.hidden = false;
  node.classList.toggle("stopped", Boolean(stopped));
  if (node.textContent !== text) node.textContent = text;
}

async function ask() {
  try {
    const answer = await fetch(`/figures?${stamp}`);
    if (answer.status === 200) {
      const page = await answer.json();
      if (outline(page) !== first) return location.reload();
      stamp = page.stamp;
      heading(page);
      shown.forEach((s, i) => s.update(page.sections[i], page.sources));
    }
    if (!answer.ok) throw new Error(answer.statusText);
    say(`Live: asked at ${new Date().toLocaleTimeString()}; the figures change as the run writes them.`);
  } catch {
    say("The server has stopped: these figures change no more.", true);
  }
  setTimeout(ask, WAIT);
}

ask();
