//! What is sent, how fast, and what is expected of it: a TOML file.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::arrivals::Arrivals;

/// One run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) about: String,
    /// An answer counts as good when it is there within so long.
    pub(crate) slo_ms: f64,
    /// Seeds the times and the choice of texts.
    #[serde(default = "one")]
    pub(crate) seed: u64,
    /// Clients that wait for each answer, while capacity is measured.
    #[serde(default = "sixteen")]
    pub(crate) calibration_clients: usize,
    /// How long that takes; needed where a step's rate is in capacities.
    #[serde(default)]
    pub(crate) calibration_seconds: f64,
    /// What is sent, in parts.
    pub(crate) traffic: Vec<Traffic>,
    /// One after the other.
    pub(crate) step: Vec<Step>,
    #[serde(default)]
    pub(crate) expect: Expect,
    /// Flags for a server that is started for the run.
    #[serde(default)]
    pub(crate) serve: Vec<String>,
}

/// The way of asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// `POST /score`.
    #[default]
    Http,
    /// `POST /score?explain=true`, server-sent events.
    Sse,
    /// `relevance.v1`, Score.
    Grpc,
    /// `POST /rerank`, as other rerank servers have it: to compare with them.
    Rerank,
}

/// One kind of request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Traffic {
    /// Its part of all requests, relative to the other kinds'.
    #[serde(default = "whole")]
    pub(crate) share: f64,
    #[serde(default)]
    pub(crate) way: Way,
    /// Least and most documents.
    pub(crate) documents: [usize; 2],
    /// Least and most words of a document.
    pub(crate) words: [usize; 2],
    /// The part whose query and documents are one of a few that come again and again.
    #[serde(default)]
    pub(crate) hot: f64,
    #[serde(default)]
    pub(crate) deadline_ms: Option<u64>,
    /// The part whose client leaves, at a time between 0 and `cancel_within_ms`.
    #[serde(default)]
    pub(crate) cancel: f64,
    #[serde(default)]
    pub(crate) cancel_within_ms: f64,
    #[serde(default)]
    pub(crate) explain_top_n: Option<usize>,
    /// Load beside what is timed: its latency is not counted.
    #[serde(default)]
    pub(crate) aside: bool,
    /// How often a refused request is sent again, each time after what Retry-After says.
    #[serde(default)]
    pub(crate) retries: usize,
}

/// Requests at one rate.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) seconds: f64,
    /// Requests a second.
    #[serde(default)]
    pub(crate) rate: Option<f64>,
    /// Times the measured capacity.
    #[serde(default)]
    pub(crate) capacity: Option<f64>,
    /// So many clients that wait for each answer, in place of a rate.
    #[serde(default)]
    pub(crate) clients: Option<usize>,
    #[serde(default)]
    pub(crate) arrivals: Arrivals,
    /// Which kinds of traffic, by position; all if none is named.
    #[serde(default)]
    pub(crate) kinds: Vec<usize>,
    /// Not part of what is reported or expected.
    #[serde(default)]
    pub(crate) warm_up: bool,
    /// The server that was started is told to stop (SIGTERM) so many seconds into the step, the last one.
    #[serde(default)]
    pub(crate) stop_after: Option<f64>,
}

/// What has to hold at the end; the exit code tells.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    /// The least goodput of the steps after the best one, relative to it.
    #[serde(default)]
    pub(crate) goodput_kept: Option<f64>,
    /// The 99th percentile of how long refusals take.
    #[serde(default)]
    pub(crate) refusal_p99_ms: Option<f64>,
    /// The most of the computed tokens that was for clients that had left.
    #[serde(default)]
    pub(crate) wasted: Option<f64>,
    /// Answers that are neither a success nor a refusal: the most there may be. 503 counts too, unless
    /// `unavailable_at_least` or `stop_after` expects it, and so does a server that is gone, unless it was told to
    /// stop.
    #[serde(default)]
    pub(crate) failed: Option<u64>,
    /// Requests that crossed the closing of their idle connection: the most there may be. Without it
    /// they count as failed.
    #[serde(default)]
    pub(crate) cut: Option<u64>,
    /// Answers that came too late (504), relative to those that came.
    #[serde(default)]
    pub(crate) late: Option<f64>,
    /// The least there may be of refusals: 1 says that there was overload at all.
    #[serde(default)]
    pub(crate) refused_at_least: Option<u64>,
    /// The least there may be of 503 with Retry-After.
    #[serde(default)]
    pub(crate) unavailable_at_least: Option<u64>,
    /// Of requests that were refused and came again as told, the least part that was taken.
    #[serde(default)]
    pub(crate) retried_ok: Option<f64>,
    /// p99 of the second reported step over that of the first.
    #[serde(default)]
    pub(crate) p99_ratio: Option<f64>,
    /// The least number of reasons that were read to their end.
    #[serde(default)]
    pub(crate) reasons: Option<u64>,
    /// The most that resident memory may grow after the first reported step, in MiB.
    #[serde(default)]
    pub(crate) growth_mib: Option<f64>,
}

fn one() -> u64 {
    1
}

fn sixteen() -> usize {
    16
}

fn whole() -> f64 {
    1.0
}

impl Scenario {
    /// Reads a file, and checks what one value says of another.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let scenario: Self = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        scenario.check().with_context(|| format!("{}", path.display()))?;
        Ok(scenario)
    }

    /// What is sent in a step.
    pub(crate) fn kinds(&self, step: &Step) -> Vec<&Traffic> {
        let named = |(index, _): &(usize, &Traffic)| step.kinds.is_empty() || step.kinds.contains(index);
        self.traffic.iter().enumerate().filter(named).map(|(_, traffic)| traffic).collect()
    }

    /// How many make requests of their own, in all steps: the open loop, and each step's clients that wait.
    pub(crate) fn lanes(&self) -> u64 {
        let calibrating = if self.calibration_seconds > 0.0 { self.calibration_clients } else { 0 };
        let waiting: usize = self.step.iter().filter_map(|step| step.clients).sum();
        (1 + calibrating + waiting) as u64
    }

    fn check(&self) -> Result<()> {
        if self.traffic.is_empty() || self.step.is_empty() {
            bail!("there is no traffic or no step");
        }
        let reported = self.step.iter().filter(|step| !step.warm_up).count();
        if reported == 0 {
            bail!("every step is a warm_up: nothing would be reported");
        }
        let compared = [
            ("goodput_kept", self.expect.goodput_kept),
            ("p99_ratio", self.expect.p99_ratio),
            ("growth_mib", self.expect.growth_mib),
        ];
        if let Some((name, _)) = compared.iter().find(|(_, limit)| limit.is_some() && reported < 2) {
            bail!("{name}: compares steps, at least 2 have to be reported, not {reported}");
        }
        for (index, step) in self.step.iter().enumerate() {
            let given = [step.rate.is_some(), step.capacity.is_some(), step.clients.is_some()];
            if given.iter().filter(|given| **given).count() != 1 {
                bail!("step {index}: one of rate, capacity and clients is needed");
            }
            if step.capacity.is_some() && self.calibration_seconds <= 0.0 {
                bail!("step {index}: capacity needs calibration_seconds");
            }
            if step.stop_after.is_some() && index + 1 < self.step.len() {
                bail!("step {index}: stop_after is for the last step");
            }
            if let Some(kind) = step.kinds.iter().find(|kind| **kind >= self.traffic.len()) {
                bail!("step {index}: there is no traffic {kind}");
            }
            let many = step.rate.or(step.capacity).or(step.clients.map(|clients| clients as f64));
            if !(step.seconds > 0.0 && many.is_some_and(|many| many > 0.0)) {
                bail!("step {index}: seconds and rate are more than 0");
            }
        }
        for (index, traffic) in self.traffic.iter().enumerate() {
            let [[fewest, most], [short, long]] = [traffic.documents, traffic.words];
            if fewest == 0 || fewest > most || short == 0 || short > long {
                bail!("traffic {index}: documents and words are [least, most], from 1 on");
            }
            if traffic.cancel > 0.0 && traffic.cancel_within_ms <= 0.0 {
                bail!("traffic {index}: cancel needs cancel_within_ms");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = 'a'\nabout = 'b'\nslo_ms = 100.0\n[[traffic]]\ndocuments = [1, 2]\nwords = [3, 4]\n[[step]]\nseconds = 1.0\nrate = 5.0\n";

    fn refusal(text: &str) -> String {
        match toml::from_str::<Scenario>(text) {
            Ok(scenario) => format!("{:#}", scenario.check().expect_err("refused")),
            Err(error) => error.message().to_owned(),
        }
    }

    #[test]
    fn every_scenario_here_is_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut count = 0;
        for folder in [root.clone(), root.join("ci"), root.join("gpu")] {
            for entry in std::fs::read_dir(folder).expect("scenarios") {
                let path = entry.expect("a file").path();
                if path.extension().is_some_and(|end| end == "toml") {
                    Scenario::read(&path).unwrap_or_else(|error| panic!("{error:#}"));
                    count += 1;
                }
            }
        }
        assert!(count >= 20, "{count} scenarios");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        toml::from_str::<Scenario>(GOOD).expect("read").check().expect("good");
        assert!(refusal(&GOOD.replace("rate = 5.0", "")).contains("one of rate, capacity and clients"));
        assert!(refusal(&GOOD.replace("rate = 5.0", "capacity = 5.0")).contains("calibration_seconds"));
        assert!(refusal(&GOOD.replace("rate = 5.0", "rate = 0.0")).contains("more than 0"));
        assert!(refusal(&GOOD.replace("[1, 2]", "[2, 1]")).contains("from 1 on"));
        assert!(refusal(&GOOD.replace("words =", "cancel = 0.5\nwords =")).contains("cancel_within_ms"));
        assert!(refusal(&GOOD.replace("rate", "speed")).contains("unknown field `speed`"));
        assert!(refusal(&format!("{GOOD}warm_up = true\n")).contains("nothing would be reported"));
        assert!(
            refusal(&format!("{GOOD}[expect]\ngrowth_mib = 1.0\n")).contains("growth_mib: compares steps")
        );
    }
}
