// Fetches status.json while the sweep runs and puts what has changed into the page.
const POLL_MS = 2000;
const theme = JSON.parse(document.getElementById("theme").textContent);
const { names, states, least } = JSON.parse(document.getElementById("words").textContent);
const sections = new Map([...document.querySelectorAll("section")].map(each => [each.dataset.study, each]));
const charts = new Map();
let drawn = "";

const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const digits = value => value === null ? "–" : value.toFixed(4);
function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds)), two = n => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole % 3600 / 60))} min`;
}
function hours(n) { return n < 1 ? `${(n * 60).toFixed(1)} minutes` : `${n.toFixed(2)} hours`; }

function make(tag, given = {}, ...children) {
  const element = Object.assign(document.createElement(tag), given);
  element.append(...children);
  return element;
}
function write(element, text) { if (element.textContent !== text) element.textContent = text; }

// Rows are kept by their key, so that the focus and a mark stay where they are.
function fillTable(body, rows, mark) {
  const there = new Map([...body.rows].map(row => [row.dataset.key, row]));
  rows.forEach(({ key, cells, words }, i) => {
    let row = there.get(key);
    if (!row) {
      row = make("tr");
      row.dataset.key = key;
      cells.forEach((_, j) => row.append(make("td", { className: words.includes(j) ? "text" : "" })));
      if (mark) {
        const button = make("button", { type: "button", title: "Mark in the figure" });
        button.addEventListener("click", () => mark(key));
        row.cells[0].append(button);
      }
    }
    there.delete(key);
    if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null);
    cells.forEach((text, j) => write(j === 0 && mark ? row.cells[0].firstChild : row.cells[j], text));
  });
  for (const row of there.values()) row.remove();
}

function progress(section, study) {
  const counts = states.map(({ name, statuses, colour }) =>
    [name, statuses.reduce((n, status) => n + (study.counts[status] ?? 0), 0), colour]);
  counts.push(["waiting", study.n_left + (study.counts.waiting ?? 0), "var(--rule)"]);
  const seen = counts.filter(([, n]) => n);
  const bar = section.querySelector(".bar");
  const part = ([, n, colour]) => {
    const each = make("span");
    each.style.setProperty("--colour", colour);
    each.style.flexGrow = n;
    return each;
  };
  bar.replaceChildren(...seen.map(part));
  bar.setAttribute("aria-label", seen.map(([name, n]) => `${n} ${name}`).join(", "));
  section.querySelector(".counts").replaceChildren(...seen.map(([name, n, colour]) => {
    const square = make("span");
    square.style.setProperty("--colour", colour);
    return make("li", {}, square, `${n.toLocaleString("en")} ${name}`);
  }));
}

function headline(study) {
  const { interrupted = 0, waiting = 0 } = study.counts;
  const ended = study.n_trials - study.n_left - study.running.length - interrupted - waiting;
  const n = `${ended.toLocaleString("en")} of ${plural(study.n_trials, "trial")} ended`;
  if (study.state === "finished") return `Finished: ${n}.`;
  if (study.state === "interrupted") return `Not running: ${n}.`;
  if (!ended && !study.running.length) return "No trial has begun: Ray starts, or data is made ready.";
  if (!study.running.length) return `${n}; none is in training at the moment.`;
  const left = study.eta_s === null ? "" : `, about ${clock(study.eta_s)} left`;
  return `${n}, ${study.running.length.toLocaleString("en")} in training${left}.`;
}

function best(section, study) {
  const box = section.querySelector(".answer");
  if (!study.best) return box.replaceChildren(make("p", {}, `No value of ${study.metric} yet.`));
  const { value, label, epoch } = study.best;
  const isOver = study.state === "finished";
  const caution = isOver
    ? "The best of many single values is too high on average: see the full report."
    : "The best of many single values so far: too high on average, and not final.";
  box.replaceChildren(
    make("p", {}, `Best ${study.metric}${isOver ? "" : " so far"}: `, make("strong", {}, digits(value))),
    make("p", {}, `${label}, ${epoch === null ? "mean over all folds" : `at epoch ${epoch}`}`), make("p", { className: "dim" }, caution));
}

function facts(section, study, status) {
  const rows = [];
  if (study.epoch_s !== null)
    rows.push(["Epochs", `${study.n_epochs.toLocaleString("en")}, ${study.epoch_s.toPrecision(2)} s each`]);
  if (study.n_reused) rows.push(["Reused", plural(study.n_reused, "trial")]);
  const ended = study.counts.pruned ?? 0;
  if (ended || study.n_audited)
    rows.push(["Early stopping", `${plural(ended, "trial")} ended early, ${study.n_audited} audited`]);
  if (study.running.length)
    rows.push(["In use", [study.gpus ? plural(study.gpus, "GPU") : "", plural(study.cpus, "CPU")]
      .filter(Boolean).join(", ")]);
  rows.push(["Run so far", `${hours(status.hours)}; CPUs ${hours(status.cpu_hours)}` +
    (status.gpu_hours ? `; GPUs ${hours(status.gpu_hours)}` : "")]);
  if (study.peak_memory_mb !== null)
    rows.push(["Peak memory of a trial", `${Math.round(study.peak_memory_mb).toLocaleString("en")} MB`]);
  section.querySelector(".basis").replaceChildren(
    ...rows.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]));
}

function points(study) {
  const nameOf = curve => curve.trial_id === study.best?.trial_id ? names.best
    : names[curve.status] ?? names.failed;
  const rows = study.curves.flatMap(curve => curve.epochs.map((epoch, i) => {
    const name = nameOf(curve), isStrong = name === names.best || name === names.running;
    return { cell: curve.trial_id, trial: curve.label, name, epoch, value: curve.values[i],
      is_strong: isStrong, is_last: i === curve.epochs.length - 1 };
  }));
  return rows.sort((a, b) => (a.name === names.best) - (b.name === names.best));
}

// What is nearly equal looks so.
function axis(rows) {
  const values = rows.map(row => row.value), low = Math.min(...values), high = Math.max(...values);
  const extra = Math.max(0, least - (high - low)) / 2 + (high - low) * 0.04;
  return [low - extra, high + extra];
}

async function chart(section, study) {
  const figure = section.querySelector(".chart"), rows = points(study);
  figure.hidden = !rows.length;
  if (!rows.length) return;
  const [low, high] = axis(rows);
  if (charts.has(section))
    return void await charts.get(section).data("curves", rows).signal("low", low).signal("high", high).runAsync();
  const spec = { ...JSON.parse(figure.querySelector("script").textContent), width: "container",
    datasets: { curves: rows } };
  for (const each of spec.params) each.value = { low, high }[each.name] ?? each.value;
  const options = { ast: true, actions: false, renderer: "svg", config: theme, logLevel: 1,
    tooltip: { theme: "custom", disableDefaultStyle: true } };
  const { view } = await vegaEmbed(figure.querySelector("div"), spec, options);
  view.addEventListener("click", (_, item) => mark(section, item?.datum?.cell ?? null));
  charts.set(section, view);
}

async function mark(section, trial) {
  const marked = trial === null || trial === section.dataset.marked ? null : trial;
  if (marked === null) delete section.dataset.marked; else section.dataset.marked = marked;
  for (const row of section.querySelectorAll("tr[data-key]"))
    row.classList.toggle("marked", row.dataset.key === marked);
  await charts.get(section)?.signal("marked", marked).runAsync();
}

async function draw(status) {
  for (const study of status.studies) {
    const section = sections.get(study.name);
    write(section.querySelector(".progress"), headline(study));
    progress(section, study);
    best(section, study);
    facts(section, study, status);
    const running = section.querySelector(".running");
    running.hidden = !study.running.length;
    fillTable(running.querySelector("tbody"), study.running.map(t => ({ key: t.trial_id, words: [0],
      cells: [t.label, `${t.epoch}/${study.epochs}`, digits(t.value), t.epoch_s === null ? "starting"
        : t.epoch_s.toPrecision(2)] })), key => mark(section, key));
    const failures = section.querySelector(".failures");
    failures.hidden = !study.failures.length;
    const n = ["failed", "diverged", "killed"].reduce((sum, each) => sum + (study.counts[each] ?? 0), 0);
    write(failures.querySelector("summary"), `${plural(n, "trial")} failed, diverged or killed`);
    fillTable(failures.querySelector("tbody"), study.failures.map(t => ({ key: t.trial_id, words: [0, 1, 3],
      cells: [t.label, t.status, String(t.epoch), t.error ?? "no error is recorded"] })), null);
    await chart(section, study);
  }
  document.getElementById("messages").replaceChildren(...status.messages.map(each => make("li", {}, each)));
}

function driver(status, isLive) {
  const line = document.getElementById("driver"), who = status.driver;
  line.className = "";
  const process = who?.pid ? `process ${who.pid} on ${who.host}, started ${who.started}` : "a driver";
  if (isLive && who?.is_alive === null) write(line, `May be driven by ${process}; only that machine knows.`);
  else if (isLive) write(line, `Running: ${process}. This page follows it.`);
  else if (status.studies.every(study => study.state === "finished"))
    write(line, "The sweep has finished. This page no longer updates.");
  else
    line.replaceChildren(`No driver runs${status.halted ? `: ${status.halted}` : ""}. To continue: `,
      make("code", {}, `birdtune resume ${status.run}`),
      ". This page no longer updates; reload it then.");
}

async function poll() {
  let status, text;
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    text = await answer.text();
    status = JSON.parse(text);
    if (!answer.ok) throw new Error(status.error);
  } catch (error) {
    const line = document.getElementById("driver");
    line.className = "lost";
    write(line, status?.error ?? "The server does not answer: was birdtune dashboard ended?");
    setTimeout(poll, 2 * POLL_MS);
    return;
  }
  if (status.studies.some(study => !sections.has(study.name))) return location.reload();
  const isLive = status.studies.some(study => ["running", "unknown"].includes(study.state));
  driver(status, isLive);
  if (text !== drawn) {
    await draw(status);
    drawn = text;
    const n = status.studies.map(study => `${study.n_trials - study.n_left - study.running.length}/${study.n_trials}`);
    document.title = `${n.join(", ")} · birdtune dashboard`;
  }
  document.documentElement.dataset.live = isLive;
  if (!isLive) return;
  // A page that nobody sees asks for nothing.
  if (document.hidden) document.addEventListener("visibilitychange", poll, { once: true });
  else setTimeout(poll, POLL_MS);
}
poll();
