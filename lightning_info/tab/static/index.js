// The tab: which runs, which view, and its panels, each asked for when it comes into sight.

import {WAYS, differing, grouped} from './grouping.js';
import {drawPanel, made} from './panel.js';
import {contents, panel, pictureAddress, withPlotly, withStyle} from './server.js';

const RELOAD = 30000;
let queue = Promise.resolve();
let plotly = null; // the promise of it: panels are asked for while it is still loading
const state = {view: null, way: 'auto', pattern: '', filter: '', search: '', found: {views: [], runs: []}, round: 0};

export async function render() {
  withStyle();
  const main = made('main');
  document.body.replaceChildren(made('p', 'Reading the runs …', 'wait'));
  try {
    plotly = withPlotly();
    plotly.catch(() => {}); // said in the panels
    state.found = await contents();
  } catch (error) {
    document.body.replaceChildren(made('p', String(error.message), 'wait'));
    return;
  }
  if (!state.found.views.length) {
    const text = 'No run here has values of lightning_info yet. They appear with the first measured point.';
    document.body.replaceChildren(made('p', text, 'wait'));
    setTimeout(render, RELOAD);
    return;
  }
  state.view = state.found.views[0].name;
  document.body.replaceChildren(header(main), main);
  show(main);
  setInterval(() => document.hidden || refresh(main), RELOAD);
}

function header(main) {
  const bar = made('header');
  const tabs = made('nav');
  for (const {name, title} of state.found.views) {
    const button = made('button', title, name === state.view ? 'chosen' : '');
    button.dataset.view = name;
    button.addEventListener('click', () => {
      state.view = name;
      state.search = search.value = '';
      for (const other of tabs.children) other.classList.toggle('chosen', other === button);
      show(main);
    });
    tabs.append(button);
  }
  const way = made('select');
  const ways = {...WAYS, ...Object.fromEntries(differing(state.found.runs).map((n) => [`=${n}`, `by ${n}`]))};
  for (const [value, title] of Object.entries(ways)) {
    const option = made('option', title);
    option.value = value;
    way.append(option);
  }
  const pattern = field('pattern', 'for example lr[0-9.]+');
  pattern.hidden = state.way !== 'pattern';
  way.name = 'way';
  way.value = state.way;
  way.addEventListener('change', () => {
    state.way = way.value;
    pattern.hidden = way.value !== 'pattern';
    show(main);
  });
  pattern.addEventListener('change', () => set('pattern', pattern, main));
  const filter = field('filter', 'all runs');
  filter.addEventListener('change', () => set('filter', filter, main));
  const search = field('search', 'all quantities');
  search.addEventListener('input', () => set('search', search, main));
  bar.append(tabs, labelled('Runs', filter), labelled('Grouped', way), pattern, labelled('Show', search));
  return bar;
}

function field(name, placeholder) {
  const input = made('input');
  input.type = 'search';
  input.name = name;
  input.placeholder = placeholder;
  input.value = state[name];
  return input;
}

function labelled(text, input) {
  const label = made('label', `${text} `);
  label.append(input);
  return label;
}

function set(name, input, main) {
  try {
    if (name !== 'search') new RegExp(input.value);
  } catch (error) {
    input.setCustomValidity('That is no regular expression.');
    input.reportValidity();
    return;
  }
  input.setCustomValidity('');
  state[name] = input.value;
  show(main);
}

function groups() {
  return grouped(state.found.runs, state.way, state.pattern, state.filter);
}

function show(main) {
  state.round += 1;
  for (const plot of main.querySelectorAll('.plot.js-plotly-plot')) Plotly.purge(plot);
  main.replaceChildren();
  const view = state.found.views.find(({name}) => name === state.view);
  const wanted = state.search.toLowerCase();
  const panels = view.panels.filter(({title}) => title.toLowerCase().includes(wanted));
  if (!Object.keys(groups()).length) {
    main.append(made('p', 'No run has such a name.', 'wait'));
    return;
  }
  const seen = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (isIntersecting) {
        seen.unobserve(target);
        queue = queue.then(() => load(target)); // one after the other: the first is there soonest
      }
    }
  }, {rootMargin: '200px'});
  for (const {name, title} of panels) {
    const section = made('section');
    section.dataset.panel = name;
    section.append(made('h3', title), made('div', '', 'space'));
    main.append(section);
    seen.observe(section);
  }
  if (!panels.length) main.append(made('p', 'Nothing here has such a name.', 'wait'));
}

async function load(section) {
  const round = state.round;
  if (!section.isConnected) return;
  try {
    const found = await panel(state.view, section.dataset.panel, groups());
    if (round !== state.round) return;
    await drawPanel(section, found, pictureAddress, plotly);
    section.dataset.state = 'drawn';
  } catch (error) {
    if (round !== state.round) return;
    section.replaceChildren(made('h3', section.dataset.panel), made('p', String(error.message), 'note'));
    section.dataset.state = 'failed';
  }
}

/** Values that have come since: charts in sight are drawn anew, with their axes as the user left them. */
async function refresh(main) {
  const round = state.round;
  try {
    const found = await contents();
    if (round !== state.round || !found.views.length) return;
    const before = state.found;
    state.found = found;
    if (JSON.stringify(found) !== JSON.stringify(before)) {
      document.querySelector('header').replaceWith(header(main));
      const shown = ({views}) => JSON.stringify(views.find(({name}) => name === state.view));
      if (shown(found) !== shown(before) && shown(found)) return show(main);
    }
    for (const section of main.querySelectorAll('section[data-state=drawn]')) {
      const plot = section.querySelector('.plot');
      const {top, bottom} = section.getBoundingClientRect();
      if (!plot || bottom < 0 || top > innerHeight) continue;
      const {figure} = await panel(state.view, section.dataset.panel, groups());
      if (round !== state.round) return;
      if (figure && !figure.frames) await Plotly.react(plot, figure.data, {...figure.layout, uirevision: 'kept'});
    }
  } catch (error) {
    console.warn(`lightning_info: ${error.message}`);
  }
}
