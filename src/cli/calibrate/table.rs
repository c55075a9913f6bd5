//! The `[calibration]` table of a `relevance.toml`.

use std::path::Path;

use anyhow::Context as _;

use crate::profile::Calibration;

use super::super::{
    Exit, Failure,
    local::{Local, ModelArgs},
};

/// The table, with its name.
pub(super) fn text(calibration: &Calibration) -> String {
    let Calibration { temperature, points } = calibration;
    let mut text = format!("[calibration]\ntemperature = {temperature:?}\n");
    if !points.is_empty() {
        text.push_str(&format!("points = {points:?}\n"));
    }
    text
}

/// Puts the table into the model's `relevance.toml` in place of the one that is there, and runs
/// the probes. What fails leaves the file as it was.
pub(super) fn write(model: &ModelArgs, table: &str) -> Result<(), Failure> {
    let dir = model.model.as_deref().unwrap_or(Path::new(""));
    let path = dir.join("relevance.toml");
    let before = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))
        .map_err(|error| Failure { exit: Exit::Usage, error })?;
    let put = |text: &str| {
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    };
    put(&replaced(&before, table))?;
    let checked = Local::start(model).and_then(|local| {
        let probes = local.runtime.block_on(local.service.run_probes());
        local.stop()?;
        probes.map_err(|error| Failure::new(Exit::Model, error))
    });
    if checked.is_err() {
        put(&before)?;
    }
    checked
}

/// `file` with its `[calibration]` replaced by `table`, or with `table` at its end.
fn replaced(file: &str, table: &str) -> String {
    let (mut before, mut after) = (String::new(), String::new());
    let (mut inside, mut found, mut depth) = (false, false, 0_i32);
    for line in file.split_inclusive('\n') {
        // A line within an array that goes on over lines is no header.
        if depth == 0 && line.trim_start().starts_with('[') {
            inside = line.trim_start().starts_with("[calibration]");
            found |= inside;
        }
        depth += brackets(line);
        if !inside || line.trim().is_empty() {
            if found { &mut after } else { &mut before }.push_str(line);
        }
    }
    if found {
        return before + table + &after;
    }
    let line_break = if file.ends_with('\n') || file.is_empty() { "\n" } else { "\n\n" };
    format!("{file}{line_break}{table}")
}

/// Square brackets opened less those closed, outside of strings and comments.
fn brackets(line: &str) -> i32 {
    let (mut depth, mut quoted) = (0, false);
    let mut escaped = false;
    for c in line.chars() {
        match c {
            '"' if !escaped => quoted = !quoted,
            '#' if !quoted => break,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth -= 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    depth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_the_place_of_the_old_one() {
        let table = "[calibration]\ntemperature = 2.0\n";
        let old = "a = 1\n[calibration]\n# now\npoints = [\n  [0.0, 0.0],\n  [1.0, 1.0],\n]\n\n[[grades]]\ntoken = \"]\"\n";
        let new = "a = 1\n[calibration]\ntemperature = 2.0\n\n[[grades]]\ntoken = \"]\"\n";
        assert_eq!(replaced(old, table), new);
        assert_eq!(replaced(new, table), new);
        assert_eq!(replaced("a = 1\n", table), format!("a = 1\n\n{table}"));
    }

    #[test]
    fn a_table_is_written_as_it_was_fitted() {
        let calibration =
            Calibration { temperature: 1.25, points: vec![[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]] };
        let points = "[[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]";
        assert_eq!(text(&calibration), format!("[calibration]\ntemperature = 1.25\npoints = {points}\n"));
    }
}
