  // values at the pointer
  const nearest = (points, step) => points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
  for (const plot of document.querySelectorAll(".plot")) {
    const data = JSON.parse(plot.dataset.chart);
    const cursor = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
    const text = (value) => data.percent ? `${+(100 * value).toFixed(1)} %` : `${+value.toPrecision(4)}`;
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const wanted = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * (data.last - data.first) + data.first;
      const step = nearest(data.series.flatMap((series) => series.points), wanted)[0];
      tip.replaceChildren(`${data.x} ${step}`);
      for (const series of data.series) {
        const point = series.points.find((candidate) => candidate[0] === step);
        if (!point) continue;
        const band = series.band.find((candidate) => candidate[0] === step);
        const key = document.createElement("span"), line = document.createElement("div");
        key.className = `key b${series.color}`;
        line.append(key, `${series.name} ${text(point[1])}${band ? ` (${text(band[1])} to ${text(band[2])})` : ""}`);
        tip.append(line);
      }
      const at = (step - data.first) / (data.last - data.first);
      cursor.style.display = tip.style.display = "block";
      cursor.style.left = `${100 * at}%`;
      tip.style.left = `${Math.min(Math.max(at * box.width + (at < 0.5 ? 12 : -12 - tip.offsetWidth), -40), box.width - tip.offsetWidth)}px`;
    });
    plot.addEventListener("pointerleave", () => { cursor.style.display = tip.style.display = "none"; });
  }
