// The table of runs: rows from the server, sorted, searched and chosen here, as hundreds of rows of
// Dash's components take seconds. What is chosen goes to the store "chosen", and so to the address.
(function () {
  const state = { rows: [], text: "", sort: "created", down: true, search: "", columns: [], timer: null };
  const FIXED = ["name", "verdict", "decades", "loss", "curve", "steps", "status"];
  const HEADS = { name: "run", decades: "first ÷ last, decades", loss: "loss", curve: "training loss" };
  const { element } = window.gradscope;
  const value = (row, key) => (FIXED.includes(key) || key === "created" ? row[key] : row.config[key]);
  const number = (x) => (x === undefined || x === null || x === "" ? NaN : Number(x));
  const say = (x) => {
    if (typeof x !== "number") return x === undefined || x === null ? "" : String(x);
    if (x === 0 || Number.isInteger(x) || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4)) return String(+x.toPrecision(Number.isInteger(x) ? 15 : 4));
    const [mantissa, exponent] = x.toExponential(2).split("e");
    return `${+mantissa}e${exponent}`; // as gradscope.wording.setting
  };

  // Words match anywhere in a row; `lr<0.1` and the like compare a column.
  function matches(row) {
    return state.search.trim().split(/\s+/).filter(Boolean).every((word) => {
      const compared = word.match(/^([^<>=]+)(<=|>=|=|<|>)(.+)$/);
      if (compared) {
        const [, key, sign, text] = compared;
        const have = value(row, key === "run" ? "name" : key);
        if (have === undefined || have === null) return false;
        const [a, b] = [number(have), number(text)];
        if (sign === "=") return String(have) === text || a === b;
        return sign === "<" ? a < b : sign === ">" ? a > b : sign === "<=" ? a <= b : a >= b;
      }
      const all = [row.name, row.verdict, row.status, row.model, row.said, ...Object.values(row.config)];
      return all.some((x) => String(x === undefined ? "" : x).toLowerCase().includes(word.toLowerCase()));
    });
  }

  function sorted(rows) {
    const key = state.sort === "curve" ? "loss" : state.sort;
    const order = (a, b) => {
      const [x, y] = [value(a, key), value(b, key)];
      const [m, n] = [number(x), number(y)];
      if (!isNaN(m) && !isNaN(n)) return m - n;
      if (isNaN(m) !== isNaN(n) && key !== "name") return isNaN(m) ? 1 : -1;
      return String(x).localeCompare(String(y), undefined, { numeric: true });
    };
    const done = rows.slice().sort(order);
    return state.down ? done.reverse() : done;
  }

  function spark(values) {
    const known = (values || []).filter((x) => x !== null);
    if (known.length < 2) return "";
    const [low, high] = [Math.min(...known, 0), Math.max(...known)]; // from 0: noise stays small
    const points = values
      .map((x, i) => x === null ? null : `${(i / (values.length - 1)) * 76 + 2},${20 - ((x - low) / (high - low || 1)) * 16}`)
      .filter(Boolean);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 80 22");
    svg.setAttribute("class", "spark");
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("points", points.join(" "));
    svg.append(line);
    return svg;
  }

  const shown = () => new Set(JSON.parse(document.getElementById("runs-panel").dataset.shown || "[]"));
  const choose = (names) => window.dash_clientside.set_props("chosen", { data: { runs: names, at: Date.now() } });

  function row(data, chosen) {
    const box = element("input", {
      type: "checkbox",
      "aria-label": `show ${data.name}`,
      onchange: (event) => {
        const now = shown();
        if (event.target.checked) now.add(data.name);
        else now.delete(data.name);
        choose([...now]);
      },
    });
    box.checked = chosen.has(data.name);
    const only = element("button", { class: "link", title: "Show this run alone", onclick: () => choose([data.name]) }, data.name);
    const verdict = data.problem ? "unreadable" : data.verdict === null ? "…" : data.verdict;
    const cells = {
      verdict: () => element("td", { class: data.problem ? "bad" : data.tone || "", title: data.problem || data.said || "" }, verdict),
      decades: () => element("td", { class: "number" }, say(data.decades)),
      loss: () => element("td", { class: "number" }, say(data.loss)),
      curve: () => element("td", { title: data.said || "" }, spark(data.spark)),
      steps: () => element("td", { class: "number" }, say(data.steps)),
      status: () => element("td", {}, data.status === "closed" ? "finished" : data.status),
    };
    const setting = (key) => element("td", { class: typeof data.config[key] === "number" ? "number" : "" }, say(data.config[key]));
    return element("tr", {}, element("td", {}, box), element("td", {}, only), ...state.columns.map((key) => (cells[key] || (() => setting(key)))()));
  }

  function draw() {
    const place = document.getElementById("runs-table");
    if (!place) return;
    const keys = {};
    for (const data of state.rows) for (const key of Object.keys(data.config)) (keys[key] = keys[key] || new Set()).add(String(data.config[key]));
    const settings = Object.keys(keys).filter((key) => keys[key].size > 1).slice(0, 6);
    // what is the same for all stands last
    const differs = (key) => key === "curve" || new Set(state.rows.map((data) => String(value(data, key)))).size > 1;
    const columns = [...settings, ...FIXED.slice(1)];
    state.columns = [...columns.filter(differs), ...columns.filter((key) => !differs(key))];
    const visible = sorted(state.rows.filter(matches));
    const chosen = shown();
    if (!place.firstChild) {
      const search = element("input", {
        type: "search",
        placeholder: "search, or lr<0.1",
        "aria-label": "search runs",
        oninput: (event) => { state.search = event.target.value; draw(); },
      });
      const all = element("button", { onclick: () => choose(sorted(state.rows.filter(matches)).map((r) => r.name)) }, "Choose these");
      const none = element("button", { title: "Show the newest and the worst", onclick: () => choose([]) }, "Choose none");
      place.append(
        element("div", { class: "bar" }, search, all, none, element("span", { id: "runs-count", role: "status", class: "caption" })),
        element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "all runs" }),
      );
    }
    document.getElementById("runs-count").textContent = `${visible.length} of ${state.rows.length} runs${state.sort === "created" ? ", the newest first" : ""}`;
    const heads = ["name", ...state.columns].map((key) => {
      const on = state.sort === key;
      const button = element("button", { onclick: () => { state.down = on ? !state.down : false; state.sort = key; draw(); } },
        (HEADS[key] || key) + (on ? (state.down ? " ▼" : " ▲") : ""));
      const number = visible.some((data) => typeof value(data, key) === "number") && key !== "name";
      return element("th", { scope: "col", class: number ? "number" : "", "aria-sort": on ? (state.down ? "descending" : "ascending") : "none" }, button);
    });
    const table = element("table", {},
      element("thead", {}, element("tr", {}, element("td", {}), ...heads)),
      element("tbody", {}, ...visible.map((data) => row(data, chosen))));
    place.lastChild.replaceChildren(table);
  }

  async function load() {
    const panel = document.getElementById("runs-panel");
    if (!panel || !panel.open) { state.timer = null; return; }
    try {
      const text = await (await fetch("export/runs.json")).text();
      if (text !== state.text) {
        state.text = text;
        state.rows = JSON.parse(text);
        draw();
      }
    } catch (error) { /* the banner says that the server is gone */ }
    state.timer = setTimeout(load, 1500);
  }

  document.addEventListener("toggle", (event) => {
    if (event.target.id === "runs-panel" && event.target.open && !state.timer) load();
  }, true);
  new MutationObserver((changes) => {
    if (changes.some((change) => change.target.id === "runs-panel") && state.rows.length) draw();
  }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-shown"], subtree: true });
})();
