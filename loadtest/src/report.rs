//! Results as one HTML file with pictures in SVG: nothing is fetched, nothing runs.

use std::fmt::Write as _;

use crate::{run::Run, tally::StepOutcome};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 14.0;
const RIGHT: f64 = 12.0;
/// Runs are told apart by colour, quantiles by dashes.
const COLOURS: [&str; 6] = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1f2328}\
h1{font-size:1.4em}h2{font-size:1.1em;margin:1.6em 0 .4em}figure{display:inline-block;margin:.4em}\
figcaption{font-weight:600}table{border-collapse:collapse;font-size:12px}\
td,th{padding:.2em .6em;border-bottom:1px solid #d0d7de;text-align:right}th:first-child,td:first-child{text-align:left}\
.bad{color:#d1242f}svg text{font:10px system-ui,sans-serif;fill:#57606a}";

/// One line of a picture.
struct Line<'a> {
    colour: &'a str,
    dashes: &'a str,
    points: Vec<(f64, f64)>,
}

/// The page of named runs.
pub(crate) fn page(runs: &[(String, Run)]) -> String {
    let mut html =
        String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Load</title>");
    // Writing to a String does not fail.
    let _ = write!(html, "<style>{STYLE}</style><h1>How it held under load</h1>");
    for (index, (name, run)) in runs.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let _ = write!(
            html,
            "<p><b style=\"color:{colour}\">{}</b>: {}. {} of verdict {} ({}), {}; {}. SLO {} ms.{}</p>",
            escape(name),
            escape(&run.scenario.about),
            escape(&run.model),
            escape(&run.version),
            escape(&run.commit),
            escape(&run.device),
            escape(&run.machine),
            run.scenario.slo_ms,
            run.capacity_per_second
                .map(|rate| format!(" Capacity by waiting clients: {rate:.1} answers/s."))
                .unwrap_or_default(),
        );
        for broken in &run.broken {
            let _ = write!(html, "<p class=\"bad\">Not as expected: {}</p>", escape(broken));
        }
    }
    html.push_str(
        "<p>Times are from when a request should have been sent. Solid p50, dashed p95, dotted p99.</p>",
    );
    let of = |dashes: &'static str, x: fn(&StepOutcome) -> f64, y: fn(&StepOutcome) -> f64| {
        runs.iter().enumerate().map(move |(index, (_, run))| Line {
            colour: COLOURS[index % COLOURS.len()],
            dashes,
            points: run.steps.iter().map(|step| (x(step), y(step))).collect(),
        })
    };
    let latency = of("", |s| s.answers_per_second, |s| s.latency.p50_ms)
        .chain(of("6 3", |s| s.answers_per_second, |s| s.latency.p95_ms))
        .chain(of("1 3", |s| s.answers_per_second, |s| s.latency.p99_ms));
    html += &picture("Latency against throughput", "answers/s", "ms", &latency.collect::<Vec<_>>());
    let goodput = of("", |s| s.rate, |s| s.goodput_per_second).collect::<Vec<_>>();
    html += &picture("Goodput within the SLO against offered load", "requests/s", "good answers/s", &goodput);
    let refused = of("", |s| s.rate, |s| 100.0 * s.counts.refused as f64 / s.counts.sent.max(1) as f64)
        .collect::<Vec<_>>();
    html += &picture("Refused", "requests/s", "% of sent", &refused);
    let split = of("", |s| s.rate, |s| s.queue.p50_ms).chain(of("6 3", |s| s.rate, |s| s.compute.p50_ms));
    html +=
        &picture("Queue (solid) and compute (dashed), p50", "requests/s", "ms", &split.collect::<Vec<_>>());
    let shared = of(
        "",
        |s| s.rate,
        |s| 100.0 * (s.shared_tokens + s.cached_tokens) as f64 / s.prompt_tokens.max(1) as f64,
    );
    html += &picture(
        "Tokens shared or from the cache",
        "requests/s",
        "% of prompt tokens",
        &shared.collect::<Vec<_>>(),
    );
    let distribution: Vec<Line<'_>> = runs
        .iter()
        .enumerate()
        .filter_map(|(index, (_, run))| {
            Some(Line {
                colour: COLOURS[index % COLOURS.len()],
                dashes: "",
                points: cumulative(run.steps.last()?),
            })
        })
        .collect();
    html += &picture("Latency of the last step, cumulative", "ms", "% of answers", &distribution);
    for (name, run) in runs {
        html += &table(name, run);
    }
    html
}

fn cumulative(step: &StepOutcome) -> Vec<(f64, f64)> {
    let mut sum = 0;
    let all = step.latency.count.max(1) as f64;
    let points = step.latency.histogram_us.iter().map(|(us, count)| {
        sum += count;
        (*us as f64 / 1e3, 100.0 * sum as f64 / all)
    });
    points.collect()
}

fn picture(title: &str, x_name: &str, y_name: &str, lines: &[Line<'_>]) -> String {
    let points =
        || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let x_most = nice(points().map(|point| point.0).fold(0.0, f64::max));
    let y_most = nice(points().map(|point| point.1).fold(0.0, f64::max));
    let x_at = |x: f64| LEFT + x / x_most * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| HEIGHT - BOTTOM - y / y_most * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!(
        "<figure><figcaption>{title}</figcaption><svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    );
    for part in 0..=4 {
        let (x, y) = (x_most * f64::from(part) / 4.0, y_most * f64::from(part) / 4.0);
        let (right, base) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{right}\" stroke=\"#d0d7de\"/><text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{y:.4}</text><text x=\"{3:.1}\" y=\"{4}\" text-anchor=\"middle\">{x:.4}</text>",
            y_at(y),
            LEFT - 6.0,
            y_at(y) + 3.0,
            x_at(x),
            base + 14.0,
            y = Short(y),
            x = Short(x),
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_name}</text><text x=\"4\" y=\"10\">{y_name}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0
    );
    for Line { colour, dashes, points } in lines {
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-dasharray=\"{dashes}\"/>",
            path.join(" ")
        );
        for point in path.iter().filter(|_| points.len() < 40) {
            let (x, y) = point.split_once(',').unwrap_or(("0", "0"));
            let _ = write!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"2.4\" fill=\"{colour}\"/>");
        }
    }
    svg.push_str("</svg></figure>");
    svg
}

/// A number at an axis.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.0 == 0.0 || self.0 >= 10.0 { 0 } else { 2 };
        write!(formatter, "{:.digits$}", self.0)
    }
}

/// The next 1, 2, 2.5 or 5 times a power of ten.
fn nice(most: f64) -> f64 {
    if most <= 0.0 || !most.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|step| step * power).find(|top| *top >= most).unwrap_or(most)
}

fn table(name: &str, run: &Run) -> String {
    let mut html = format!(
        "<h2>{}</h2><table><tr><th>offered/s<th>of capacity<th>sent<th>ok/s<th>good/s<th>p50<th>p95<th>p99 ms<th>queue p50<th>compute p50<th>refused<th>in, p99 ms<th>late<th>left<th>failed<th>reasons<th>shed<th>shared %<th>wasted %<th>MiB</tr>",
        escape(name)
    );
    for step in &run.steps {
        let shared =
            100.0 * (step.shared_tokens + step.cached_tokens) as f64 / step.prompt_tokens.max(1) as f64;
        let wasted = 100.0 * step.server.wasted_tokens / step.server.computed_tokens.max(1.0);
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{:.1}<td>{:.1}<td>{:.1}<td>{:.1}<td>{:.1}<td>{:.1}<td>{:.1}<td>{}<td>{:.1}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{shared:.0}<td>{wasted:.2}<td>{}</tr>",
            step.clients.map_or(format!("{:.1}", step.rate), |clients| format!("{clients} waiting")),
            step.capacity.map(|times| format!("{times:.2}")).unwrap_or_default(),
            step.counts.sent,
            step.answers_per_second,
            step.goodput_per_second,
            step.latency.p50_ms,
            step.latency.p95_ms,
            step.latency.p99_ms,
            step.queue.p50_ms,
            step.compute.p50_ms,
            step.counts.refused,
            step.refusal.p99_ms,
            step.counts.late,
            step.counts.left,
            step.counts.failed,
            step.counts.reasons,
            step.counts.shed,
            step.server.resident_mib.map(|mib| format!("{mib:.0}")).unwrap_or_default(),
        );
    }
    html + "</table>"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (most, top) in [(0.0, 1.0), (0.7, 1.0), (13.0, 20.0), (21.0, 25.0), (26.0, 50.0), (99.0, 100.0)] {
            assert!((nice(most) - top).abs() < 1e-9, "{most}");
        }
        assert_eq!(nice(f64::NAN), 1.0);
    }

    #[test]
    fn a_picture_holds_its_lines_and_no_text_of_others_as_html() {
        let line = Line { colour: "#000", dashes: "", points: vec![(0.0, 0.0), (10.0, 5.0)] };
        let svg = picture("T", "x", "y", &[line]);
        assert!(svg.contains("polyline points=\"56.0,224.0 448.0,14.0\""), "{svg}");
        assert_eq!(escape("<b>&\""), "&lt;b&gt;&amp;&quot;");
    }
}
