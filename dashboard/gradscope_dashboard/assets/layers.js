// The table of layers, drawn here: a row of Dash's components takes a hundred times as long.
(function () {
  const go = (wanted) => window.dash_clientside.set_props("chosen", { data: { ...wanted, at: Date.now() } });

  function table(data) {
    const { element } = window.gradscope;
    const heads = data.heads.map((head) => {
      const mark = { ascending: " ▲", descending: " ▼", none: "" }[head.sorted];
      const button = element("button", { title: head.title, "data-sort": head.name, onclick: () => go({ sort: head.to }) }, head.label + mark);
      return element("th", { scope: "col", class: head.kind, "aria-sort": head.sorted }, button);
    });
    const rows = data.rows.map((cells) => element("tr", {}, ...cells.map((cell, i) => {
      const head = data.heads[i];
      if (head.name !== "name") return element("td", { class: head.kind + (data.odd.includes(cell) ? " odd" : "") }, cell);
      return element("td", {}, element("button", { onclick: () => go({ layer: cell }) }, cell));
    })));
    return element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  }

  // As page.captioned writes it.
  function caption(first, rest) {
    const { element } = window.gradscope;
    const more = element("button", { class: "link more", "aria-expanded": "false" }, "more");
    return element("div", { class: "caption" }, first, " ", element("span", { class: "rest" }, rest), " ", more);
  }

  function draw(data) {
    const place = document.getElementById("layer-table");
    if (!place || !data) return;
    const { element } = window.gradscope;
    const focused = place.contains(document.activeElement) && document.activeElement.dataset.sort;
    const scrolled = place.querySelector(".scroll") ? place.querySelector(".scroll").scrollLeft : 0;
    const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "layers" }, table(data));
    place.replaceChildren(
      element("h2", {}, data.title),
      caption(...data.caption),
      scroll,
      ...(data.more ? [element("button", { onclick: () => go({ rows: data.more }) }, "25 more")] : []),
    );
    scroll.scrollLeft = scrolled;
    const again = focused && place.querySelector(`[data-sort="${CSS.escape(focused)}"]`);
    if (again) again.focus();
  }

  window.dash_clientside.gradscope.layers = function (data) {
    draw(data);
    return data ? data.rows.length : 0;
  };
})();
