// The net with its gradient on it: one row of boxes a run, opened and closed in place.
(function () {
  const opened = {};
  let last = null;
  const make = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const hex = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const dark = (color) => { const [r, g, b] = hex(color); return 0.299 * r + 0.587 * g + 0.114 * b < 140; };

  function color(decades, data, limit) {
    if (decades === null) return data.missing;
    if (decades === "zero") return data.zero;
    if (decades === "inf") return data.infinite;
    const place = Math.min(Math.max(0.5 + decades / (2 * limit), 0), 1);
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
  const values = (modules, into) => {
    for (const module of modules) {
      if (typeof module.decades === "number") into.push(Math.abs(module.decades));
      values(module.children, into);
    }
    return into;
  };

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

  function picture(graph, data, room) {
    const holders = [];
    const boxes = visible(graph, graph.modules, [], holders);
    const step = Math.max(Math.min((room - 20) / Math.max(boxes.length, 1), 120), 20);
    const wide = Math.max(room, boxes.length * step + 20);
    const gap = Math.min(Math.max(step * 0.22, 4), 18);
    const size = step - gap;
    const flat = size >= 76;
    const reach = Math.max(0, ...graph.arcs.map((arc) => boxes.filter((box) => box.last >= arc.first && box.first <= arc.last).length));
    const levels = Math.max(0, ...holders.map((holder) => holder.above)) + 1;
    const [top, high] = [graph.arcs.length ? Math.min(58 + reach * 11, 124) : 14, flat ? 52 : 120];
    const middle = top + high / 2;
    const all = values(graph.modules, []).sort((a, b) => a - b);
    const limit = Math.max(all[Math.floor(all.length * 0.97)] || 0, 3);
    const left = (i) => 10 + i * step + gap / 2;
    const svg = make("svg", { viewBox: `0 0 ${wide} ${top + high + 28 + 20 * levels}`, width: wide, height: top + high + 28 + 20 * levels });
    const behind = make("g", {});
    const front = make("g", {});
    svg.append(behind, front);

    // the way from box to box
    boxes.forEach((box, i) => {
      if (i + 1 === boxes.length) return;
      behind.append(make("rect", {
        x: left(i) + size, y: middle - width(box.decades) / 2, width: gap, height: Math.max(width(box.decades), 0.01), fill: data.trunk,
      }));
    });
    // shortcuts, over what they go around; those within one box are drawn as one
    const at = (layer) => boxes.findIndex((box) => box.first <= layer && layer <= box.last);
    const arcs = new Map();
    for (const arc of graph.arcs) {
      const [i, j] = [at(arc.first), at(arc.last)];
      if (i < 0 || j < 0) continue;
      const key = `${i},${j},${arc.share === null}`;
      if (!arcs.has(key)) arcs.set(key, { i, j, names: [], shares: [], form: arc.form });
      arcs.get(key).names.push(arc.name);
      if (arc.share !== null) arcs.get(key).shares.push(arc.share);
    }
    for (const { i, j, names, shares, form } of arcs.values()) {
      const rise = Math.min(26 + (j - i) * 11, top - 30);
      const split = shares.length > 0;
      const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
      const thick = split ? Math.max(width(boxes[i].decades) * mean * Math.min(1, size / 50), 1) : 1.5;
      const [from, to] = [left(i) + thick / 2, left(j) + size - thick / 2];
      const path = make("path", {
        d: `M ${from} ${top + 12} C ${from} ${top - rise * 1.2}, ${to} ${top - rise * 1.2}, ${to} ${top + 12}`,
        fill: "none", stroke: data.shortcut, "stroke-width": thick, ...(split ? {} : { "stroke-dasharray": "5 4" }),
      });
      const percent = (x) => (x * 100).toFixed(0);
      const [low, high] = [percent(Math.min(...shares)), percent(Math.max(...shares))];
      const said = low === high ? `${low} %` : `${low}–${high} %`;
      path.append(make("title", {}, `shortcut around ${[...new Set(names)].join(", ")}: ${split ? `${said} of the energy` : `${form}, not split`}`));
      behind.append(path);
      if (split && left(j) + size - left(i) > (said.length > 5 ? 62 : 30)) {
        front.append(make("text", { x: (from + to) / 2, y: top + 3 - rise * 0.9 - thick / 2 - 4, "text-anchor": "middle", class: "small", fill: data.shortcut }, said));
      }
    }
    // the boxes
    boxes.forEach((box, i) => {
      const fill = color(box.decades, data, limit);
      const starved = graph.starves && (box.name === graph.starves || graph.starves.startsWith(box.name + "."));
      const node = make("g", { class: "module", "data-module": graph.run + "|" + box.name });
      node.append(make("rect", {
        x: left(i), y: top, width: size, height: high, rx: 5, fill,
        class: starved ? "starved" : box.children.length ? "holds" : "",
      }));
      const short = box.name.split(".").slice(-2).join(".") || box.name;
      const plus = box.children.length ? "+ " : "";
      const ink = dark(fill) ? "#ffffff" : "#111820";
      const [x, y] = [left(i) + size / 2, middle];
      const fits = Math.floor((flat ? size : high) / 7.2);
      const text = plus + (short.length + plus.length > fits ? "…" + short.slice(plus.length + 1 - fits) : short);
      if (size >= 11) {
        const turned = flat ? {} : { transform: `rotate(-90 ${x} ${y})` };
        node.append(make("text", { x, y: y + (flat ? -3 : 4), "text-anchor": "middle", fill: ink, ...turned }, text));
        if (flat) node.append(make("text", { x, y: y + 14, "text-anchor": "middle", class: "small", fill: ink }, box.said.length * 6 < size ? box.said : ""));
      }
      node.append(make("title", {}, `${box.name}${box.kind ? ` (${box.kind})` : ""}: ${box.said}`));
      const label = `${box.name}: gradient ${box.said}`;
      if (box.children.length) activate(node, `${label}; open`, () => toggle(graph, box, true));
      else activate(node, `${label}; history`, () => window.dash_clientside.set_props("chosen", { data: { layer: box.name, at: Date.now() } }));
      front.append(node);
      if (starved) {
        const anchor = x < 170 ? "start" : x > wide - 170 ? "end" : "middle";
        front.append(make("text", { x: anchor === "start" ? left(i) : anchor === "end" ? left(i) + size : x, y: top + high + 14 + 20 * levels, "text-anchor": anchor, class: "starving" }, `▲ ${graph.starves} starves: ${graph.least}`));
      }
    });
    // what is open, to be closed again
    for (const holder of holders) {
      if (holder.last < holder.first) continue;
      const [from, to] = [left(holder.first), left(holder.last) + size];
      const under = top + high + 5 + 20 * holder.above;
      const node = make("g", { class: "holder", "data-module": graph.run + "|" + holder.module.name });
      node.append(make("path", { d: `M ${from} ${under} v 4 H ${to} v -4`, fill: "none", class: "bracket" }));
      const name = holder.module.name;
      const fits = Math.floor((to - from) / 6.5);
      const text = fits < 3 ? "−" : "− " + (name.length + 2 > fits ? "…" + name.slice(3 - fits) : name);
      node.append(make("text", { x: (from + to) / 2, y: under + 16, "text-anchor": "middle", class: "small" }, text));
      node.append(make("rect", { x: from, y: under - 2, width: to - from, height: 20, fill: "transparent" }));
      activate(node, `close ${name}`, () => toggle(graph, holder.module, false));
      front.append(node);
    }
    return svg;
  }
  function draw(data) {
    const place = document.getElementById("net");
    if (!place || !data) return;
    last = data;
    const room = Math.max(place.clientWidth, 300);
    const scrolled = [...place.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    place.replaceChildren();
    if (!data.graphs.length) place.append("No step has been recorded yet.");
    data.graphs.forEach((graph, i) => {
      const head = document.createElement("h3");
      head.textContent = graph.run;
      head.style.color = graph.color;
      const scroll = document.createElement("div");
      scroll.className = "scroll";
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", `net of ${graph.run}`);
      scroll.append(picture(graph, data, room));
      place.append(head, scroll);
      scroll.scrollLeft = scrolled[i] || 0;
    });
    if (data.left_out) place.append(`${data.left_out} more runs are not drawn: choose fewer.`);
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
