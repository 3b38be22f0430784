// The net with its gradient on it: one row of boxes a run, opened and closed in place.
(function () {
  const opened = {};
  const sought = new Set();
  let last = null;
  const make = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const hex = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  // Black reads at 4.5 : 1 or better on all but the dark fills.
  function inkOn(fill) {
    const linear = hex(fill).map((x) => x / 255).map((x) => (x <= 0.04 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.19 ? "#ffffff" : "#000000";
  }

  function color(decades, data) {
    if (decades === null) return data.missing;
    if (decades === "zero") return data.zero;
    if (decades === "inf") return data.infinite;
    const place = Math.min(Math.max(0.5 + decades / (2 * data.limit), 0), 1);
    const scale = data.scale;
    let i = 0;
    while (i < scale.length - 2 && scale[i + 1][0] < place) i++;
    const [a, b] = [scale[i], scale[i + 1]];
    const t = (place - a[0]) / (b[0] - a[0]);
    const [p, q] = [hex(a[1]), hex(b[1])];
    return "#" + p.map((x, k) => Math.round(x + (q[k] - x) * t).toString(16).padStart(2, "0")).join("");
  }

  // 15 px carry what the last hidden layer gets; eight decades below it is a hairline.
  function width(decades) {
    if (decades === null || decades === "zero") return 0;
    if (decades === "inf") return 26;
    return Math.min(Math.max(15 * (1 + decades / 8), 1), 26);
  }

  const isOpen = (graph, module) => {
    const key = graph.run + "|" + module.name;
    return module.children.length > 0 && (key in opened ? opened[key] : module.open);
  };
  function visible(graph, modules, into, holders) {
    for (const module of modules) {
      if (isOpen(graph, module)) {
        const holder = { module, first: into.length };
        visible(graph, module.children, into, holders);
        holder.last = into.length - 1;
        // an outer bracket lies below those within it
        const inner = holders.filter((other) => other.first >= holder.first);
        holder.above = inner.length ? Math.max(...inner.map((other) => other.above)) + 1 : 0;
        holders.push(holder);
      } else into.push(module);
    }
    return into;
  }
  const kinds = (modules, into) => {
    for (const module of modules) {
      into.push(module.decades);
      kinds(module.children, into);
    }
    return into;
  };

  const end = (module) => (module.children.length ? end(module.children[module.children.length - 1]) : module);
  // The boxes i to j that each way passes, those past the same ones together. Of a way that begins or
  // ends within a closed box only the part outside shows; a shortcut within one is drawn over it.
  function past(graph, boxes) {
    const ways = new Map();
    const at = (layer) => boxes.findIndex((box) => box.first <= layer && layer <= box.last);
    for (const arc of graph.arcs) {
      let [i, j] = [at(arc.first), at(arc.last)];
      if (i < 0 || j < 0) continue;
      const inner = arc.form === "parallel" || arc.form === "branch";
      if (i !== j || inner) {
        if (boxes[i].first < arc.first) i++;
        if (boxes[j].last > arc.last) j--;
        if (i > j) continue;
      }
      const key = `${i},${j},${arc.share === null}`;
      if (!ways.has(key)) ways.set(key, { i, j, names: [], shares: [], form: arc.form });
      ways.get(key).names.push(arc.name);
      if (arc.share !== null) ways.get(key).shares.push(arc.share);
    }
    return ways;
  }

  function activate(node, label, action) {
    node.setAttribute("role", "button");
    node.setAttribute("tabindex", "0");
    node.setAttribute("aria-label", label);
    node.addEventListener("click", action);
    node.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      action();
    });
  }
  function toggle(graph, module, open) {
    opened[graph.run + "|" + module.name] = open;
    draw(last);
    const again = document.querySelector(`#net [data-module="${CSS.escape(graph.run + "|" + module.name)}"]`);
    if (again) again.focus();
  }

  // What the findings name: a ring around the box to look at first, and under the boxes a bar each
  // along all that it is about, with its words. Without a finding it is where least arrives.
  function alarms(graph, boxes, room) {
    const within = (box, from, to) => box.first <= to && from <= box.last;
    const found = graph.alarms.map((alarm) => ({
      words: `▲ ${alarm.words}`, name: alarm.name, kind: alarm.bad ? "alarm" : "warning",
      at: boxes.findIndex((box) => within(box, alarm.layer, alarm.layer)),
      bars: boxes.map((box) => alarm.stretches.some(([from, to]) => within(box, from, to))),
    })).filter((alarm) => alarm.at >= 0);
    const at = boxes.findIndex((box) => box.name === graph.least || graph.least.startsWith(box.name + "."));
    const same = found.find((alarm) => alarm.name === graph.least);
    if (same) same.words += room > 500 ? `: ${graph.said} there` : ""; // the head says it, too
    else if (at >= 0) {
      const kind = graph.little && !found.some((alarm) => alarm.kind === "alarm") ? "alarm" : "least";
      found.push({ words: `${kind === "least" ? "▵" : "▲"} least: ${graph.least}, ${graph.said}`, kind, at, bars: boxes.map((_, i) => i === at) });
    }
    return found;
  }

  function picture(graph, data, room, alone) {
    const holders = [];
    const boxes = visible(graph, graph.modules, [], holders);
    // beyond 60 boxes they lose their names rather than that not all of them are in sight
    const step = Math.max(Math.min((room - 20) / Math.max(boxes.length, 1), 150), boxes.length > 60 ? 8 : 20);
    const marks = alarms(graph, boxes, room);
    const long = (mark) => mark.words.length * (mark.kind === "least" ? 7 : 7.8);
    const wide = Math.max(room, boxes.length * step + 20, ...marks.map((mark) => long(mark) + 8));
    const gap = Math.min(Math.max(step * 0.22, 2), 18);
    const size = step - gap;
    const flat = size >= 76;
    const ends = boxes.map(end);
    const ways = past(graph, boxes);
    const reach = Math.max(0, ...[...ways.values()].map((way) => way.j - way.i + 1));
    const levels = Math.max(0, ...holders.map((holder) => holder.above)) + 1;
    const [top, high] = [ways.size ? Math.min(58 + reach * 11, 124) : 14, (flat ? 52 : 120) + (alone ? (flat ? 20 : 50) : 0)];
    const middle = top + high / 2;
    const left = (i) => 10 + i * step + gap / 2;
    const nameless = size < 11;
    const below = top + high + (nameless ? 16 : 4);
    const under = below + 24 * marks.length;
    const tall = under + 8 + 20 * levels;
    const svg = make("svg", { viewBox: `0 0 ${wide} ${tall}`, width: wide, height: tall });
    const behind = make("g", {});
    const front = make("g", {});
    svg.append(behind, front);

    // the way from box to box: what leaves the left one, what enters the right one
    const join = (i, from, to) => {
      const wide = Math.max(width(ends[i].decades), 0.01);
      behind.append(make("rect", { x: left(i) + size + from * gap, y: middle - wide / 2, width: (to - from) * gap, height: wide, fill: data.trunk }));
    };
    boxes.slice(1).forEach((box, i) => {
      if (graph.leaves[box.first]) join(i, 0, 0.5);
      if (graph.enters[box.first]) join(i, 0.5, 1);
    });
    // ways past boxes, over what they go around; shortcuts within one box are drawn as one, over it
    for (const { i, j, names, shares, form } of ways.values()) {
      const rise = Math.min(26 + (j - i) * 11, top - 30);
      const split = shares.length > 0;
      const plain = form === "parallel" || form === "branch";
      const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
      const thick = split ? Math.max(width(boxes[i].decades) * mean * Math.min(1, size / 50), 1) : 2;
      const ink = plain ? data.trunk : data.shortcut;
      // a thin way begins and ends where the row does, between boxes: one as wide as they has no room there
      const [from, to] = split ? [left(i) + thick / 2, left(j) + size - thick / 2] : [left(i) - gap / 2, left(j) + size + gap / 2];
      const foot = split ? top + 12 : middle;
      const path = make("path", {
        d: `M ${from} ${foot} V ${Math.min(foot, top + 12)} C ${from} ${top - rise * 1.2}, ${to} ${top - rise * 1.2}, ${to} ${top + 12} V ${foot}`,
        fill: "none", stroke: ink, "stroke-width": thick, "data-form": form, ...(split || plain ? {} : { "stroke-dasharray": "5 4" }),
      });
      const percent = (x) => (x * 100).toFixed(0);
      const [low, high] = [percent(Math.min(...shares)), percent(Math.max(...shares))];
      const said = !split ? form : low === high ? `${low}%` : `${low}–${high}%`;
      const around = `${plain ? "way" : "shortcut"} around ${[...new Set(names)].join(", ")}`;
      path.append(make("title", {}, split ? `${around}: ${said} of the energy` : `${around}, ${form}: its share of the gradient is not known`));
      behind.append(path);
      if (!plain && left(j) + size - left(i) > (said.length > 5 ? 62 : 30)) {
        front.append(make("text", { x: (from + to) / 2, y: top + 3 - rise * 0.9 - thick / 2 - 4, "text-anchor": "middle", class: "small", fill: ink }, said));
      }
    }
    // the boxes
    boxes.forEach((box, i) => {
      const fill = color(box.decades, data);
      const mark = marks.find((one) => one.at === i && one.kind !== "least");
      const node = make("g", { class: "module", "data-module": graph.run + "|" + box.name });
      node.append(make("rect", {
        x: left(i), y: top, width: size, height: high, rx: 5, fill,
        class: mark ? `ring ${mark.kind}${mark === marks[0] ? " worst" : ""}` : box.children.length && size > 10 ? "holds" : "",
      }));
      const parts = box.name.split(".");
      const short = parts.slice(/^\d+$/.test(parts[parts.length - 1]) ? -2 : -1).join(".");
      const plus = box.children.length ? "▸ " : "";
      const ink = inkOn(fill);
      const [x, y] = [left(i) + size / 2, middle];
      const fits = Math.floor((flat ? size : high) / 7.2);
      const text = plus + (short.length + plus.length > fits ? "…" + short.slice(plus.length + 1 - fits) : short);
      if (size >= 11) {
        const turned = flat ? {} : { transform: `rotate(-90 ${x} ${y})` };
        node.append(make("text", { x, y: y + (flat ? -3 : 4), "text-anchor": "middle", fill: ink, ...turned }, text));
        if (flat) node.append(make("text", { x, y: y + 14, "text-anchor": "middle", class: "small", fill: ink }, box.said.length * 6 < size ? box.said : ""));
      }
      node.append(make("title", {}, `${box.name}${box.kind ? ` (${box.kind})` : ""}: ${box.said}`));
      const label = `${box.name}: gradient ${box.said}${mark ? `; ${mark.words.slice(2)}` : ""}`;
      if (box.children.length) activate(node, `${label}; open`, () => toggle(graph, box, true));
      else activate(node, `${label}; history`, () => window.dash_clientside.set_props("chosen", { data: { layer: box.name, at: Date.now() } }));
      front.append(node);
      const every = Math.ceil(70 / step);
      if (nameless && i % every === 0) front.append(make("text", { x, y: top + high + 13, "text-anchor": "middle", class: "small muted" }, short.length > 9 ? `…${short.slice(-8)}` : short));
    });
    // what is marked
    marks.forEach((mark, row) => {
      const y = below + 24 * row;
      mark.bars.forEach((is, i) => {
        if (!is) return;
        const on = mark.bars[i + 1] ? step : size;
        front.append(make("rect", { x: left(i), y: y + 1, width: on, height: 4, class: `bar ${mark.kind}` }));
      });
      const half = long(mark) / 2;
      const x = Math.max(Math.min(left(mark.at) + size / 2, wide - half - 4), half + 4);
      front.append(make("text", { x, y: y + 18, "text-anchor": "middle", class: `words ${mark.kind}` }, mark.words));
    });
    // what is open, to be closed again
    for (const holder of holders) {
      if (holder.last < holder.first) continue;
      const [from, to] = [left(holder.first), left(holder.last) + size];
      const line = under + 1 + 20 * holder.above;
      const node = make("g", { class: "holder", "data-module": graph.run + "|" + holder.module.name });
      node.append(make("path", { d: `M ${from} ${line} v 4 H ${to} v -4`, fill: "none", class: "bracket" }));
      const name = holder.module.name;
      const fits = Math.floor((to - from) / 6.5);
      const text = fits < 3 ? "▾" : "▾ " + (name.length + 2 > fits ? "…" + name.slice(3 - fits) : name);
      const within = Math.min((from + to) / 2, Math.max(room / 2, from + 60)); // in sight at first
      node.append(make("text", { x: within, y: line + 16, "text-anchor": "middle", class: "small" }, text));
      node.append(make("rect", { x: from, y: line - 2, width: to - from, height: 20, fill: "transparent" }));
      activate(node, `close ${name}`, () => toggle(graph, holder.module, false));
      front.append(node);
    }
    return svg;
  }
  function legend(data) {
    const bar = document.createElement("div");
    bar.className = "legend caption";
    const colors = document.createElement("i");
    colors.style.background = `linear-gradient(90deg, ${data.scale.map(([at, color]) => `${color} ${at * 100}%`).join(", ")})`;
    const power = [...String(data.limit)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
    bar.append(`10⁻${power} of the gradient`, colors, `10${power} ×`);
    const sign = (color, words) => {
      const box = document.createElement("i");
      box.className = "sign";
      box.style.background = color;
      bar.append(box, words);
    };
    const seen = new Set(data.graphs.flatMap((graph) => kinds(graph.modules, [])));
    if (seen.has("zero")) sign(data.zero, "exactly 0");
    if (seen.has("inf")) sign(data.infinite, "infinite");
    if (seen.has(null)) sign(data.missing, "NaN, or not read");
    return bar;
  }
  function draw(data) {
    const place = document.getElementById("net");
    if (!place || !data) return;
    last = data;
    const room = Math.max(place.clientWidth, 300);
    const focused = place.contains(document.activeElement) && document.activeElement.dataset.module;
    const scrolled = [...place.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    place.replaceChildren();
    if (!data.graphs.length) place.append("No step has been recorded yet.");
    if (data.graphs.length) place.append(legend(data));
    data.graphs.forEach((graph, i) => {
      const head = document.createElement("h3");
      head.textContent = graph.run;
      head.style.color = graph.color;
      const least = document.createElement("span");
      least.textContent = graph.words;
      const scroll = document.createElement("div");
      scroll.className = "scroll";
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", `net of ${graph.run}`);
      scroll.append(picture(graph, data, room, data.graphs.length === 1));
      head.append(least);
      place.append(head, scroll);
      // the worst is in sight at first, which may be told after the net is drawn
      const ring = scroll.querySelector(".worst");
      if (ring && !(i in scrolled && sought.has(graph.run))) {
        scroll.scrollLeft = Number(ring.getAttribute("x")) - room / 2;
        sought.add(graph.run);
      } else if (i in scrolled) scroll.scrollLeft = scrolled[i];
    });
    const again = focused && place.querySelector(`[data-module="${CSS.escape(focused)}"]`);
    if (again) again.focus({ preventScroll: true });
    if (data.left_out) place.append(`These are the worst; ${data.left_out} more runs are not drawn: choose fewer.`);
  }

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.gradscope = Object.assign(window.dash_clientside.gradscope || {}, {
    net: function (data) {
      requestAnimationFrame(() => draw(data));
      return data ? data.graphs.length : 0;
    },
  });
  window.addEventListener("resize", () => draw(last));
})();
