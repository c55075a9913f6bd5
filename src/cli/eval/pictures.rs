//! Pictures as SVG: a reliability diagram, and judged against predicted grades. Pure.

use std::fmt::Write as _;

use super::metrics::Scored;

const SIDE: f64 = 320.0;
const EDGE: f64 = 48.0;
/// Bins of the reliability diagram.
const BINS: usize = 10;

/// Mean score against mean judged relevance in ten bins of the score, dots by how many pairs.
pub(in crate::cli) fn reliability(title: &str, pairs: &[&Scored]) -> String {
    let mut bins = [(0.0, 0.0, 0_usize); BINS];
    for pair in pairs {
        let bin = &mut bins[((pair.score * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + pair.score, bin.1 + pair.target, bin.2 + 1);
    }
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or_default().max(1);
    let place = |x: f64, y: f64| (EDGE + x * SIDE, EDGE + (1.0 - y) * SIDE);
    let mut body = String::new();
    let ((x0, y0), (x1, y1)) = (place(0.0, 0.0), place(1.0, 1.0));
    line(
        &mut body,
        format_args!(
            r##"<rect x="{x0}" y="{y1}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>"##
        ),
    );
    line(&mut body, format_args!(r##"<path d="M{x0} {y0}L{x1} {y1}" stroke="#bbb" stroke-dasharray="4"/>"##));
    for (score, target, count) in bins.iter().filter(|bin| bin.2 > 0) {
        let (x, y) = place(score / *count as f64, target / *count as f64);
        let radius = 3.0 + 9.0 * (*count as f64 / most as f64).sqrt();
        line(
            &mut body,
            format_args!(
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" fill="#2563eb" fill-opacity=".6"><title>{count} pairs</title></circle>"##
            ),
        );
    }
    document(title, "score", "judged relevance", &body)
}

/// How often each judged grade (rows) was predicted as each grade (columns); shades by row.
pub(in crate::cli) fn confusion(title: &str, counts: &[Vec<usize>]) -> String {
    let size = counts.len();
    let cell = SIDE / size.max(1) as f64;
    let mut body = String::new();
    for (judged, row) in counts.iter().enumerate() {
        let total = row.iter().sum::<usize>().max(1) as f64;
        for (predicted, count) in row.iter().enumerate() {
            let (x, y) = (EDGE + predicted as f64 * cell, EDGE + (size - 1 - judged) as f64 * cell);
            let shade = *count as f64 / total;
            line(
                &mut body,
                format_args!(
                    r##"<rect x="{x:.1}" y="{y:.1}" width="{cell:.1}" height="{cell:.1}" fill="#2563eb" fill-opacity="{shade:.2}" stroke="#888"/>"##
                ),
            );
            let (x, y) = (x + cell / 2.0, y + cell / 2.0);
            line(
                &mut body,
                format_args!(r##"<text x="{x:.1}" y="{y:.1}" text-anchor="middle">{count}</text>"##),
            );
        }
        let (along, up) =
            (EDGE + (judged as f64 + 0.5) * cell, EDGE + (size as f64 - judged as f64 - 0.5) * cell);
        line(
            &mut body,
            format_args!(
                r##"<text x="{along:.1}" y="{:.1}" text-anchor="middle">{judged}</text>"##,
                EDGE + SIDE + 16.0
            ),
        );
        line(
            &mut body,
            format_args!(r##"<text x="{:.1}" y="{up:.1}" text-anchor="end">{judged}</text>"##, EDGE - 8.0),
        );
    }
    document(title, "predicted grade", "judged grade", &body)
}

fn line(body: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(body, "{text}");
}

fn document(title: &str, across: &str, up: &str, body: &str) -> String {
    let (size, middle) = (SIDE + 2.0 * EDGE, EDGE + SIDE / 2.0);
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{middle}" y="24" text-anchor="middle" font-size="14">{title}</text>
<text x="{middle}" y="{:.0}" text-anchor="middle">{across}</text>
<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{up}</text>
{body}</svg>
"##,
        size - 12.0
    )
}
