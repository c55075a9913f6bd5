//! How a document that is an object becomes text.

use serde_json::{Map, Value};

/// A parsed document template, such as `{title}\n{text}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DocumentTemplate {
    lines: Vec<Vec<Part>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(String),
}

impl DocumentTemplate {
    /// Parses a template: any `{name}` is a field; `{{` and `}}` are braces.
    pub(super) fn parse(template: &str) -> Result<Self, String> {
        let lines = template.split('\n').map(parse_line).collect::<Result<Vec<_>, _>>()?;
        if lines.iter().flatten().all(|part| matches!(part, Part::Literal(_))) {
            return Err(format!("{template:?} names no field, such as {{text}}"));
        }
        Ok(Self { lines })
    }

    /// Fills in the fields. A field that is absent, null or blank leaves nothing, and neither the
    /// white space on one of its sides; a line all of whose fields are so is left out. Values are
    /// trimmed and otherwise untouched.
    pub(super) fn render(&self, fields: &Map<String, Value>) -> String {
        let lines: Vec<String> = self.lines.iter().filter_map(|line| render_line(line, fields)).collect();
        lines.join("\n").trim().to_owned()
    }

    /// Whether it names any of these fields.
    pub(super) fn names_field_of(&self, fields: &Map<String, Value>) -> bool {
        let named = |part: &Part| matches!(part, Part::Field(name) if fields.contains_key(name));
        self.lines.iter().flatten().any(named)
    }
}

fn parse_line(line: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            literal.push_str(&rest[..1]);
            rest = &rest[2..];
            continue;
        }
        let name = rest.strip_prefix('{').and_then(|text| Some(&text[..text.find('}')?]));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Err(format!("{line:?} has a lone brace; write {{{{ or }}}}"));
        };
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal)));
        }
        parts.push(Part::Field(name.to_owned()));
        rest = &rest[name.len() + 2..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

fn render_line(parts: &[Part], fields: &Map<String, Value>) -> Option<String> {
    let mut line = String::new();
    let (mut named, mut found, mut gap) = (false, false, false);
    for part in parts {
        match part {
            Part::Field(name) => {
                let value = fields.get(name).map(text_of).unwrap_or_default();
                let value = value.trim();
                named = true;
                found |= !value.is_empty();
                gap = value.is_empty();
                line.push_str(value);
            }
            Part::Literal(literal) => {
                let doubled = gap && (line.is_empty() || line.ends_with(char::is_whitespace));
                line.push_str(if doubled { literal.trim_start() } else { literal });
                gap = false;
            }
        }
    }
    (found || !named).then(|| line.trim_end().to_owned())
}

/// A value as a reader would write it; lists are joined by commas.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            items.iter().map(text_of).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, fields: Value) -> String {
        let fields = fields.as_object().cloned().unwrap_or_default();
        DocumentTemplate::parse(template).expect("parses").render(&fields)
    }

    #[test]
    fn missing_fields_leave_no_trace() {
        let both = serde_json::json!({"title": " Lamp ", "text": "Warm\n  light"});
        assert_eq!(render("{title} {text}", both.clone()), "Lamp Warm\n  light");
        assert_eq!(render("Title: {title}\nText: {text}", both), "Title: Lamp\nText: Warm\n  light");
        assert_eq!(render("{title} {text}", serde_json::json!({"text": "x"})), "x");
        assert_eq!(render("{title} {text}", serde_json::json!({"title": "x", "text": null})), "x");
        assert_eq!(render("{title}\n{text}", serde_json::json!({"text": "x", "title": "  "})), "x");
        assert_eq!(render("{a} {b} {c}", serde_json::json!({"a": 1, "c": true})), "1 true");
        assert_eq!(render("{a} {b}", serde_json::json!({"other": 1})), "");
    }

    #[test]
    fn fields_that_are_named_are_told_from_others() {
        let template = DocumentTemplate::parse("{title} {text}").expect("parses");
        let names = |fields: Value| template.names_field_of(fields.as_object().expect("an object"));
        assert!(names(serde_json::json!({"text": null, "image": "x"})));
        assert!(!names(serde_json::json!({"image": "x"})));
        assert!(!names(serde_json::json!({})));
    }

    #[test]
    fn values_are_never_read_as_templates() {
        assert_eq!(render("{{{a}}} {b}", serde_json::json!({"a": "{b}", "b": "x"})), "{{b}} x");
        assert_eq!(render("{a}", serde_json::json!({"a": ["x", "", 2]})), "x, 2");
    }

    #[test]
    fn faulty_templates_are_refused() {
        assert!(DocumentTemplate::parse("plain").expect_err("no field").contains("names no field"));
        assert!(DocumentTemplate::parse("{a} }").expect_err("brace").contains("lone brace"));
        assert!(DocumentTemplate::parse("{}").expect_err("no name").contains("lone brace"));
    }
}
