//! Results as one HTML file with pictures in SVG: nothing is fetched, nothing runs.

use std::fmt::Write as _;

use crate::{
    picture::{Line, picture},
    run::Run,
    tally::{Spread, StepOutcome},
};

/// Runs are told apart by colour, quantiles by dashes.
const COLOURS: [&str; 6] = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1f2328}\
h1{font-size:1.4em}h2{font-size:1.1em;margin:1.6em 0 .4em}figure{display:inline-block;margin:.4em}\
figcaption{font-weight:600}table{border-collapse:collapse;font-size:12px}\
td,th{padding:.2em .6em;border-bottom:1px solid #d0d7de;text-align:right}th:first-child,td:first-child{text-align:left}\
div{overflow-x:auto}\
.bad{color:#d1242f}svg text{font:10px system-ui,sans-serif;fill:#57606a}";

/// The page of named runs.
pub(crate) fn page(runs: &[(String, Run)]) -> String {
    let mut html =
        String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Load</title>");
    // Writing to a String does not fail.
    let _ = write!(html, "<style>{STYLE}</style><h1>How it held under load</h1>");
    for (index, (name, run)) in runs.iter().enumerate() {
        html += &about(name, run, colour(index));
    }
    html.push_str(
        "<p>Times are from when a request was due, at first if it was refused and came again. Rates are of answers \
         that came before the step's end. Solid p50, dashed p95, dotted p99.</p>",
    );
    html += &pictures(runs);
    for (name, run) in runs {
        html += &table(name, run);
        html += &failures(run);
    }
    html
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// What was run where, and what was not as expected.
fn about(name: &str, run: &Run, colour: &str) -> String {
    let mut html = format!(
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
    html
}

fn pictures(runs: &[(String, Run)]) -> String {
    let lines = |dashes, x: fn(&StepOutcome) -> f64, y: &dyn Fn(&StepOutcome) -> Option<f64>| {
        let line = |(index, (_, run)): (usize, &(String, Run))| Line {
            colour: colour(index),
            dashes,
            // What was not measured has no point.
            points: run.steps.iter().filter_map(|step| Some((x(step), y(step)?))).collect(),
        };
        runs.iter().enumerate().map(line).collect::<Vec<_>>()
    };
    let quantiles = |x: fn(&StepOutcome) -> f64, of: fn(&StepOutcome) -> &Spread| {
        let dashes = ["", "6 3", "1 3"].into_iter().enumerate();
        dashes.flat_map(|(which, dashes)| lines(dashes, x, &|s| of(s).quantiles()[which])).collect::<Vec<_>>()
    };
    let over = |dashes, y: &dyn Fn(&StepOutcome) -> Option<f64>| lines(dashes, load, y);
    let load_name = load_name(runs);
    let mut html = String::new();
    let answers: fn(&StepOutcome) -> f64 = |s| s.answers_per_second;
    html += &picture("Latency against throughput", "answers/s", "ms", &quantiles(answers, |s| &s.latency));
    html += &picture("Scores that reasons follow", load_name, "ms", &quantiles(load, |s| &s.explained));
    html += &picture("First reason", load_name, "ms", &quantiles(load, |s| &s.first_reason));
    let good = over("", &|s| Some(s.goodput_per_second));
    html += &picture("Goodput within the SLO against offered load", load_name, "good answers/s", &good);
    let refused = over("", &|s| Some(s.counts.refused_percent()));
    html += &picture("Refused", load_name, "% of sent, retries included", &refused);
    let mut split = over("", &|s| s.queue.quantiles()[0]);
    split.extend(over("6 3", &|s| s.compute.quantiles()[0]));
    html += &picture("Queue (solid) and compute (dashed), p50", load_name, "ms", &split);
    html += &picture(
        "Tokens shared or from the cache",
        load_name,
        "% of prompt tokens",
        &over("", &shared_percent),
    );
    let last = |(index, (_, run)): (usize, &(String, Run))| {
        Some(Line { colour: colour(index), dashes: "", points: cumulative(run.steps.last()?) })
    };
    let distribution: Vec<_> = runs.iter().enumerate().filter_map(last).collect();
    html + &picture("Latency of the last step, cumulative", "ms", "% of answers", &distribution)
}

/// Where a step lies on an axis of what was asked.
fn load(step: &StepOutcome) -> f64 {
    step.clients.map_or(step.rate, |clients| clients as f64)
}

fn load_name(runs: &[(String, Run)]) -> &'static str {
    let steps = || runs.iter().flat_map(|(_, run)| &run.steps);
    match (steps().any(|step| step.clients.is_some()), steps().any(|step| step.clients.is_none())) {
        (true, false) => "clients that wait",
        (true, true) => "requests/s, or clients that wait",
        (false, _) => "requests/s",
    }
}

fn shared_percent(step: &StepOutcome) -> Option<f64> {
    let shared = step.shared_tokens + step.cached_tokens;
    // Where an answer does not tell, no token was had in any way.
    let told = shared + step.computed_tokens > 0;
    told.then(|| 100.0 * shared as f64 / step.prompt_tokens.max(1) as f64)
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

/// A column: its title, and what it holds of a step. What was not measured is empty.
type Column = (&'static str, fn(&StepOutcome) -> String);

const COLUMNS: [Column; 30] = [
    ("offered", StepOutcome::load),
    ("of capacity", |s| digits(s.capacity, 2)),
    ("sent", |s| s.counts.sent.to_string()),
    ("ok", |s| s.counts.ok.to_string()),
    ("ok/s", |s| digits(Some(s.answers_per_second), 1)),
    ("good/s", |s| digits(Some(s.goodput_per_second), 1)),
    ("p50", |s| digits(s.latency.quantiles()[0], 1)),
    ("p95", |s| digits(s.latency.quantiles()[1], 1)),
    ("p99 ms", |s| digits(s.latency.quantiles()[2], 1)),
    ("scores before reasons, p50", |s| digits(s.explained.quantiles()[0], 1)),
    ("p99 ms", |s| digits(s.explained.quantiles()[2], 1)),
    ("first reason, p50", |s| digits(s.first_reason.quantiles()[0], 1)),
    ("p99 ms", |s| digits(s.first_reason.quantiles()[2], 1)),
    ("queue p50", |s| digits(s.queue.quantiles()[0], 1)),
    ("compute p50", |s| digits(s.compute.quantiles()[0], 1)),
    ("refused", |s| s.counts.refused.to_string()),
    ("in, p99 ms", |s| digits(s.refusal.quantiles()[2], 1)),
    ("came again", |s| s.counts.retried.to_string()),
    ("of them taken", |s| s.counts.retried_ok.to_string()),
    ("late", |s| s.counts.late.to_string()),
    ("left", |s| s.counts.left.to_string()),
    ("unavailable", |s| s.counts.unavailable.to_string()),
    ("gone", |s| s.counts.gone.to_string()),
    ("cut", |s| s.counts.cut.to_string()),
    ("failed", |s| s.counts.failed.to_string()),
    ("reasons", |s| s.counts.reasons.to_string()),
    ("shed", |s| s.counts.shed.to_string()),
    ("shared %", |s| digits(shared_percent(s), 0)),
    ("wasted %", |s| digits(s.server.wasted().map(|part| 100.0 * part), 2)),
    ("MiB", |s| digits(s.server.resident_mib, 0)),
];

fn digits(value: Option<f64>, digits: usize) -> String {
    value.map(|value| format!("{value:.digits$}")).unwrap_or_default()
}

fn table(name: &str, run: &Run) -> String {
    let mut html = format!("<h2>{}</h2><div><table><tr>", escape(name));
    COLUMNS.iter().for_each(|(title, _)| html += &format!("<th>{title}"));
    html += "</tr>";
    for step in &run.steps {
        html += "<tr>";
        COLUMNS.iter().for_each(|(_, of)| html += &format!("<td>{}", of(step)));
        html += "</tr>";
    }
    html + "</table></div>"
}

/// The first failures of each step, in words.
fn failures(run: &Run) -> String {
    let mut html = String::new();
    for step in &run.steps {
        for failure in &step.failures {
            let _ = write!(html, "<p class=\"bad\">{}: {}</p>", step.load(), escape(failure));
        }
    }
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        client::{Answer, Outcome},
        tally::{Counts, Goal, ServerDelta, Tally},
        texts::Ask,
    };

    fn run(steps: Vec<StepOutcome>) -> Vec<(String, Run)> {
        let scenario = toml::from_str(
            "name = 'a'\nabout = 'b'\nslo_ms = 100.0\n[[traffic]]\ndocuments = [1, 2]\nwords = [3, 4]\n\
             [[step]]\nseconds = 1.0\nrate = 5.0\n",
        );
        let run = Run {
            scenario: scenario.expect("a scenario"),
            version: String::new(),
            commit: String::new(),
            model: String::new(),
            device: String::new(),
            machine: String::new(),
            at: 0,
            capacity_per_second: None,
            steps,
            broken: Vec::new(),
        };
        vec![("a <run>".into(), run)]
    }

    fn outcome(tally: &Tally, step: &str) -> StepOutcome {
        let step = toml::from_str(&format!("seconds = 1.0\n{step}")).expect("a step");
        tally.outcome(step_rate(&step), &step, ServerDelta::default())
    }

    fn step_rate(step: &crate::scenario::Step) -> f64 {
        step.rate.unwrap_or(0.0)
    }

    fn cells(html: &str) -> Vec<(&str, &str)> {
        let row = html.split("<tr>").nth(2).and_then(|row| row.split("</tr>").next()).expect("a row");
        COLUMNS.iter().map(|(title, _)| *title).zip(row.split("<td>").skip(1)).collect()
    }

    #[test]
    fn every_way_to_fail_has_its_column_and_its_words() {
        let counts =
            Counts { sent: 90, ok: 1, refused: 50, retried: 40, retried_ok: 30, ..Counts::default() };
        let mut tally =
            Tally { counts: Counts { unavailable: 11, gone: 12, cut: 13, ..counts }, ..Tally::default() };
        tally.ended(Outcome::Failed("500: <b>".into()));
        let html = page(&run(vec![outcome(&tally, "rate = 5.0")]));
        let cells = cells(&html);
        for cell in [
            ("came again", "40"),
            ("of them taken", "30"),
            ("unavailable", "11"),
            ("gone", "12"),
            ("cut", "13"),
            ("failed", "1"),
        ] {
            assert!(cells.contains(&cell), "{cell:?} in {cells:?}");
        }
        assert!(html.contains("<p class=\"bad\">5.0/s: 500: &lt;b&gt;</p>"), "{html}");
        assert!(html.contains("a &lt;run&gt;"));
    }

    #[test]
    fn what_was_not_measured_is_empty_and_has_no_picture() {
        let mut tally = Tally::default();
        let now = Instant::now();
        let goal = Goal { slo_ms: 100.0, ends: now + Duration::from_secs(1) };
        let ms = Duration::from_millis;
        let answer = Answer {
            after: ms(20),
            explained: true,
            reason_after: Some(ms(50)),
            reasons: 1,
            ..Answer::default()
        };
        tally.answered(&answer, now, now, goal, &Ask::default());
        let html = page(&run(vec![outcome(&tally, "rate = 5.0")]));
        let cells = cells(&html);
        assert_eq!(cells[6..9], [("p50", ""), ("p95", ""), ("p99 ms", "")]);
        assert_eq!(cells[9].0, "scores before reasons, p50");
        let shown: Vec<f64> = cells[9..13].iter().map(|(_, ms)| ms.parse().expect("measured")).collect();
        assert!(shown.iter().zip([20.0, 20.0, 50.0, 50.0]).all(|(ms, about)| (ms - about).abs() < 0.2));
        assert!(!html.contains("Latency against throughput") && !html.contains("NaN"), "{html}");
        assert!(html.contains("Scores that reasons follow") && html.contains("First reason"));
        let untold = ["queue p50", "compute p50", "shared %", "wasted %", "MiB", "in, p99 ms"];
        assert!(untold.iter().all(|title| cells.contains(&(title, ""))), "{cells:?}");
    }

    #[test]
    fn clients_that_wait_are_apart_on_their_axis() {
        let tally = Tally::default();
        let step = |clients| outcome(&tally, &format!("clients = {clients}"));
        let runs = run(vec![step(1), step(8), step(64)]);
        assert_eq!(runs[0].1.steps.iter().map(load).collect::<Vec<_>>(), [1.0, 8.0, 64.0]);
        let html = page(&runs);
        let goodput = html.split("<figcaption>").find(|figure| figure.starts_with("Goodput")).expect("drawn");
        assert!(goodput.contains("clients that wait") && !goodput.contains("requests/s"), "{goodput}");
        let mixed = run(vec![step(1), outcome(&tally, "rate = 5.0")]);
        assert_eq!(load_name(&mixed), "requests/s, or clients that wait");
    }
}
