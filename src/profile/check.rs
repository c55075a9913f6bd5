//! From a written profile to a checked one. Every message names the field.

use std::{collections::HashSet, sync::Arc};

use crate::{
    grounding::{Grounding, Rule, Says},
    model::config::ModelConfig,
    prompt::Template,
    tokenize::Tokenizer,
};

use super::{
    Calibration, ExplainProfile, Grade, Probe, Profile, ScoreRead,
    document::DocumentTemplate,
    file::{
        CalibrationTable, ExplainTable, File, GradeTable, GroundingTable, ProbeTable, PromptTable, Read,
        ScoreTable,
    },
};

/// What is wrong with a profile, without its path.
type Checked<T> = Result<T, String>;

/// Prompt tokens when a profile does not say: what the code of the built-in profiles' authors takes.
const DEFAULT_MAX_TOKENS: usize = 8192;

pub(super) fn profile(file: File, tokenizer: &Tokenizer, config: &ModelConfig) -> Checked<Profile> {
    let hash = hash(&file)?;
    let template = template(&file.prompt, tokenizer)?;
    let grades = grades(file.grades.ok_or("[[grades]] is missing")?, &template, tokenizer)?;
    let max_tokens = max_tokens(file.prompt.max_tokens, config)?;
    let read = read(&file.score, &grades)?;
    let calibration =
        file.calibration.map_or(Ok(Calibration { temperature: 1.0, points: Vec::new() }), calibration)?;
    let explain = file.explain.map(|table| explain(table, &grades, tokenizer)).transpose()?;
    let probes = file.probes.unwrap_or_default().into_iter().map(probe).collect::<Checked<_>>()?;
    let document = file.prompt.document.as_deref().unwrap_or("{title} {text}");
    Ok(Profile {
        name: file.name.filter(|name| !name.trim().is_empty()).ok_or("name is missing or empty")?,
        aliases: file.aliases.unwrap_or_default(),
        template,
        instruction: file.prompt.instruction.unwrap_or_default(),
        max_tokens,
        free_questions: file.prompt.free_questions.unwrap_or(false),
        grades,
        read,
        label_mass: file.score.label_mass.unwrap_or(true),
        calibration,
        explain,
        probes,
        hash,
        document: DocumentTemplate::parse(document)
            .map_err(|problem| format!("prompt.document: {problem}"))?,
    })
}

fn template(table: &PromptTable, tokenizer: &Tokenizer) -> Checked<Template> {
    let text = table.template.as_deref().ok_or("prompt.template is missing")?;
    let template = Template::parse(text, tokenizer).map_err(|error| format!("prompt.{error}"))?;
    let begins = tokenizer.check_beginning(&template.first_controls());
    begins.map_err(|problem| format!("prompt.template: {problem}"))?;
    match &table.instruction_format {
        None => Ok(template),
        Some(format) => template.with_instruction_format(format).map_err(|error| format!("prompt.{error}")),
    }
}

fn max_tokens(given: Option<usize>, config: &ModelConfig) -> Checked<usize> {
    let most = config.max_positions;
    match given {
        None => Ok(most.min(DEFAULT_MAX_TOKENS)),
        Some(0) => Err("prompt.max_tokens is 0".to_owned()),
        Some(given) if given > most => Err(format!(
            "prompt.max_tokens {given} is over the checkpoint's max_position_embeddings of {most}"
        )),
        Some(given) => Ok(given),
    }
}

fn grades(tables: Vec<GradeTable>, template: &Template, tokenizer: &Tokenizer) -> Checked<Vec<Grade>> {
    let mut grades = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let token = grade_token(&table.token, template, tokenizer)
            .map_err(|problem| format!("grades[{index}].token {:?} {problem}", table.token))?;
        let name = table.name.unwrap_or_else(|| table.token.trim().to_owned());
        let value = table.value.unwrap_or(index as f64);
        // Half of what a number can be, so that any two are a number apart.
        if !(2.0 * value).is_finite() {
            return Err(format!("grades[{index}].value {value:e} is not a number, or too large"));
        }
        let label = table.label.unwrap_or_else(|| name.clone());
        grades.push(Grade { name, label, value, token, text: table.token });
    }
    let distinct = |count: usize| count == grades.len();
    if grades.len() < 2 {
        return Err(format!("[[grades]]: {} given, at least 2 are needed", grades.len()));
    }
    if !distinct(grades.iter().map(|grade| grade.token).collect::<HashSet<_>>().len()) {
        let tokens: Vec<_> = grades.iter().map(|grade| (&grade.text, grade.token)).collect();
        return Err(format!("[[grades]]: two grades are the same token: {tokens:?}"));
    }
    if !distinct(grades.iter().map(|grade| grade.name.as_str()).collect::<HashSet<_>>().len()) {
        return Err("[[grades]]: two grades have the same name".to_owned());
    }
    if grades.iter().all(|grade| grade.value == grades[0].value) {
        return Err("[[grades]]: all grades have the same value".to_owned());
    }
    Ok(grades)
}

/// The one token of a grade: a control token, or a text that is one token both alone and
/// right after the prompt.
fn grade_token(text: &str, template: &Template, tokenizer: &Tokenizer) -> Checked<u32> {
    if let Some(id) = tokenizer.control(text) {
        return Ok(id);
    }
    let alone = tokenizer.encode(text).map_err(|error| error.to_string())?;
    let [token] = alone[..] else {
        return Err(format!("is {} tokens, {alone:?}; a grade must be exactly one", alone.len()));
    };
    match template.appended(tokenizer, text).map_err(|error| error.to_string())? {
        Some(after) if after == [token] => Ok(token),
        Some(after) => {
            Err(format!("is {after:?} after the prompt and {token} alone; it must be the same one token"))
        }
        None => Err("changes the tokens before it when it follows the prompt".to_owned()),
    }
}

fn read(table: &ScoreTable, grades: &[Grade]) -> Checked<ScoreRead> {
    if table.read != Some(Read::Softmax) {
        return match (&table.positive, &table.negative) {
            (None, None) => Ok(ScoreRead::Expected),
            _ => Err("score.positive and score.negative need score.read = \"softmax\"".to_owned()),
        };
    }
    let find = |field: &str, name: &Option<String>| {
        let name = name.as_ref().ok_or(format!("score.{field} is missing"))?;
        grades
            .iter()
            .position(|grade| grade.name == *name)
            .ok_or(format!("score.{field} {name:?} is not the name of a grade"))
    };
    let (positive, negative) = (find("positive", &table.positive)?, find("negative", &table.negative)?);
    if positive == negative {
        return Err("score.positive and score.negative are the same grade".to_owned());
    }
    Ok(ScoreRead::Softmax { positive, negative })
}

fn calibration(table: CalibrationTable) -> Checked<Calibration> {
    let temperature = table.temperature.unwrap_or(1.0);
    if !(1e-3..=1e3).contains(&temperature) {
        return Err(format!("calibration.temperature {temperature} is not in 0.001 to 1000"));
    }
    let points = table.points.unwrap_or_default();
    if points.len() == 1 {
        return Err("calibration.points: one given, at least 2 are needed".to_owned());
    }
    for point in &points {
        if point.iter().any(|number| !(0.0..=1.0).contains(number)) {
            return Err(format!("calibration.points: {point:?} is not in [0, 1]"));
        }
    }
    if let Some(pair) = points.windows(2).find(|pair| pair[0][0] >= pair[1][0] || pair[0][1] > pair[1][1]) {
        return Err(format!("calibration.points: {:?} to {:?} does not rise", pair[0], pair[1]));
    }
    Ok(Calibration { temperature, points })
}

fn explain(table: ExplainTable, grades: &[Grade], tokenizer: &Tokenizer) -> Checked<ExplainProfile> {
    if table.stop.is_empty() || table.max_tokens == 0 {
        return Err("explain: stop must not be empty, and max_tokens not 0".to_owned());
    }
    let stop = |text: &String| {
        if let Some(id) = tokenizer.control(text) {
            return Ok(id);
        }
        let tokens = tokenizer.encode(text).map_err(|error| error.to_string())?;
        match tokens[..] {
            [id] => Ok(id),
            _ => Err(format!("explain.stop {text:?} is {} tokens; it must be one", tokens.len())),
        }
    };
    let stop_tokens: Arc<[u32]> = table.stop.iter().map(stop).collect::<Checked<Vec<_>>>()?.into();
    let ExplainTable { sections, max_tokens, grounding, .. } = table;
    let rule = |table| grounding_rule(table, &sections, grades.len(), stop_tokens[0]);
    let grounding = grounding
        .map(|table| rule(table).and_then(|rule| Grounding::new(rule, tokenizer)))
        .transpose()
        .map_err(|problem| format!("explain.grounding: {problem}"))?
        .map(Arc::new);
    Ok(ExplainProfile { stop_tokens, sections, max_tokens, grounding })
}

fn grounding_rule(table: GroundingTable, sections: &[String], grades: usize, stop: u32) -> Checked<Rule> {
    let GroundingTable { asked, found, missing, grade, grades: texts, none, max_words, skip } = table;
    let says = [
        ("asked", asked, Says::Asked),
        ("found", found, Says::Found),
        ("missing", missing, Says::Missing),
        ("grade", grade, Says::Grade),
    ];
    for (field, name, _) in &says {
        if !sections.contains(name) {
            return Err(format!("{field} {name:?} is not one of explain.sections, {sections:?}"));
        }
    }
    let of = |section: &String| {
        let named: Vec<_> = says.iter().filter(|(_, name, _)| name == section).collect();
        match named[..] {
            [(_, name, says)] => Ok((name.clone(), *says)),
            [] => Err(format!("the section {section:?} is none of asked, found, missing and grade")),
            _ => Err(format!("the section {section:?} cannot say two things")),
        }
    };
    if texts.len() != grades {
        return Err(format!("grades: {} texts for {grades} grades", texts.len()));
    }
    if let Some(text) = texts.iter().chain([&none]).find(|text| text.trim() != *text || text.is_empty()) {
        return Err(format!("{text:?} must have text, and no white space around it"));
    }
    if max_words == 0 {
        return Err("max_words is 0".to_owned());
    }
    let sections = sections.iter().map(of).collect::<Checked<_>>()?;
    Ok(Rule { sections, grades: texts, none, stop, skip, most_words: max_words })
}

fn probe(table: ProbeTable) -> Checked<Probe> {
    let ProbeTable { query, document, instruction, min_score, max_score } = table;
    if min_score.is_none() && max_score.is_none() {
        return Err(format!("the probe with query {query:?} has neither min_score nor max_score"));
    }
    let met = min_score.is_none_or(|bound| bound <= 1.0) && max_score.is_none_or(|bound| bound >= 0.0);
    if !met || min_score.zip(max_score).is_some_and(|(low, high)| low > high) {
        return Err(format!("the probe with query {query:?} has bounds that no score can meet"));
    }
    Ok(Probe { query, document, instruction, min_score, max_score })
}

/// FNV-1a (64 bits) of the effective profile's JSON, in hex: the same on every machine and build.
fn hash(file: &File) -> Checked<String> {
    let json = serde_json::to_vec(file).map_err(|cause| cause.to_string())?;
    let hash = json.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ok(format!("{hash:016x}"))
}
