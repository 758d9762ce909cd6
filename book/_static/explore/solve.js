/* What the explorables compute: small flows, a linear program, descent. No page is touched here.

   A page may be opened from a file, where browsers load no modules; so this is a plain script, which
   leaves one name, `latephase`. tests/test_explorables.py holds each function against the library. */
(globalThis.latephase ??= {}).solve = (function () {
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
  const norm = (a) => Math.hypot(...a);
  const angleBetween = (a, b) => Math.abs(Math.atan2(a[0] * b[1] - a[1] * b[0], dot(a, b)));

  /* q = softmax(-p), and ln Σ e^{-p}. */
  function shares(p) {
    const least = Math.min(...p);
    const weights = p.map((value) => Math.exp(least - value));
    const total = weights.reduce((a, b) => a + b, 0);
    return { q: weights.map((value) => value / total), log: Math.log(total) - least };
  }

  /* The unit vector u with the largest min z_i·u in the plane, or null where no z_i·u > 0 for all.
     At the optimum one z_i points along u, or two have the same product with it. */
  function maxMargin(z) {
    const candidates = z.map((a) => [a[0] / norm(a), a[1] / norm(a)]);
    for (let i = 0; i < z.length; i++) {
      for (let j = 0; j < i; j++) {
        const across = [z[i][1] - z[j][1], z[j][0] - z[i][0]], length = norm(across);
        if (length < 1e-12) continue;
        for (const sign of [1, -1]) candidates.push(across.map((part) => (sign * part) / length));
      }
    }
    let best = null;
    for (const u of candidates) {
      const margin = Math.min(...z.map((a) => dot(a, u)));
      if (margin > (best ? best.margin : 0)) best = { u, margin };
    }
    return best;
  }

  /* One step of a stiff system y' = f(t, y): Shampine's second-order Rosenbrock formula, which is
     L-stable, as in his ode23s. `slope` is ∂f/∂t; `solve(h d, r)` solves (1 - h d J) k = r. */
  function rosenbrock(f, t, y, h, slope, solve) {
    const d = 1 / (2 + Math.SQRT2), e = 6 + Math.SQRT2;
    const each = (formula) => y.map((_, k) => formula(k));
    const f0 = f(t, y);
    const k1 = solve(h * d, each((k) => f0[k] + h * d * slope[k]));
    const f1 = f(t + h / 2, each((k) => y[k] + (h / 2) * k1[k]));
    const turned = solve(h * d, each((k) => f1[k] - k1[k]));
    const k2 = each((k) => turned[k] + k1[k]);
    const end = each((k) => y[k] + h * k2[k]);
    const f2 = f(t + h, end);
    const k3 = solve(h * d, each((k) => f2[k] - e * (k2[k] - f1[k]) - 2 * (k1[k] - f0[k])
      + h * d * slope[k]));
    return { end, error: each((k) => (h / 6) * (k1[k] - 2 * k2[k] + k3[k])) };
  }

  /* The flow of a linear model with the exponential loss, rows z_i = y_i x_i of the plane, at levels
     of α. In the coordinates s along the limit u and v across it the flow is one equation,
     dv/ds = Σ q_i b_i / Σ q_i a_i with z_i = (a_i, b_i), whose late stage descends a convex function
     of v; what all a_i share drops out of q, so that s may be 1e30. Null where nothing separates. */
  function linearFlow(z, start, levels) {
    const limit = maxMargin(z);
    if (!limit) return null;
    const { u, margin } = limit, across = [-u[1], u[0]];
    const a = z.map((row) => dot(row, u)), b = z.map((row) => dot(row, across));
    const gap = a.map((value) => (value - margin < 1e-12 ? 0 : value - margin));
    const at = (s, v) => shares(gap.map((g, i) => g * s + b[i] * v));
    const mean = (q, of) => q.reduce((sum, share, i) => sum + share * of[i], 0);
    const alpha = (s, v) => margin * s - at(s, v).log;
    const f = (s, [v]) => {
      const { q } = at(s, v);
      return [mean(q, b) / mean(q, a)];
    };
    let s = dot(start, u), v = dot(start, across), h = 1e-3;
    const records = [];
    for (const level of levels) {
      h = Math.max(h, 1e-3 * Math.abs(s)); // which the last level may have cut short
      while (alpha(s, v) < level * (1 - 1e-12)) {
        const small = 1e-6 * (1 + Math.abs(v)), soon = 1e-7 * (1 + Math.abs(s));
        const inclined = (f(s, [v + small])[0] - f(s, [v - small])[0]) / (2 * small);
        const later = (f(s + soon, [v])[0] - f(s - soon, [v])[0]) / (2 * soon);
        const step = rosenbrock(f, s, [v], h, [later], (hd, [r]) => [r / (1 - hd * inclined)]);
        const wrong = Math.abs(step.error[0]) / (1e-6 * (1 + Math.abs(v)));
        const reached = alpha(s + h, step.end[0]);
        if (!(wrong <= 1)) {
          h *= Math.max(0.2, 0.8 / Math.sqrt(wrong));
        } else if (reached > level * (1 + 1e-6) + 1e-9) {
          h *= (level - alpha(s, v)) / (reached - alpha(s, v));
          if (h < 1e-13 * Math.abs(s)) break; // the level is met to the last digit
        } else {
          s += h;
          v = step.end[0];
          h *= Math.min(3, 0.8 / Math.sqrt(wrong + 1e-3));
        }
      }
      const w = [s * u[0] + v * across[0], s * u[1] + v * across[1]], { q } = at(s, v);
      records.push({ level, direction: w.map((part) => part / norm(w)), dual: q,
        angle: Math.abs(Math.atan2(v, s)) });
    }
    return { ...limit, records };
  }

  /* The two-layer network x ↦ Σ_j a_j relu(w_j·x)², w = [w_11, w_12, w_21, ...], a_j = ±1/√m, the
     first half positive: its margins p, and α with its gradient g and the dual variables q. */
  function network(x, y, w) {
    const m = w.length / 2, a = 1 / Math.sqrt(m), n = x.length;
    const p = new Float64Array(n), z = new Float64Array(n * m);
    for (let i = 0; i < n; i++) {
      const x1 = x[i][0], x2 = x[i][1];
      let sum = 0;
      for (let j = 0; j < m; j++) {
        const at = w[2 * j] * x1 + w[2 * j + 1] * x2;
        if (at > 0) {
          z[i * m + j] = at;
          sum += j < m / 2 ? at * at : -at * at;
        }
      }
      p[i] = y[i] * a * sum;
    }
    function gradient() {
      const { q, log } = shares(Array.from(p)), g = new Float64Array(w.length);
      for (let i = 0; i < n; i++) {
        const weight = 2 * q[i] * y[i] * a;
        if (q[i] < 1e-300) continue;
        for (let j = 0; j < m; j++) {
          const pull = (j < m / 2 ? weight : -weight) * z[i * m + j];
          g[2 * j] += pull * x[i][0];
          g[2 * j + 1] += pull * x[i][1];
        }
      }
      return { g, alpha: -log, q };
    }
    return { p: Array.from(p), gradient };
  }

  function length(v) {
    let sum = 0;
    for (let n = 0; n < v.length; n++) sum += v[n] * v[n];
    return Math.sqrt(sum);
  }

  /* The flow of that network in relative arc length, dw/dσ = ‖w‖ ∇α/‖∇α‖, by the explicit formulas
     of Bogacki and Shampine; at levels of α, or as far as `budget` gradients go. A generator, so
     that a page can breathe: it yields null after a step, and a record where a level is reached. */
  function* networkFlow(x, y, start, levels, budget = 12000, tol = 3e-4) {
    const P = start.length;
    let w = Float64Array.from(start), h = 1e-3, spent = 0;
    function ahead(v) {
      spent += 1;
      const { g, alpha, q } = network(x, y, v).gradient(), scale = length(v) / length(g);
      for (let n = 0; n < P; n++) g[n] *= scale;
      return { k: g, alpha, q };
    }
    function moved(a, k1, b, k2, c, k3) {
      const end = new Float64Array(P);
      for (let n = 0; n < P; n++) end[n] = w[n] + h * (a * k1[n] + b * k2[n] + c * k3[n]);
      return end;
    }
    let here = ahead(w);
    for (const level of levels) {
      while (here.alpha < level * (1 - 1e-3)) {
        if (spent > budget) return;
        const k1 = here.k, k2 = ahead(moved(1 / 2, k1, 0, k1, 0, k1)).k;
        const k3 = ahead(moved(0, k1, 3 / 4, k2, 0, k1)).k;
        const end = moved(2 / 9, k1, 1 / 3, k2, 4 / 9, k3), there = ahead(end);
        let wrong = 0;
        for (let n = 0; n < P; n++) {
          wrong += (-5 / 72 * k1[n] + k2[n] / 12 + k3[n] / 9 - there.k[n] / 8) ** 2;
        }
        wrong = (h * Math.sqrt(wrong)) / (tol * length(w));
        if (wrong > 1) {
          h *= Math.max(0.3, 0.9 / Math.cbrt(wrong));
        } else if (there.alpha > level * (1 + 1e-3)) {
          h *= (level - here.alpha) / (there.alpha - here.alpha);
        } else {
          w = end;
          here = there;
          h *= Math.min(2, 0.9 / Math.cbrt(wrong + 1e-3));
        }
        yield null;
      }
      const size = length(w);
      yield { level, direction: Array.from(w, (part) => part / size), dual: here.q, spent };
    }
  }

  /* The largest margin that any network of squared ReLUs with fixed signs and unit mass can have,
     when its neurons point along k even directions: the value of a matrix game, max over masses m of
     min_i Σ_k A_ik m_k, by the simplex method. margin ≤ 0 where nothing separates. */
  function largestMargin(x, y, k = 360) {
    const n = x.length, columns = [], payoff = [];
    for (const sign of [1, -1]) {
      for (let j = 0; j < k; j++) {
        const angle = (2 * Math.PI * j) / k, d = [Math.cos(angle), Math.sin(angle)];
        columns.push({ sign, angle });
        payoff.push(x.map((point, i) => sign * y[i] * Math.max(0, dot(point, d)) ** 2));
      }
    }
    const shift = 1 - Math.min(...payoff.map((row) => Math.min(...row)));
    // max Σ v subject to Σ_i (A_ik + shift) v_i ≤ 1, v ≥ 0: a row of the tableau for each column k.
    const rows = payoff.map((row) => [...row.map((value) => value + shift), 1]);
    const price = [...Array(n).fill(-1), 0], basis = rows.map((_, r) => n + r);
    const outside = price.slice(0, n).map((_, i) => i);
    for (let pivots = 0; pivots < 500; pivots++) {
      let enter = 0;
      for (let i = 1; i < n; i++) if (price[i] < price[enter]) enter = i;
      if (price[enter] > -1e-12) break;
      let leave = -1, least = Infinity;
      rows.forEach((row, r) => {
        if (row[enter] > 1e-12 && row[n] / row[enter] < least) {
          leave = r;
          least = row[n] / row[enter];
        }
      });
      const pivot = rows[leave], by = pivot[enter];
      [basis[leave], outside[enter]] = [outside[enter], basis[leave]];
      // The column that enters gives its place to the one that leaves.
      pivot[enter] = 1;
      for (let i = 0; i <= n; i++) pivot[i] /= by;
      for (const row of [...rows.filter((one) => one !== pivot), price]) {
        const factor = row[enter];
        if (factor === 0) continue;
        row[enter] = 0;
        for (let i = 0; i <= n; i++) row[i] -= factor * pivot[i];
      }
    }
    const total = price[n], mass = Array(columns.length).fill(0), dual = Array(n).fill(0);
    outside.forEach((variable, i) => { if (variable >= n) mass[variable - n] = price[i] / total; });
    basis.forEach((variable, r) => { if (variable < n) dual[variable] = rows[r][n] / total; });
    // A network's outer weights are ±1/√m whatever its width; in units of mass the margin is this.
    const margins = x.map((_, i) => mass.reduce((sum, m, c) => sum + m * payoff[c][i], 0));
    return { margin: Math.min(...margins), mass, columns, dual };
  }

  /* The Mexican hat on the sphere: X = 1/(1 - r²) and η = ψ - π/2 of the flow at each σ = ln ln ρ,
     with the length of the direction's path. cap: the phase is cap·tanh(X/cap), Infinity for X
     itself. The formulas are those of lib/experiments/where_it_fails.py, which derives them. */
  function hatFlow(x, psi, sigmas, cap = Infinity, degree = 2) {
    const turn = 2 * Math.PI;
    const phase = (X) => (cap === Infinity ? [X, 1]
      : [cap * Math.tanh(X / cap), 1 / Math.cosh(X / cap) ** 2]);
    function slopes(sigma, [X, eta]) {
      const g = 4 * X * (X - 1) ** 2, contrast = g / (1 + g), rest = 1 / (1 + g);
      const steep = (4 * (X - 1) * (3 * X - 1)) / (1 + g) ** 2, twist = phase(X)[1];
      const left = 2 ** 1.5 * Math.sin(eta / 2) * Math.sin(eta / 2 + Math.PI / 4)
        - (1 - twist) * Math.sin(eta);
      const radial = 4 * X * X * (X - 1) * (rest + contrast * left + steep * Math.cos(eta));
      const around = (-contrast * Math.sin(eta) * X) / (X - 1);
      const f = Math.exp(-X) * (rest + 2 * contrast * Math.sin(eta / 2) ** 2);
      const clock = Math.exp(sigma - X) / (degree * (1 - f));
      const speed = Math.sqrt(radial ** 2 / (4 * X * X * (X - 1)) + (1 - 1 / X) * around ** 2);
      return [clock * radial, clock * (around - twist * radial), clock * speed];
    }
    const f = (sigma, y) => slopes(sigma, y).slice(0, 2);
    let y = [x, ((psi % turn) + turn) % turn - Math.PI / 2], sigma = sigmas[0], h = 1e-3, length = 0;
    const records = [];
    for (const next of sigmas) {
      while (sigma < next) {
        h = Math.min(h, next - sigma);
        const by = [1e-6 * y[0], 1e-6], columns = by.map((small, k) => {
          const up = f(sigma, y.map((value, n) => value + (n === k ? small : 0)));
          const down = f(sigma, y.map((value, n) => value - (n === k ? small : 0)));
          return up.map((value, n) => (value - down[n]) / (2 * small));
        });
        const solve = (hd, r) => {
          const m = [1 - hd * columns[0][0], -hd * columns[1][0],
            -hd * columns[0][1], 1 - hd * columns[1][1]];
          const det = m[0] * m[3] - m[1] * m[2];
          return [(r[0] * m[3] - m[1] * r[1]) / det, (m[0] * r[1] - m[2] * r[0]) / det];
        };
        // The clock is e^σ times what does not depend on σ.
        const step = rosenbrock(f, sigma, y, h, f(sigma, y), solve);
        const wrong = Math.max(Math.abs(step.error[0]) / (1e-6 * y[0]),
          Math.abs(step.error[1]) / 1e-6);
        if (!(wrong <= 1)) {
          h *= Math.max(0.2, 0.8 / Math.cbrt(wrong));
          continue;
        }
        const middle = y.map((value, k) => (value + step.end[k]) / 2);
        length += (h / 6) * (slopes(sigma, y)[2] + 4 * slopes(sigma + h / 2, middle)[2]
          + slopes(sigma + h, step.end)[2]);
        sigma = next - sigma - h < 1e-12 ? next : sigma + h;
        y = step.end;
        h *= Math.min(2, 0.8 / Math.cbrt(wrong + 1e-3));
      }
      records.push({ sigma, x: y[0], offset: y[1], length,
        longitude: y[1] + Math.PI / 2 + phase(y[0])[0] });
    }
    return records;
  }

  /* -ℓ' of five losses, and ℓ'' at 0, by which the edge of stability at the start is 2/(ℓ'' λ). */
  const LOSSES = {
    exponential: { force: (p) => Math.exp(-p), bend: 1 },
    logistic: { force: (p) => 1 / (1 + Math.exp(p)), bend: 1 / 4 },
    polynomial: { force: (p) => 2 * (1 + Math.max(p, 0)) ** -3, bend: 6 },
    hinge: { force: (p) => (p < 1 ? 1 : 0), bend: 1 },
    squared: { force: (p) => 1 - p, bend: 1 },
  };

  /* The largest eigenvalue of Σ z_i z_iᵀ. */
  function sharpness(z) {
    const [a, b, c] = [[0, 0], [0, 1], [1, 1]].map(([i, j]) =>
      z.reduce((sum, row) => sum + row[i] * row[j], 0));
    return (a + c) / 2 + Math.hypot((a - c) / 2, b);
  }

  /* Gradient descent on a linear model from 0, w ← w + rate Σ -ℓ'(z_i·w) z_i; w after each number
     of steps in `keep`. */
  function descend(z, loss, rate, keep) {
    const { force } = LOSSES[loss], w = [0, 0], kept = [];
    let steps = 0;
    for (const until of keep) {
      for (; steps < until; steps++) {
        let first = 0, second = 0;
        for (const row of z) {
          const pull = force(row[0] * w[0] + row[1] * w[1]);
          first += pull * row[0];
          second += pull * row[1];
        }
        w[0] += rate * first;
        w[1] += rate * second;
      }
      kept.push([...w]);
    }
    return kept;
  }

  return { angleBetween, descend, hatFlow, largestMargin, linearFlow, LOSSES, maxMargin, network,
    networkFlow, sharpness };
})();
