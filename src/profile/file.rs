//! `relevance.toml` as it is written, and how it overrides a built-in profile.

use serde::{Deserialize, Serialize};

/// A whole file. Every field may be left out where a built-in profile has it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The built-in profile to start from.
    #[serde(skip_serializing)]
    pub(super) profile: Option<String>,
    pub(super) name: Option<String>,
    pub(super) aliases: Option<Vec<String>>,
    #[serde(default)]
    pub(super) prompt: PromptTable,
    #[serde(default)]
    pub(super) score: ScoreTable,
    pub(super) grades: Option<Vec<GradeTable>>,
    pub(super) calibration: Option<CalibrationTable>,
    pub(super) explain: Option<ExplainTable>,
    pub(super) probes: Option<Vec<ProbeTable>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PromptTable {
    pub(super) template: Option<String>,
    pub(super) document: Option<String>,
    pub(super) instruction: Option<String>,
    pub(super) instruction_format: Option<String>,
    pub(super) max_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) free_questions: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScoreTable {
    pub(super) read: Option<Read>,
    pub(super) positive: Option<String>,
    pub(super) negative: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) label_mass: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Read {
    Expected,
    Softmax,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GradeTable {
    pub(super) token: String,
    pub(super) name: Option<String>,
    pub(super) label: Option<String>,
    pub(super) value: Option<f64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CalibrationTable {
    pub(super) temperature: Option<f64>,
    pub(super) points: Option<Vec<[f64; 2]>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainTable {
    pub(super) stop: Vec<String>,
    #[serde(default)]
    pub(super) sections: Vec<String>,
    pub(super) max_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) grounding: Option<GroundingTable>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroundingTable {
    pub(super) asked: String,
    pub(super) found: String,
    pub(super) missing: String,
    pub(super) grade: String,
    pub(super) grades: Vec<String>,
    pub(super) none: String,
    pub(super) max_words: usize,
    #[serde(default)]
    pub(super) skip: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeTable {
    pub(super) query: String,
    pub(super) document: String,
    pub(super) instruction: Option<String>,
    pub(super) min_score: Option<f64>,
    pub(super) max_score: Option<f64>,
}

impl File {
    /// This file's fields where it has them, else `base`'s.
    pub(super) fn over(self, base: File) -> File {
        File {
            profile: None,
            name: self.name.or(base.name),
            aliases: self.aliases.or(base.aliases),
            prompt: PromptTable {
                template: self.prompt.template.or(base.prompt.template),
                document: self.prompt.document.or(base.prompt.document),
                instruction: self.prompt.instruction.or(base.prompt.instruction),
                instruction_format: self.prompt.instruction_format.or(base.prompt.instruction_format),
                max_tokens: self.prompt.max_tokens.or(base.prompt.max_tokens),
                free_questions: self.prompt.free_questions.or(base.prompt.free_questions),
            },
            score: self.score.over(base.score),
            grades: self.grades.or(base.grades),
            calibration: self.calibration.or(base.calibration),
            explain: self.explain.or(base.explain),
            probes: self.probes.or(base.probes),
        }
    }
}

impl ScoreTable {
    fn over(self, mut base: Self) -> Self {
        if self.read == Some(Read::Expected) {
            // They say how another reading goes.
            (base.positive, base.negative) = (None, None);
        }
        Self {
            read: self.read.or(base.read),
            positive: self.positive.or(base.positive),
            negative: self.negative.or(base.negative),
            label_mass: self.label_mass.or(base.label_mass),
        }
    }
}
