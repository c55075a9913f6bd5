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
    let (mut inside, mut found, mut open) = (false, false, Open::default());
    for line in file.split_inclusive('\n') {
        // A line within an array or a text that goes on over lines is no header.
        if open.is_nothing() && line.trim_start().starts_with('[') {
            inside = is_calibration(line);
            found |= inside;
        }
        open.pass(line);
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

/// Whether a header is that of the table, however it is spaced.
fn is_calibration(header: &str) -> bool {
    let name = header.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'));
    name.is_some_and(|(name, _)| name.trim().trim_matches(['"', '\'']) == "calibration")
}

/// What quotes a text, the longest first: the first two go on over lines.
const QUOTES: [&str; 4] = ["\"\"\"", "'''", "\"", "'"];

/// What is open at the beginning of a line of TOML.
#[derive(Default)]
struct Open {
    brackets: i32,
    quote: Option<&'static str>,
}

impl Open {
    fn is_nothing(&self) -> bool {
        self.brackets == 0 && self.quote.is_none()
    }

    /// Reads a line.
    fn pass(&mut self, line: &str) {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let step = match self.quote {
                Some(quote) if rest.starts_with(quote) => {
                    self.quote = None;
                    // Before the three that end a long text one or two may stand that are of it.
                    let more = rest[quote.len()..].chars().take_while(|next| *next == first).count();
                    quote.len() + if quote.len() > 1 { more.min(2) } else { 0 }
                }
                Some(quote) if first == '\\' && quote.starts_with('"') => {
                    1 + rest[1..].chars().next().map_or(0, char::len_utf8)
                }
                Some(_) => first.len_utf8(),
                None => match QUOTES.into_iter().find(|quote| rest.starts_with(quote)) {
                    Some(quote) => {
                        self.quote = Some(quote);
                        quote.len()
                    }
                    None if first == '#' => break,
                    None => {
                        self.brackets += i32::from(first == '[') - i32::from(first == ']');
                        first.len_utf8()
                    }
                },
            };
            rest = &rest[step..];
        }
        self.quote = self.quote.filter(|quote| quote.len() > 1);
    }
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
    fn what_stands_in_a_text_is_no_table() {
        let table = "[calibration]\ntemperature = 2.0\n";
        for text in [
            "t = \"\"\"\nfrom [0, 3)\n[calibration]\n\\\"\"\" x [\n\"\"\"\"\n",
            "t = '''\n[calibration]\n\\'''\n",
            "t = \"[\" # [\nu = '[\"'\nv = \"\\\"[\"\n",
        ] {
            let kept = |calibration: &str| format!("{text}{calibration}[[grades]]\ntoken = \"a\"\n");
            assert_eq!(replaced(&kept("[ calibration ] # ours\ntemperature = 1.0\n"), table), kept(table));
            assert_eq!(replaced(&kept(""), table), format!("{}\n{table}", kept("")));
        }
    }

    #[test]
    fn a_table_is_written_as_it_was_fitted() {
        let calibration =
            Calibration { temperature: 1.25, points: vec![[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]] };
        let points = "[[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]";
        assert_eq!(text(&calibration), format!("[calibration]\ntemperature = 1.25\npoints = {points}\n"));
    }
}
