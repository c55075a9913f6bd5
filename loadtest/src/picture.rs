//! Lines over an axis, in SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 14.0;
const RIGHT: f64 = 12.0;

/// One line of a picture.
pub(crate) struct Line<'a> {
    pub(crate) colour: &'a str,
    pub(crate) dashes: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One picture; nothing where there is nothing to show.
pub(crate) fn picture(title: &str, x_name: &str, y_name: &str, lines: &[Line<'_>]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        return String::new();
    }
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
    fn a_picture_holds_its_lines() {
        let line = Line { colour: "#000", dashes: "", points: vec![(0.0, 0.0), (10.0, 5.0)] };
        let svg = picture("T", "x", "y", &[line]);
        assert!(svg.contains("polyline points=\"56.0,224.0 448.0,14.0\""), "{svg}");
        let empty = Line { colour: "#000", dashes: "", points: Vec::new() };
        assert_eq!(picture("T", "x", "y", &[empty]), "", "no picture of nothing");
    }
}
