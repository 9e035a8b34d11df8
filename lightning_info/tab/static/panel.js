// Draws one panel: a chart, the words beside it, notes, a table, texts, pictures.
// Names of runs and tags are the user's: they go into the page as text, never as HTML.

const CONFIG = {
  displaylogo: false,
  responsive: true,
  plotlyServerURL: '', // newer versions of plotly offer to upload a chart
  modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'sendChartToCloud', 'sendDataToCloud'],
  toImageButtonOptions: {format: 'svg'},
};

export function made(kind, text = '', className = '') {
  const element = document.createElement(kind);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

export async function drawPanel(element, panel, pictureAddress = (key) => key, plotly = null) {
  const body = made('div', '', 'body');
  const left = made('div', '', 'chart');
  element.replaceChildren(made('h3', panel.title), body);
  body.append(left);
  const words = wordsOf(panel);
  if (words.childNodes.length) body.append(words);
  const plot = panel.figure ? made('div', '', 'plot') : null;
  if (plot) left.append(...controlsOf(plot, panel.figure.layout), plot);
  if (panel.table) left.append(tableOf(panel.table));
  for (const [number, [title, text]] of (panel.texts || []).entries()) {
    const details = made('details');
    details.open = number === 0;
    details.append(made('summary', title), made('pre', text));
    left.append(details);
  }
  for (const [title, key] of panel.pictures || []) {
    const figure = made('figure');
    const image = made('img');
    image.alt = title;
    image.loading = 'lazy';
    image.src = pictureAddress(key);
    figure.append(image, made('figcaption', title));
    left.append(figure);
  }
  if (plot) {
    const {data, layout, frames} = panel.figure;
    plot.style.minHeight = `${layout.height}px`;
    await plotly; // the words are there before it is
    if (!plot.isConnected) return;
    await Plotly.newPlot(plot, {data, layout, frames: frames || [], config: CONFIG});
  }
}

function wordsOf(panel) {
  const box = made('div', '', 'words');
  const {what, reading, caution} = panel.words || {};
  const parts = [['What it is', what], ['How to read it', reading], ['When not to trust it', caution]];
  for (const [title, text] of parts) {
    if (text) box.append(made('h4', title), made('p', text));
  }
  for (const note of panel.notes || []) box.append(made('p', note, 'note'));
  return box;
}

function tableOf({columns, rows}) {
  const table = made('table');
  const head = table.createTHead().insertRow();
  for (const title of columns) head.append(made('th', title));
  const body = table.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((cell) => row.append(made('td', cell)));
  }
  const box = made('div', '', 'table');
  box.append(table);
  return box;
}

function controlsOf(plot, layout) {
  const known = {
    log: ['log axis', (on) => Plotly.relayout(plot, {'yaxis.type': on ? 'log' : 'linear', 'yaxis.autorange': true})],
    log_x: ['log axis to the right', (on) => Plotly.relayout(plot, {'xaxis.type': on ? 'log' : 'linear'})],
    epochs: ['epochs', (on) => useEpochs(plot, on)],
  };
  const wanted = (layout.meta && layout.meta.controls) || [];
  if (!wanted.length) return [];
  const box = made('div', '', 'controls');
  for (const name of wanted) {
    const [title, act] = known[name];
    const label = made('label');
    const tick = made('input');
    tick.type = 'checkbox';
    tick.name = name;
    tick.addEventListener('change', () => act(tick.checked));
    label.append(tick, ` ${title}`);
    box.append(label);
  }
  return [box];
}

function useEpochs(plot, on) {
  const x = plot.data.map((trace) => (on ? trace.meta.epochs : trace.meta.steps));
  return Plotly.update(plot, {x}, {'xaxis.title.text': on ? 'epochs' : 'optimiser steps', 'xaxis.autorange': true});
}
