// Asks the daemon at intervals while the page is visible.

const PATIENCE_MS = 15000; // longer than the daemon itself waits

export class NoAnswer extends Error {}

// What it tells at a path.  NoAnswer has the line that it says why not; `status` is 0 where it
// does not answer at all.
export const ask = async (path, query = {}) => {
  const text = new URLSearchParams(query).toString();
  let reply;
  try {
    reply = await fetch(text ? `${path}?${text}` : path, {
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (reply.ok) return await reply.json();
  } catch (error) {
    throw Object.assign(new NoAnswer("the daemon does not answer", { cause: error }), { status: 0 });
  }
  throw Object.assign(new NoAnswer((await reply.text()).trim()), { status: reply.status });
};

// Does `work` now and then again `everyMs` after it ended, not while the page is hidden.  The
// answer is a function that makes it do so at once.
export const poll = (everyMs, work) => {
  let timer;
  let running = false;
  let again = false;
  const run = async () => {
    clearTimeout(timer);
    if (running) {
      again = true;
      return;
    }
    if (document.hidden) return;
    running = true;
    again = false;
    try {
      await work();
    } finally {
      running = false;
      if (again) run();
      else timer = setTimeout(run, everyMs);
    }
  };
  document.addEventListener("visibilitychange", run);
  run();
  return run;
};
