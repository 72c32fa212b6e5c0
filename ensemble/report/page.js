// The report's sliders and map: recomputes log-loss from the rows embedded in the page. No library, no network.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const { n, members: M, classes: K, logScale, targetScale } = data.sample;
  const decode = (text) => new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const logs = Float64Array.from(decode(data.sample.codes), (code) => -code / logScale);
  const targets = Float64Array.from(decode(data.sample.targets), (code) => code / targetScale);

  // A case is a row and a class that its label gives weight to: one a row with hard labels.
  const cases = [];
  for (let i = 0; i < n * K; i++) if (targets[i] > 0) cases.push(i);
  const mass = targets.reduce((sum, target) => sum + target, 0); // a row counts for the sum of its targets
  const likelihood = new Float64Array(cases.length * M);
  cases.forEach((at, c) => {
    const row = Math.floor(at / K), k = at % K;
    for (let m = 0; m < M; m++) likelihood[c * M + m] = Math.exp(logs[(row * M + m) * K + k]);
  });

  function linearLoss(weights, chosen) {
    let total = 0;
    for (let c = 0; c < cases.length; c++) {
      let p = 0;
      for (let j = 0; j < chosen.length; j++) p += weights[j] * likelihood[c * M + chosen[j]];
      total -= targets[cases[c]] * Math.log(Math.max(p, 1e-15));
    }
    return total / mass;
  }

  const floor = Math.log(data.pool.floor); // as the pool was fitted
  function poolLoss(weights, bias) {
    const logits = new Float64Array(K);
    let total = 0;
    for (let row = 0; row < n; row++) {
      let top = -Infinity, sum = 0, own = 0;
      for (let k = 0; k < K; k++) {
        logits[k] = bias[k];
        for (let m = 0; m < M; m++) logits[k] += weights[m] * Math.max(logs[(row * M + m) * K + k], floor);
        top = Math.max(top, logits[k]);
      }
      for (let k = 0; k < K; k++) {
        sum += Math.exp(logits[k] - top);
        own += targets[row * K + k];
        total -= targets[row * K + k] * logits[k];
      }
      total += own * (top + Math.log(sum));
    }
    return total / mass;
  }

  const everyone = Array.from({ length: M }, (_, m) => m);
  const loss = (kind, weights) =>
    kind === "linear" ? linearLoss(weights, everyone) : poolLoss(weights, data.pool.bias);
  const equal = everyone.map(() => 1 / M);
  const current = { linear: [...data.linear.weights], pool: [...data.pool.weights] };
  const fittedLoss = { linear: loss("linear", current.linear), pool: loss("pool", current.pool) };
  let kind = "linear";

  // One member takes the value; the others share the rest as before. The pool's weights are free.
  function move(member, value) {
    const weights = current[kind];
    if (kind === "linear" && M > 1) {
      const rest = weights.reduce((sum, w, m) => (m === member ? sum : sum + w), 0);
      for (let m = 0; m < M; m++) {
        if (m !== member) weights[m] = rest > 1e-12 ? (weights[m] * (1 - value)) / rest : (1 - value) / (M - 1);
      }
    }
    weights[member] = kind === "linear" && M === 1 ? 1 : value;
  }

  function show() {
    const weights = current[kind], now = loss(kind, weights), fitted = fittedLoss[kind];
    weights.forEach((weight, m) => {
      const slider = byId("w" + m);
      slider.min = data[kind].low;
      slider.max = data[kind].high;
      slider.value = weight;
      byId("o" + m).textContent = weight.toFixed(3);
    });
    byId("loss").textContent = now.toFixed(4);
    byId("fitted").textContent = fitted.toFixed(4);
    byId("change").textContent = (now < fitted ? "-" : "+") + Math.abs(now - fitted).toFixed(4);
    byId("sum").textContent = weights.reduce((a, b) => a + b, 0).toFixed(2);
    mark();
  }

  everyone.forEach((m) =>
    byId("w" + m).addEventListener("input", (event) => {
      move(m, Number(event.target.value));
      show();
    }),
  );
  byId("reset").addEventListener("click", () => {
    current[kind] = [...data[kind].weights];
    show();
  });
  byId("equal").addEventListener("click", () => {
    current[kind] = [...equal];
    show();
  });
  document.querySelectorAll("input[name=kind]").forEach((radio) =>
    radio.addEventListener("change", () => {
      kind = document.querySelector("input[name=kind]:checked").value;
      show();
    }),
  );

  // The map: three members' shares as a triangle of cells, or two members' as a line.
  const cells = [...document.querySelectorAll("#map polygon")];
  const selects = ["pick0", "pick1", "pick2"].map(byId);
  const picked = data.picked;
  const corners = data.corners;
  const centres = [];
  for (let i = 0; i < data.steps; i++) {
    for (let j = 0; j < data.steps - i; j++) {
      const k = data.steps - 1 - i - j;
      const add = (a, b, c) => centres.push([a, b, c].map((v) => v / 3 / data.steps));
      add(3 * i + 1, 3 * j + 1, 3 * k + 1);
      if (k > 0) add(3 * i + 2, 3 * j + 2, 3 * k - 1);
    }
  }

  function place(dot, w) {
    dot.setAttribute("cx", w[0] * corners[0][0] + w[1] * corners[1][0] + w[2] * corners[2][0]);
    dot.setAttribute("cy", w[0] * corners[0][1] + w[1] * corners[1][1] + w[2] * corners[2][1]);
  }

  // From a cell near the optimum, shift weight between pairs in ever smaller steps; the loss is convex.
  function refine(start) {
    let best = [...start], value = linearLoss(best, picked);
    for (let step = 0.5 / data.steps; step > 2e-4; ) {
      let better = false;
      for (let a = 0; a < 3; a++) {
        for (let b = 0; b < 3; b++) {
          const size = Math.min(step, best[b]);
          if (a === b || size <= 0) continue;
          const trial = [...best];
          trial[a] += size;
          trial[b] -= size;
          const found = linearLoss(trial, picked);
          if (found < value - 1e-12) [best, value, better] = [trial, found, true];
        }
      }
      if (!better) step /= 2;
    }
    return [best, value];
  }

  function drawMap() {
    if (!cells.length) return;
    const losses = centres.map((w) => linearLoss(w, picked));
    const low = Math.min(...losses), high = Math.max(...losses);
    const names = picked.map((m) => data.names[m]);
    const say = (w) => names.map((name, j) => `${name} ${w[j].toFixed(2)}`).join(", ");
    cells.forEach((cell, t) => {
      const share = high > low ? (losses[t] - low) / (high - low) : 0;
      cell.setAttribute("class", "t" + Math.min(9, Math.floor(10 * Math.sqrt(share))));
      cell.querySelector("title").textContent = `${losses[t].toFixed(4)} at ${say(centres[t])}`;
    });
    names.forEach((name, j) => {
      const characters = [...name];
      byId("corner" + j).textContent = characters.length > 22 ? characters.slice(0, 21).join("") + "…" : name;
    });
    const [best, value] = refine(centres[losses.indexOf(low)]);
    place(byId("best"), best);
    byId("bestText").textContent = `${value.toFixed(4)} at ${say(best)}`;
    byId("rangeText").textContent = `${low.toFixed(4)} to ${high.toFixed(4)}`;
    mark();
  }

  // Where the sliders stand: their shares among the members shown.
  function mark() {
    const dot = byId("here");
    if (!dot) return;
    const shares = picked.map((m) => Math.max(current.linear[m], 0));
    const sum = shares.reduce((a, b) => a + b, 0);
    if (M === 2) {
      const { left, top, width, height, low, high } = data.line;
      const value = linearLoss(current.linear, everyone);
      dot.setAttribute("cx", left + width * current.linear[0]);
      dot.setAttribute("cy", top + height * (1 - (high > low ? (value - low) / (high - low) : 0.5)));
      return;
    }
    dot.style.display = sum > 1e-9 ? "" : "none";
    if (sum > 1e-9) place(dot, shares.map((share) => share / sum));
  }

  selects.forEach((select, j) => {
    if (!select) return;
    select.addEventListener("change", () => {
      const wanted = Number(select.value), other = picked.indexOf(wanted);
      // A member stands in one corner only: choosing it elsewhere exchanges the two.
      if (other >= 0) picked[other] = picked[j];
      picked[j] = wanted;
      selects.forEach((one, at) => (one.value = String(picked[at])));
      drawMap();
    });
  });
  cells.forEach((cell, t) =>
    cell.addEventListener("click", () => {
      kind = "linear";
      document.querySelector("input[name=kind][value=linear]").checked = true;
      current.linear = everyone.map((m) => (picked.includes(m) ? centres[t][picked.indexOf(m)] : 0));
      show();
    }),
  );
  byId("explore").classList.add("ready");
  drawMap();
  show();
})();
