// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const minute = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });

export const count = (value) => whole.format(value);
export const short = (value) => compact.format(value);
export const rate = (value) => (value > 0 && value < 10 ? three.format(value) : count(value));

export const percent = (share, digits = 1) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;

export const seconds = (value) => {
  if (value >= 1) return `${three.format(value)} s`;
  return value >= 1e-3 ? `${three.format(value * 1e3)} ms` : `${three.format(value * 1e6)} µs`;
};

export const bytes = (value) => {
  if (value < 1024) return `${value} B`;
  return value >= 1 << 20 ? `${three.format(value / (1 << 20))} MiB` : `${three.format(value / 1024)} KiB`;
};

export const span = (value) => {
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return `${Math.floor(value)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 60 / 24)} days`;
};

// Of Unix times in seconds.
export const time = (at) => clock.format(at * 1000);
export const timeOfDay = (at) => minute.format(at * 1000);

export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;
