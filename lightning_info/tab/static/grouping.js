// Which runs are shown as one: their mean, with its band.

const MOST_ALONE = 6;

export const WAYS = {
  auto: 'automatically',
  each: 'each run alone',
  folder: 'by folder',
  pattern: 'by a regular expression',
};

/** Groups of names, {group: [run, ...]}, of those whose name matches a filter. */
export function grouped(runs, way, pattern, filter) {
  const wanted = filter ? new RegExp(filter) : null;
  const chosen = runs.filter(({name}) => !wanted || wanted.test(name));
  const key = keyOf(way, pattern, chosen.length);
  const found = new Map();
  for (const run of chosen) {
    const group = key(run);
    found.set(group, [...(found.get(group) || []), run.name]);
  }
  return Object.fromEntries(found);
}

function keyOf(way, pattern, number) {
  const each = ({name}) => name;
  const folder = ({name}) => (name.includes('/') ? name.slice(0, name.lastIndexOf('/')) : name);
  if (way === 'each') return each;
  if (way === 'folder') return folder;
  if (way === 'pattern' && pattern) {
    const expression = new RegExp(pattern);
    return ({name}) => {
      const match = expression.exec(name);
      if (!match) return 'others';
      return match.slice(1).filter(Boolean).join(' ') || match[0] || 'all runs';
    };
  }
  if (way.startsWith('=')) return ({settings}) => `${way.slice(1)}=${settings[way.slice(1)] ?? '?'}`;
  return number > MOST_ALONE ? folder : each;
}

/** Names of hyperparameters that differ between runs. */
export function differing(runs) {
  const names = new Set(runs.flatMap(({settings}) => Object.keys(settings)));
  return [...names].filter((name) => new Set(runs.map(({settings}) => settings[name])).size > 1);
}
