
/** What the page holds packed. */
async function unpacked(id) {
  const letters = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
}

async function drawReport() {
  const script = made('script', await unpacked('plotly'));
  document.head.append(script);
  const {title, views} = JSON.parse(await unpacked('report'));
  const main = made('main');
  const contents = made('nav');
  const bar = made('header');
  bar.append(made('strong', title), contents);
  document.body.append(bar, main);
  const drawing = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (isIntersecting && !target.dataset.state) {
        target.dataset.state = 'begun';
        drawPanel(target, target.panel).then(() => { target.dataset.state = 'drawn'; });
      }
    }
  }, {rootMargin: '300px'});
  for (const [number, view] of views.entries()) {
    const link = made('a', view.title, 'jump');
    link.href = `#view${number}`;
    contents.append(link);
    const heading = made('h2', view.title);
    heading.id = `view${number}`;
    main.append(heading);
    for (const panel of view.panels) {
      const section = made('section');
      section.panel = panel;
      section.append(made('h3', panel.title), made('div', '', panel.figure ? 'space' : ''));
      main.append(section);
      drawing.observe(section);
    }
  }
  window.addEventListener('beforeprint', () => {
    for (const section of main.querySelectorAll('section:not([data-state])')) drawPanel(section, section.panel);
  });
}

drawReport().catch((error) => {
  document.body.append(made('p', `This browser cannot show the report (${error.message}); a newer one can.`, 'wait'));
});
