// What only the browser knows: the colours its system prefers, how wide it is, what was clicked.
window.gradscope = {
  // An element with `attributes`, those called `on...` listeners, and what it holds.
  element: function (tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  },
};
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.gradscope = Object.assign(window.dash_clientside.gradscope || {}, {
  screen: function (search, _resized, known) {
    const asked = new URLSearchParams(search || "").get("theme");
    const prefersDark = window.matchMedia("(prefers-color-scheme: dark)").matches;
    const theme = asked === "dark" || asked === "light" ? asked : prefersDark ? "dark" : "light";
    const narrow = window.innerWidth < 700;
    document.documentElement.dataset.theme = theme;
    if (known && known.theme === theme && known.narrow === narrow) {
      return window.dash_clientside.no_update;
    }
    return { theme: theme, narrow: narrow };
  },
  // The field for a step, with buttons to the ones before and after it.
  stepField: function (shown) {
    const place = document.getElementById("step-field");
    if (!place || !shown) return window.dash_clientside.no_update;
    const { element } = window.gradscope;
    const go = (step) => window.dash_clientside.set_props("chosen", { data: { step: step, at: Date.now() } });
    if (!place.firstChild) {
      const field = element("input", { type: "number", id: "step-number", min: 0, step: 1, inputmode: "numeric" });
      field.addEventListener("change", () => field.value !== "" && go(Math.round(Number(field.value))));
      const by = (way, sign, name) => element("button", { "aria-label": name, onclick: () => go((field.value = Math.max(Number(field.value) + way, 0))) }, sign);
      place.append(
        element("label", { for: "step-number" }, "Step"), by(-1, "−", "Step before"), field, by(1, "+", "Step after"),
      );
    }
    const field = place.querySelector("input");
    field.max = shown[1];
    if (field.value !== String(shown[0])) field.value = shown[0];
    return shown;
  },
  // Clicks in the order in which they came: the server handles those that it has not handled yet.
  queue: function (_set, _do, queued) {
    const pressed = window.dash_clientside.callback_context.triggered
      .filter((t) => t.value)
      .map((t) => JSON.parse(t.prop_id.slice(0, t.prop_id.lastIndexOf("."))));
    return pressed.length ? (queued || []).concat(pressed) : window.dash_clientside.no_update;
  },
});

// A server that has ended answers nothing any more: the page says so, and when it is back.
const ask = window.fetch;
window.fetch = function (...request) {
  const say = (gone) => {
    const banner = document.getElementById("offline");
    if (banner && banner.hidden === gone) banner.hidden = !gone;
  };
  return ask.apply(this, request).then(
    (answer) => (say(false), answer),
    (error) => {
      if (error.name !== "AbortError") say(true);
      throw error;
    },
  );
};

// Turning a phone or resizing a window may change the layout of the figures.
window.addEventListener("resize", function () {
  const button = document.getElementById("resized");
  if (button) button.click();
});

// On a phone a caption shows its first sentence until it is asked for more.
window.addEventListener("click", function ({ target }) {
  if (!target.matches(".caption .more")) return;
  const open = target.ariaExpanded === "true";
  target.ariaExpanded = String(!open);
  target.textContent = open ? "more" : "less";
});

// Escape closes what is open: a layer's history, the menu of exports.
window.addEventListener("keydown", function (event) {
  if (event.key !== "Escape") return;
  document.querySelectorAll("#drawer button[aria-label='Close layer']").forEach((b) => b.click());
  document.querySelectorAll("#exports details[open]").forEach((d) => d.removeAttribute("open"));
});

// Dash's slider has no name of its own for a screen reader.
new MutationObserver(function () {
  document.querySelectorAll("#steps [role=slider]:not([aria-label])").forEach(function (thumb) {
    thumb.setAttribute("aria-label", "Step of the training");
  });
}).observe(document.documentElement, { childList: true, subtree: true });

// Where no slider is, the strip of events lies along the steps of the first chart, zoomed or not.
let followed = null;
function alongTheSteps() {
  const strip = document.getElementById("timeline");
  const plot = document.querySelector(["training", "speed", "heatmap"].map((id) => `#${id} .js-plotly-plot`).join());
  if (!strip) return;
  if (plot && plot._ev && plot._ev !== followed) { // a whole new figure has new events
    followed = plot._ev;
    plot.on("plotly_afterplot", alongTheSteps);
  }
  const layout = plot && plot._fullLayout;
  const alone = layout && layout.xaxis && plot.data.length && layout._subplots && layout._subplots.xaxis.length === 1;
  strip.classList.toggle("along", Boolean(alone));
  if (!alone) {
    for (const event of strip.querySelectorAll(".event")) event.style.left = event.dataset.left;
    return;
  }
  const left = plot.getBoundingClientRect().left + layout._size.l - strip.getBoundingClientRect().left;
  strip.style.setProperty("--left", `${Math.round(left)}px`);
  strip.style.setProperty("--wide", `${Math.round(layout._size.w)}px`);
  for (const event of strip.querySelectorAll(".event")) {
    const at = layout.xaxis.r2p(Number(event.dataset.step)) / layout._size.w; // "range" is of before
    event.style.left = `${100 * at}%`;
    event.hidden = at < -0.001 || at > 1.001;
  }
}
let waiting = false;
// what plotly draws within a figure tells nothing, and is most of it
const outside = ({ target }) => target instanceof HTMLElement && [null, target].includes(target.closest(".js-plotly-plot"));
new MutationObserver((changes) => {
  if (waiting || !changes.some(outside)) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    alongTheSteps();
    document.querySelectorAll(SCROLLING).forEach(fade);
  });
}).observe(document, { childList: true, subtree: true });

// What is wider than its place fades where there is more to scroll to.
const SCROLLING = ".scroll, #tabs, .choice, #cards.many, pre";
function fade(place) {
  const more = (name, is) => place.classList.contains(name) !== is && place.classList.toggle(name, is);
  more("more-left", place.scrollLeft > 2);
  more("more-right", place.scrollLeft + place.clientWidth < place.scrollWidth - 2);
  more("more-below", place.scrollTop + place.clientHeight < place.scrollHeight - 2);
}
document.addEventListener("scroll", ({ target }) => {
  if (target.matches && target.matches(SCROLLING)) fade(target);
}, true);

// The view that is open stands in sight where the tabs do not all fit.
new MutationObserver((changes) => {
  for (const { target } of changes) {
    const tabs = target.closest("#tabs");
    if (tabs && target.ariaPressed === "true") {
      tabs.scrollTo({ left: target.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - target.offsetWidth) / 2 });
    }
  }
}).observe(document, { subtree: true, attributeFilter: ["aria-pressed"] });
