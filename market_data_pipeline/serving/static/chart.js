// One chart: candles, volume, and a pane or a line for each feature. Knows how to draw, not where bars come from.

import {
  CandlestickSeries, CrosshairMode, HistogramSeries, LineSeries, createChart, createSeriesMarkers, createTextWatermark,
} from "./vendor/lightweight-charts.standalone.production.mjs";

const HEIGHTS = { price: 320, volume: 90, float: 90, label: 34 }; // pixels of a pane
const AXIS = 28; // of the time axis
const WITH_VOLUME = new Set(["rolling_volume_20"]); // features with the unit of an existing pane
const NEAR_THE_EDGE = 50; // bars left before the oldest when more are loaded
const NO_FIGURES = { type: "custom", minMove: 1, formatter: () => "" }; // for the axis of labels
const BOOLEAN = ["true"];

export class SeriesChart {
  // `corrected` holds the times of bars to mark; `older` is called when the reader comes near the oldest bar.
  constructor(frame, readout, corrected, older) {
    this.frame = frame;
    this.readout = readout;
    this.corrected = corrected;
    this.records = [];
    this.byTime = new Map();
    this.features = []; // { name, kind, labels, series, watermark, pane }
    const daily = frame.dataset.timeframe === "1d";
    this.chart = createChart(frame, {
      autoSize: true,
      layout: { attributionLogo: false, fontFamily: getComputedStyle(document.body).fontFamily, panes: { enableResize: false } },
      crosshair: { mode: CrosshairMode.Normal },
      timeScale: { timeVisible: !daily, secondsVisible: false, rightOffset: 3 },
      localization: { timeFormatter: (time) => this.clock(time) },
    });
    this.fine = frame.dataset.symbol.startsWith("C:"); // a currency pair moves in its fourth and fifth decimal
    const priceFormat = this.fine ? { type: "price", precision: 5, minMove: 1e-5 } : { type: "price", precision: 2, minMove: 0.01 };
    this.candles = this.chart.addSeries(CandlestickSeries, { borderVisible: false, priceLineVisible: false, priceFormat }, 0);
    this.volume = this.chart.addSeries(HistogramSeries, { priceFormat: { type: "volume" }, priceLineVisible: false, lastValueVisible: false }, 1);
    this.markers = createSeriesMarkers(this.candles, []);
    this.chart.subscribeCrosshairMove((at) => this.read(at.time === undefined ? null : this.byTime.get(at.time)));
    this.chart.timeScale().subscribeVisibleLogicalRangeChange((range) => {
      if (range && this.records.length && range.from < NEAR_THE_EDGE) older();
    });
    frame.addEventListener("keydown", (event) => this.key(event));
    this.paint();
  }

  // Return a value as readable text.
  static words(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value);
    if (size >= 1e5) return Math.round(value).toLocaleString("en");
    return size >= 1 ? value.toFixed(2) : value === 0 ? "0" : value.toPrecision(3);
  }

  clock(time) {
    const text = new Date(time * 1000).toISOString();
    return this.frame.dataset.timeframe === "1d" ? text.slice(0, 10) : `${text.slice(0, 10)} ${text.slice(11, 16)}Z`;
  }

  // --- data

  setRecords(records) {
    const first = !this.records.length;
    this.records = records;
    this.byTime = new Map(records.map((record) => [record.time, record]));
    this.candles.setData(records.map(({ time, open, high, low, close }) => ({ time, open, high, low, close })));
    this.fillVolume();
    for (const feature of this.features) this.fill(feature);
    this.mark();
    this.read(this.byTime.get(this.current?.time) ?? null); // an update leaves the reader at the bar being read
    if (first) this.chart.timeScale().setVisibleLogicalRange({ from: Math.max(records.length - 180, 0), to: records.length + 3 });
  }

  fillVolume() {
    const { up, down } = this.colours;
    this.volume.setData(this.records.map(({ time, open, close, volume }) => (volume === null ? { time } : { time, value: volume, color: fade(close >= open ? up : down) })));
  }

  fill({ name, kind, labels, series }) {
    const palette = this.colours.labels;
    const known = kind === "bool" ? BOOLEAN : labels;
    series.setData(
      this.records.map((record) => {
        const { time, [name]: value } = record;
        if (value === null || value === undefined || value === false) return { time };
        return kind === "float" ? { time, value } : { time, value: 1, color: palette[known.indexOf(String(value)) % palette.length] ?? palette[0] };
      }),
    );
  }

  mark() {
    const shape = { position: "aboveBar", shape: "arrowDown", color: this.colours.mark };
    this.markers.setMarkers(this.records.filter(({ time }) => this.corrected.has(time)).map(({ time }) => ({ time, ...shape })));
  }

  // Show exactly these features, each { name, kind, labels }.
  show(features) {
    for (const feature of this.features) this.chart.removeSeries(feature.series);
    while (this.chart.panes().length > 2) this.chart.removePane(this.chart.panes().length - 1);
    let pane = 2;
    this.features = features.map((feature) => {
      const at = WITH_VOLUME.has(feature.name) ? 1 : pane++;
      const label = feature.kind !== "float";
      const series = label
        ? this.chart.addSeries(HistogramSeries, { priceLineVisible: false, lastValueVisible: false, priceFormat: NO_FIGURES, autoscaleInfoProvider: () => ({ priceRange: { minValue: 0, maxValue: 1 } }) }, at)
        : this.chart.addSeries(LineSeries, { lineWidth: 1.5, priceLineVisible: false, priceFormat: { type: "custom", minMove: 1e-8, formatter: SeriesChart.words } }, at);
      if (label) series.priceScale().applyOptions({ scaleMargins: { top: 0.45, bottom: 0.1 }, ticksVisible: false });
      return { ...feature, series, pane: at };
    });
    const heights = [HEIGHTS.price, HEIGHTS.volume, ...this.features.filter(({ pane: at }) => at > 1).map(({ kind }) => (kind === "float" ? HEIGHTS.float : HEIGHTS.label))];
    this.frame.style.height = `${heights.reduce((sum, height) => sum + height, AXIS)}px`;
    this.chart.panes().forEach((each, index) => each.setStretchFactor(heights[index]));
    this.watermarks?.forEach((watermark) => watermark.detach());
    this.watermarks = null;
    this.paint();
    this.read(null);
  }

  // --- colours follow the page's scheme

  paint() {
    this.colours = scheme(this.frame);
    const { ink, soft, line, card, up, down, series } = this.colours;
    this.chart.applyOptions({
      layout: { background: { color: card }, textColor: soft, panes: { separatorColor: line, separatorHoverColor: line } },
      grid: { vertLines: { color: line }, horzLines: { color: line } },
      rightPriceScale: { borderColor: line },
      timeScale: { borderColor: line },
    });
    this.candles.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down });
    this.fillVolume();
    for (const feature of this.features) {
      if (feature.kind === "float") feature.series.applyOptions({ color: series });
      this.fill(feature);
    }
    this.mark();
    this.name(ink);
  }

  // Title each pane below the first with what it shows.
  name(ink) {
    this.watermarks?.forEach((watermark) => watermark.detach());
    const panes = this.chart.panes();
    const title = (pane, text) =>
      createTextWatermark(pane, { horzAlign: "left", vertAlign: "top", lines: [{ text, color: ink, fontSize: 11, fontFamily: getComputedStyle(document.body).fontFamily }] });
    this.watermarks = [
      title(panes[1], ["volume", ...this.features.filter(({ pane }) => pane === 1).map(({ name }) => name)].join(", ")),
      ...this.features.filter(({ pane }) => pane > 1).map(({ name, pane }) => title(panes[pane], name)),
    ];
  }

  // --- reading values

  read(record) {
    this.current = record;
    const shown = record ?? this.records.at(-1);
    if (!shown) return;
    const { open, high, low, close, volume, time } = shown;
    const price = (value) => (this.fine ? value.toFixed(5) : value);
    const parts = [["", this.clock(time)], ["O", price(open)], ["H", price(high)], ["L", price(low)], ["C", price(close)], ["volume", volume]];
    for (const { name } of this.features) parts.push([name, shown[name]]);
    this.readout.replaceChildren(
      ...parts.flatMap(([name, value]) => {
        const part = document.createElement("span");
        if (name) part.append(Object.assign(document.createElement("span"), { className: "soft", textContent: `${name} ` }));
        part.append(SeriesChart.words(value));
        const feature = this.features.find((each) => each.name === name && each.kind !== "float");
        if (feature && value !== null && value !== undefined && value !== false) part.prepend(this.swatch(feature, value));
        return [part, " "];
      }),
    );
  }

  swatch({ kind, labels }, value) {
    const box = document.createElement("span");
    box.className = "swatch";
    const known = kind === "bool" ? BOOLEAN : labels;
    box.style.background = this.colours.labels[known.indexOf(String(value)) % this.colours.labels.length];
    return box;
  }

  key(event) {
    const scale = this.chart.timeScale();
    const last = this.records.length - 1;
    if (last < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const index = this.current ? this.records.indexOf(this.current) : last + 1;
    const range = scale.getVisibleLogicalRange();
    const zoom = (factor) => {
      const middle = (range.from + range.to) / 2;
      const half = Math.max(((range.to - range.from) / 2) * factor, 5);
      scale.setVisibleLogicalRange({ from: middle - half, to: middle + half });
    };
    const go = (to) => {
      const record = this.records[Math.min(Math.max(to, 0), last)];
      const place = this.records.indexOf(record);
      const width = range.to - range.from;
      if (place < range.from + 1) scale.setVisibleLogicalRange({ from: place - 1, to: place - 1 + width });
      else if (place > range.to - 1) scale.setVisibleLogicalRange({ from: place + 1 - width, to: place + 1 });
      this.readout.setAttribute("aria-live", "polite");
      this.chart.setCrosshairPosition(record.close, record.time, this.candles);
      this.read(record);
    };
    const action = {
      ArrowLeft: () => go(index - 1),
      ArrowRight: () => go(index + 1),
      PageUp: () => go(index - 20),
      PageDown: () => go(index + 20),
      End: () => (scale.scrollToRealTime(), go(last)),
      "+": () => zoom(0.7),
      "=": () => zoom(0.7),
      "-": () => zoom(1.4),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

// light-dark() in a custom property is resolved only where it is used.
function scheme(frame) {
  const probe = document.createElement("span");
  probe.hidden = true;
  frame.append(probe);
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = { ink: "ink", soft: "soft", line: "grid", card: "card", up: "up", down: "down", series: "link", mark: "aging-ink" };
  const found = Object.fromEntries(Object.entries(names).map(([key, name]) => [key, colour(name)]));
  found.labels = [1, 2, 3, 4, 5, 6].map((number) => colour(`label-${number}`));
  probe.remove();
  return found;
}

function fade(colour) {
  return colour.replace("rgb(", "rgba(").replace(")", ", 0.5)");
}
