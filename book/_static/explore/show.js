/* The explorables: pictures that are computed while a reader moves something; see solve.js. */
addEventListener("DOMContentLoaded", function () {
  const { solve: S, given: G } = latephase;
  const BLUE = "#2f7fbf", ORANGE = "#e0861a", GREEN = "#029e73", GREY = "#7b7b7b";
  const SVG = "http://www.w3.org/2000/svg";
  const LEVELS = G.levels, LIVE = LEVELS.filter((level) => level <= 100);

  /* An element of HTML, or of SVG where it is one, with attributes and what it contains. */
  const DRAWN = new Set("svg g path circle line text title".split(" "));
  function make(name, attributes = {}, ...content) {
    const node = DRAWN.has(name) ? document.createElementNS(SVG, name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...content);
    return node;
  }
  const redraw = (node, ...content) => node.replaceChildren(...content);
  const fixed = (value) => value.toFixed(3);
  const path = (points) => points.map(([a, b], k) => `${k ? "L" : "M"}${fixed(a)},${fixed(b)}`).join("");

  /* A number as a book sets it: 2.1 × 10⁻⁷. */
  function number(value, digits = 2) {
    if (value === 0 || (Math.abs(value) >= 1e-2 && Math.abs(value) < 1e4)) {
      return String(Number(value.toPrecision(digits))).replace("-", "−");
    }
    const [front, power] = value.toExponential(digits - 1).split("e");
    const raised = [...String(Number(power))].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(sign)] || "⁻");
    return `${Number(front) === 1 ? "" : `${Number(front)} × `}10${raised.join("")}`.replace("-", "−");
  }

  /* Controls: each calls back with what was chosen, and has its name beside it. */
  function slider(label, count, at, shown, then) {
    const output = make("output", {}, shown(at));
    const input = make("input", { type: "range", min: 0, max: count - 1, step: 1 });
    input.value = at;
    function tell() {
      output.textContent = shown(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    }
    input.addEventListener("input", function () { tell(); then(Number(input.value)); });
    tell();
    return { node: make("p", {}, make("label", {}, `${label} `, input), " ", output), tell,
      at() { return Number(input.value); }, set(value) { input.value = value; tell(); then(value); } };
  }
  function atItsEndOnPaper(slider, end) {
    let before = 0;
    addEventListener("beforeprint", function () { before = slider.at(); slider.set(end); });
    addEventListener("afterprint", function () { slider.set(before); });
  }
  function choice(label, options, then) {
    const buttons = options.map((option, k) => {
      const button = make("button", { type: "button", "aria-pressed": k === 0 }, option);
      button.addEventListener("click", function () {
        for (const other of buttons) other.setAttribute("aria-pressed", other === button);
        then(option);
      });
      return button;
    });
    return make("p", { role: "group", "aria-label": label }, `${label}: `, ...buttons);
  }

  function panel(box, label, view) {
    const svg = make("svg", { viewBox: view, role: "group", "aria-label": label });
    box.append(svg);
    return svg;
  }
  const said = () => make("p", { class: "said", role: "status" });

  /* Axes with lines: x and y are {label, from, to, log, ticks, name}; a line has points, colour,
     dashes, a name at its end; a mark is a vertical line with its name. */
  function chart(svg, x, y, lines, marks = [], dots = []) {
    const left = 52, right = 330, top = 26, bottom = 236;
    const along = (axis, value) => {
      const [a, b, c] = axis.log ? [value, axis.from, axis.to].map(Math.log) : [value, axis.from, axis.to];
      return Math.min(1.02, Math.max(-0.02, (a - b) / (c - b)));
    };
    const X = (value) => left + (right - left) * along(x, value);
    const Y = (value) => bottom - (bottom - top) * along(y, value);
    const text = (a, b, words, more = {}) => make("text", { x: a, y: b, ...more }, words);
    const names = [], content = [make("path", { d: `M${left},${top}V${bottom}H${right}`, class: "axis" })];
    for (const tick of x.ticks) {
      content.push(make("path", { d: `M${X(tick)},${bottom}v5`, class: "axis" }),
        text(X(tick), bottom + 19, (x.name || number)(tick), { "text-anchor": "middle" }));
    }
    for (const tick of y.ticks) {
      content.push(make("path", { d: `M${left},${Y(tick)}h-5`, class: "axis" }),
        text(left - 8, Y(tick) + 4, (y.name || number)(tick), { "text-anchor": "end" }));
    }
    content.push(text((left + right) / 2, bottom + 38, x.label, { "text-anchor": "middle" }));
    content.push(text(2, 12, y.label));
    marks.forEach(([at, words], k) => content.push(
      make("path", { d: `M${X(at)},${top + 4 + 16 * k}V${bottom}`, class: "mark" }),
      text(X(at) + 4, top + 15 + 16 * k, words)));
    for (const { points, colour, dashes = "", width = 2, name } of lines) {
      if (!points.length) continue;
      const drawn = points.map(([a, b]) => [X(a), Y(b)]);
      content.push(make("path", { d: path(drawn), fill: "none", stroke: colour,
        "stroke-width": width, "stroke-dasharray": dashes }));
      if (name) names.push([drawn.at(-1)[1], name]);
    }
    /* Names at the ends of lines give way to each other. */
    names.sort((one, other) => one[0] - other[0]);
    names.forEach(([height, name], k) => {
      names[k][0] = k ? Math.max(height, names[k - 1][0] + 14) : height;
    });
    let most = bottom - 6;
    for (const [height, name] of names.reverse()) {
      most = Math.min(height, most);
      content.push(text(right + 6, most + 4, name));
      most -= 14;
    }
    for (const [a, b] of dots) content.push(make("circle", { cx: X(a), cy: Y(b), r: 5, fill: ORANGE }));
    redraw(svg, ...content);
  }

  /* A disc with labelled points: a triangle for +, a dot for −. */
  const shape = (y, size) => (y > 0 ? `M0,${-1.2 * size}L${size},${0.8 * size}H${-size}Z`
    : `M${size},0A${size},${size} 0 1 1 ${-size},0A${size},${size} 0 1 1 ${size},0Z`);
  const labelled = (x, y) => make("path", { d: shape(y, 0.055),
    transform: `translate(${x[0]},${-x[1]})`, fill: y > 0 ? ORANGE : BLUE });
  const polar = (radius, angle) => [radius * Math.cos(angle), -radius * Math.sin(angle)];
  const ray = (angle, from, to, attributes) => make("path",
    { d: path([polar(from, angle), polar(to, angle)]), ...attributes });
  /* The ring says what is predicted in each direction: thick orange is +, thin blue is −. */
  function ring(sign) {
    const parts = [], steps = 180;
    for (let k = 0; k < steps; k++) {
      const angle = (2 * Math.PI * (k + 0.5)) / steps, half = (Math.PI / steps) * 1.1;
      const plus = sign(angle) > 0;
      parts.push(make("path", { d: path([polar(1.1, angle - half), polar(1.1, angle + half)]),
        stroke: plus ? ORANGE : BLUE, "stroke-width": plus ? 0.07 : 0.025 }));
    }
    return parts;
  }

  /* Drag the points. */
  function points(box) {
    let set = "six sectors", model = "two-layer network", x, y, moved, at = 0, records = [], best, run = 0;
    const drawing = make("div", { class: "panels" });
    const disc = panel(drawing, "points of the plane; each can be moved", "-1.75 -1.75 3.5 3.5");
    const under = make("g"), over = make("g");
    disc.append(under, over);
    const graph = panel(drawing, "share of the largest margin that is missing, against α", "0 0 350 280");
    const status = said();
    const level = slider("smoothed margin α", LEVELS.length, at, (k) => number(LEVELS[k]), function (k) {
      at = k;
      draw();
    });
    atItsEndOnPaper(level, LEVELS.length - 1);

    function begin() {
      x = G.sets[set].x.map((point) => [...point]);
      y = [...G.sets[set].y];
      moved = false;
      place();
      compute();
    }
    /* The points, which the pointer, a finger or the arrow keys move. */
    function place() {
      redraw(over, ...x.map((_, i) => {
        const handle = make("g", { tabindex: 0, role: "button", class: "handle" });
        const put = () => {
          handle.setAttribute("transform", `translate(${x[i][0]},${-x[i][1]})`);
          handle.setAttribute("aria-label", `Point ${i + 1}, label ${y[i] > 0 ? "plus" : "minus"}, at `
            + `${x[i].map((part) => number(part)).join(" and ")}: arrow keys move it, Enter turns its label`);
          redraw(handle, make("circle", { r: 0.11, fill: "transparent" }),
            make("path", { d: shape(y[i], 0.06), fill: y[i] > 0 ? ORANGE : BLUE }));
        };
        const go = (a, b) => {
          const size = Math.max(1, Math.hypot(a, b));
          x[i] = [a / size, b / size];
          moved = true;
          put();
          compute();
        };
        handle.addEventListener("pointerdown", function (event) {
          handle.setPointerCapture(event.pointerId);
          event.preventDefault();
          handle.focus();
        });
        handle.addEventListener("pointermove", function (event) {
          if (!handle.hasPointerCapture(event.pointerId)) return;
          const where = new DOMPoint(event.clientX, event.clientY).matrixTransform(
            disc.getScreenCTM().inverse());
          go(where.x, -where.y);
        });
        handle.addEventListener("keydown", function (event) {
          const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
          if (event.key in step) {
            const [a, b] = step[event.key];
            go(x[i][0] + 0.05 * a, x[i][1] + 0.05 * b);
          } else if (event.key === "Enter" || event.key === " ") {
            y[i] = -y[i];
            go(...x[i]);
          } else return;
          event.preventDefault();
        });
        put();
        return handle;
      }));
    }

    /* Anew for points that were moved; a network in slices, so that the page goes on answering. */
    function compute() {
      const mine = ++run;
      records = [];
      if (model === "linear model") {
        const flow = S.linearFlow(x.map((point, i) => point.map((part) => part * y[i])), [0.3, 0.6], LEVELS);
        best = flow && { margin: flow.margin, u: flow.u };
        records = flow ? flow.records.map((record) => {
          const p = x.map((point, i) => y[i] * (point[0] * record.direction[0] + point[1] * record.direction[1]));
          return { ...record, margin: Math.min(...p) };
        }) : [];
        return draw();
      }
      best = S.largestMargin(x, y, 240);
      if (best.margin < 1e-6) best = null;
      draw();
      if (!best) return;
      const width = G.sets[set].start.length / 2;
      const judged = (direction, source) => ({ direction, source, margin: Math.sqrt(width)
        * Math.min(...S.network(x, y, direction).p) });
      const flow = S.networkFlow(x, y, G.sets[set].start, LIVE);
      function slice() {
        if (mine !== run) return;
        const until = performance.now() + 12;
        while (performance.now() < until) {
          const next = flow.next();
          if (next.done) {
            const late = moved ? [] : LEVELS.map((level, k) => ({ level,
              ...judged(G.sets[set].direction[k], "library") })).slice(LIVE.length);
            if (records.length === LIVE.length) records.push(...late);
            return draw();
          }
          if (next.value) {
            records.push({ level: next.value.level, ...judged(next.value.direction, "here") });
            draw();
          }
        }
        setTimeout(slice);
      }
      slice();
    }

    function draw() {
      const now = records[Math.min(at, records.length - 1)], parts = [];
      if (now && model === "linear model") {
        const turn = Math.atan2(now.direction[1], now.direction[0]);
        const limit = Math.atan2(best.u[1], best.u[0]);
        parts.push(...ring((angle) => Math.cos(angle - turn)),
          ray(turn, 0, 1.5, { stroke: GREY, "stroke-width": 0.03 }),
          ray(turn + Math.PI / 2, -1.08, 1.08, { stroke: GREY, "stroke-width": 0.02 }),
          ray(limit + Math.PI / 2, -1.08, 1.08, { stroke: GREEN, "stroke-width": 0.02, "stroke-dasharray": "0.05" }));
        const [a, b] = polar(1.5, limit);
        parts.push(make("circle", { cx: a, cy: b, r: 0.07, fill: "none", stroke: GREEN, "stroke-width": 0.03 }));
      } else if (now) {
        const w = now.direction, m = w.length / 2;
        const output = (angle) => {
          let sum = 0;
          for (let j = 0; j < m; j++) {
            const z = w[2 * j] * Math.cos(angle) + w[2 * j + 1] * Math.sin(angle);
            if (z > 0) sum += j < m / 2 ? z * z : -z * z;
          }
          return sum;
        };
        parts.push(...ring(output));
        for (let j = 0; j < m; j++) {
          const mass = w[2 * j] ** 2 + w[2 * j + 1] ** 2;
          parts.push(ray(Math.atan2(w[2 * j + 1], w[2 * j]), 1.16, 1.16 + 1.6 * mass,
            { stroke: j < m / 2 ? ORANGE : BLUE, "stroke-width": 0.035 }));
        }
        best.mass.forEach((mass, k) => {
          if (mass < 0.01) return;
          const [a, b] = polar(Math.min(1.66, 1.16 + 1.6 * mass), best.columns[k].angle);
          parts.push(make("circle", { cx: a, cy: b, r: 0.06, fill: "none", "stroke-width": 0.02,
            stroke: best.columns[k].sign > 0 ? ORANGE : BLUE }));
        });
      }
      redraw(under, ...parts);
      const missing = (record) => Math.max(1e-9, 1 - record.margin / best.margin);
      const series = (kind) => records.filter((record) => (record.source || "here") === kind)
        .map((record) => [record.level, missing(record)]);
      const live = series("here"), late = series("library");
      chart(graph, { from: 1, to: 1e30, log: true, ticks: [1, 1e10, 1e20, 1e30], label: "smoothed margin α" },
        { from: 1e-8, to: 1, log: true, ticks: [1e-8, 1e-6, 1e-4, 1e-2, 1], label: "share of the largest margin that is missing" },
        [{ points: live, colour: BLUE }, { points: [...live.slice(-1), ...late], colour: BLUE, dashes: "2 4" }],
        [[10, "training usually stops here"], [745, "float64 ends here"]],
        now ? [[now.level, missing(now)]] : []);
      if (!best) {
        status.textContent = model === "linear model" ? "No line through the middle separates these points: there is no late phase."
          : "No network of this kind separates these points: there is no late phase.";
      } else if (!now) status.textContent = "Computing …";
      else {
        const where = now.source === "library" ? "a state that the library computed" : "computed here";
        const beyond = now.level < LEVELS[at] ? ` Farther than α = ${number(now.level)} a browser does not get with points that were moved.` : "";
        status.textContent = `α = ${number(now.level)}, ${where}. The margin of the unit vector is ${number(now.margin, 3)}, `
          + `the largest possible ${number(best.margin, 3)}: ${number(100 * Math.max(0, 1 - now.margin / best.margin))} % are missing.${beyond}`;
      }
    }
    const again = make("button", { type: "button" }, "put the points back");
    again.addEventListener("click", begin);
    redraw(box, choice("Points", Object.keys(G.sets).reverse(), function (name) { set = name; begin(); }),
      choice("Model", ["two-layer network", "linear model"], function (name) { model = name; compute(); }),
      drawing, level.node, make("p", {}, again), status);
    begin();
  }

  /* The groove. */
  function groove(box) {
    const sigmas = Array.from({ length: 2501 }, (_, k) => k / 50);
    const caps = { "not definable": Infinity, definable: 8 }, flows = {};
    /* How far each axis reaches, in ln α: 745 is the last α whose loss float64 can hold. */
    const axes = {
      "α": { of: Math.exp, top: Math.log(745), ticks: [0, 200, 400, 600], label: "smoothed margin α" },
      "ln α": { of: (log) => log, top: 700, ticks: [0, 200, 400, 600], label: "ln α" },
      "ln ln α": { of: Math.log, top: 2 * Math.exp(50), ticks: [0, 10, 20, 30, 40, 50], label: "ln ln α" },
    };
    let kind = "not definable", axis = "α", share = 0;
    const drawing = make("div", { class: "panels" });
    const disc = panel(drawing, "the groove from above, and the path of the direction", "-46 -46 92 92");
    const graph = panel(drawing, "length of the direction's path", "0 0 350 280");
    const status = said();
    const time = slider("how far along this axis", 101, share, (k) => `${k} %`, function (k) { share = k; draw(); });
    function flow() {
      flows[kind] ??= S.hatFlow(2.2, 1, sigmas, caps[kind]).map((record) => ({ ...record,
        // ln α of one example, α = ρ²(1 - f).
        log: 2 * Math.exp(record.sigma) }));
      return flows[kind];
    }
    function draw() {
      const { of, top, ticks, label } = axes[axis], cap = caps[kind];
      const phase = (X) => (cap === Infinity ? X : cap * Math.tanh(X / cap));
      const start = of(2), end = of(top), now = start + ((end - start) * share) / 100;
      const seen = flow().filter((record) => record.log <= top * (1 + 1e-9));
      const upTo = seen.filter((record) => of(record.log) <= now + 1e-9);
      const last = upTo.at(-1), spiral = [];
      for (let X = 1.5; X < 45; X += 0.1) spiral.push(polar(X, phase(X) + Math.PI / 2));
      redraw(disc, make("path", { d: path(spiral), fill: "none", stroke: GREY, "stroke-width": 0.5, "stroke-dasharray": "0.5 1.2" }),
        make("path", { d: path(upTo.map((record) => polar(record.x, record.longitude))), fill: "none", stroke: BLUE, "stroke-width": 1 }),
        (([cx, cy]) => make("circle", { cx, cy, r: 1.6, fill: ORANGE }))(polar(last.x, last.longitude)));
      const most = Math.max(0.1, 1.15 * seen.at(-1).length), step = most > 10 ? 10 : most > 1 ? 0.5 : 0.1;
      const heights = Array.from({ length: Math.floor(most / step) + 1 }, (_, k) => k * step);
      chart(graph, { from: 0, to: end, ticks, label }, { from: 0, to: most, ticks: heights, label: "length of the path (radians)" },
        [{ points: upTo.map((record) => [of(record.log), record.length]), colour: BLUE }], [], [[of(last.log), last.length]]);
      const half = seen.find((record) => of(record.log) >= (start + end) / 2);
      const late = seen.at(-1).length - half.length, whole = seen.at(-1).length;
      const verdict = late < 0.1 * whole ? "Settled, one would say" : late < 0.35 * whole ? "Slowing down" : "Turning";
      const told = `${verdict}: on the second half of this axis the direction travels ${number(late)} of ${number(whole)} radians. `;
      status.textContent = (share === 100 ? told : "Move on to the end of the axis. ")
        + `So far the direction went ${number(last.length)} radians, ${number((last.longitude - seen[0].longitude) / 2 / Math.PI)} turns.`;
    }
    atItsEndOnPaper(time, 100);
    redraw(box, choice("Model", Object.keys(caps), function (name) { kind = name; draw(); }),
      choice("Axis", Object.keys(axes), function (name) { axis = name; draw(); }), drawing, time.node, status);
    draw();
  }

  /* Loss, tail and step. */
  function tail(box) {
    const z = [[0.12, 0.52], [0.33, 0.31], [0.84, 0.12], [0.81, 0.14], [0.71, 0.11], [0.49, 0.12]];
    const signs = [1, -1, 1, -1, 1, -1], keep = [];
    for (let k = 0; k <= 40; k++) keep.push(Math.round(10 ** (k / 8)));
    const looks = { exponential: [BLUE, ""], logistic: [GREEN, "7 3"], polynomial: ["#b05fd0", "2 3"],
      hinge: [ORANGE, "9 3 2 3"], squared: [GREY, "4 4"] };
    const { u, margin } = S.maxMargin(z), shares = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9];
    let loss = "exponential", k = 5;
    const drawing = make("div", { class: "panels" });
    const disc = panel(drawing, "six points, the boundary after the last step, and that of the largest margin", "-1.35 -1.35 2.7 2.7");
    const graph = panel(drawing, "angle to the direction of the largest margin, against steps", "0 0 420 280");
    const status = said();
    const step = slider("step, as a share of the edge", shares.length, k, (at) => number(shares[at]), function (at) { k = at; draw(); });
    function draw() {
      const runs = Object.fromEntries(Object.keys(looks).map((name) => {
        const rate = (shares[k] * 2) / (S.LOSSES[name].bend * S.sharpness(z));
        return [name, S.descend(z, name, rate, keep)];
      }));
      const angle = (w) => Math.max(1e-6, S.angleBetween(w, u));
      const w = runs[loss].at(-1), turn = Math.atan2(w[1], w[0]), limit = Math.atan2(u[1], u[0]);
      redraw(disc, ...ring((at) => Math.cos(at - turn)),
        ray(turn + Math.PI / 2, -1.06, 1.06, { stroke: GREY, "stroke-width": 0.02 }),
        ray(limit + Math.PI / 2, -1.06, 1.06, { stroke: GREEN, "stroke-width": 0.02, "stroke-dasharray": "0.05" }),
        ...z.map((row, i) => labelled(row.map((part) => signs[i] * part), signs[i])));
      chart(graph, { from: 1, to: 1e5, log: true, ticks: [1, 10, 100, 1e3, 1e4, 1e5], label: "steps" },
        { from: 1e-3, to: 1, log: true, ticks: [1e-3, 1e-2, 0.1, 1], label: "angle to the largest margin (radians)" },
        Object.entries(looks).map(([name, [colour, dashes]]) => ({ colour, dashes, name,
          width: name === loss ? 4 : 1.5, points: runs[name].map((one, at) => [keep[at], angle(one)]) })));
      const size = Math.hypot(...w), least = Math.min(...z.map((row) => (row[0] * w[0] + row[1] * w[1]) / size));
      status.textContent = `After 10⁵ steps the ${loss} loss is ${number((S.angleBetween(w, u) * 180) / Math.PI)}° from the `
        + `direction of the largest margin and has ${number(100 * (least / margin), 3)} % of it; ‖w‖ = ${number(size)}.`;
    }
    redraw(box, choice("Loss", Object.keys(looks), function (name) { loss = name; draw(); }), drawing, step.node, status);
    draw();
  }

  const kinds = { points, groove, tail };
  for (const box of document.querySelectorAll(".explorable")) kinds[box.dataset.explorable](box);
});
