// What is asked of the plugin's Python side.

const at = (path) => new URL(path, import.meta.url).href;

export const pictureAddress = (key) => `${at('./picture')}?key=${encodeURIComponent(key)}`;

export async function contents() {
  return answer(await fetch(at('./contents')));
}

export async function panel(view, name, groups, signal) {
  const body = JSON.stringify({view, panel: name, groups});
  return answer(await fetch(at('./panel'), {method: 'POST', body, signal}));
}

export function withPlotly() {
  return new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = at('./plotly.min.js');
    script.onload = resolve;
    script.onerror = () => reject(new Error("charts need plotly: pip install 'lightning-info[tab]'"));
    document.head.append(script);
  });
}

export function withStyle() {
  const link = document.createElement('link');
  link.rel = 'stylesheet';
  link.href = at('./style.css');
  document.head.append(link);
}

async function answer(response) {
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}
