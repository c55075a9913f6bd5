//! Requests out of real texts: the corpus beside this crate.

use serde_json::json;
use verdict::server::grpc::pb;

use crate::scenario::{Traffic, Way};

const PASSAGES: &str = include_str!("../corpus/passages.txt");
const QUERIES: &str = include_str!("../corpus/queries.txt");
/// Requests that come again and again, where a part is hot.
const HOT: u64 = 8;

/// One request, in the form of its way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) way: Way,
    pub(crate) body: String,
    pub(crate) wire: Option<Box<pb::ScoreRequest>>,
    pub(crate) pairs: usize,
    pub(crate) deadline_ms: Option<u64>,
    /// Whether its latency is not counted.
    pub(crate) aside: bool,
}

impl Ask {
    /// Takes its deadline away.
    pub(crate) fn relax(&mut self) {
        if let Some(ms) = self.deadline_ms.take() {
            self.body = self.body.replacen(&format!("\"deadline_ms\":{ms},"), "", 1);
        }
        if let Some(wire) = &mut self.wire {
            wire.deadline_ms = None;
        }
    }
}

/// Whose requests they are: one of all who make some in a run, each step's waiting clients anew. No query is in
/// two lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    pub(crate) index: u64,
    pub(crate) of: u64,
}

/// Makes requests, no two alike but the hot ones.
pub(crate) struct Texts {
    words: Vec<Vec<&'static str>>,
    queries: Vec<&'static str>,
    random: fastrand::Rng,
    /// What the next query ends with, and how far it is to the one after it.
    next: u64,
    stride: u64,
}

impl Texts {
    pub(crate) fn new(seed: u64, lane: Lane) -> Self {
        let lines = |text: &'static str| text.lines().filter(|line| !line.trim().is_empty());
        Self {
            words: lines(PASSAGES).map(|line| line.split_whitespace().collect()).collect(),
            queries: lines(QUERIES).collect(),
            random: fastrand::Rng::with_seed(fastrand::Rng::with_seed(seed).u64(..) ^ lane.index),
            next: HOT + 1 + lane.index,
            stride: lane.of.max(1),
        }
    }

    /// A generator of its own for what else is chosen in this lane.
    pub(crate) fn random(&mut self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.random.u64(..))
    }

    /// The next request of a kind.
    pub(crate) fn ask(&mut self, traffic: &Traffic) -> Ask {
        let hot = self.random.f64() < traffic.hot;
        let new = self.next;
        self.next += self.stride;
        let (mut random, number) = if hot {
            let which = self.random.u64(..HOT);
            (fastrand::Rng::with_seed(which), which)
        } else {
            (fastrand::Rng::with_seed(self.random.u64(..)), new)
        };
        let query = format!("{} {number}", self.queries[random.usize(..self.queries.len())]);
        let [fewest, most] = traffic.documents;
        let documents: Vec<String> =
            (0..random.usize(fewest..=most)).map(|_| self.document(traffic.words, &mut random)).collect();
        let pairs = documents.len();
        let (mut body, mut wire) = (String::new(), None);
        if traffic.way == Way::Grpc {
            wire = Some(Box::new(request(query, documents, traffic.deadline_ms)));
        } else {
            let mut json = json!({"query": query, "documents": documents});
            if let Some(ms) = traffic.deadline_ms {
                json["deadline_ms"] = ms.into();
            }
            if let Some(count) = traffic.explain_top_n {
                json["explain_top_n"] = count.into();
            }
            body = json.to_string();
        }
        Ask { way: traffic.way, body, wire, pairs, deadline_ms: traffic.deadline_ms, aside: traffic.aside }
    }

    /// Passages one after the other, from a word of one of them on, cut to a length.
    fn document(&self, [short, long]: [usize; 2], random: &mut fastrand::Rng) -> String {
        let length = random.usize(short..=long);
        let mut words: Vec<&str> = Vec::with_capacity(length);
        while words.len() < length {
            let passage = &self.words[random.usize(..self.words.len())];
            let from = random.usize(..passage.len());
            words.extend(passage[from..].iter().take(length - words.len()));
        }
        words.join(" ")
    }
}

fn request(query: String, documents: Vec<String>, deadline_ms: Option<u64>) -> pb::ScoreRequest {
    pb::ScoreRequest {
        query,
        documents: documents
            .into_iter()
            .map(|text| pb::Document { text: Some(text), ..pb::Document::default() })
            .collect(),
        deadline_ms,
        ..pb::ScoreRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Lane = Lane { index: 0, of: 1 };

    fn traffic(way: Way, hot: f64) -> Traffic {
        Traffic {
            share: 1.0,
            way,
            documents: [2, 5],
            words: [10, 30],
            hot,
            deadline_ms: Some(700),
            cancel: 0.0,
            cancel_within_ms: 0.0,
            explain_top_n: None,
            aside: false,
            retries: 0,
        }
    }

    #[test]
    fn documents_have_the_lengths_that_were_asked_for() {
        let mut texts = Texts::new(7, ALONE);
        for _ in 0..50 {
            let ask = texts.ask(&traffic(Way::Http, 0.0));
            let body: serde_json::Value = serde_json::from_str(&ask.body).expect("JSON");
            let documents = body["documents"].as_array().expect("documents");
            assert!((2..=5).contains(&documents.len()) && documents.len() == ask.pairs);
            for document in documents {
                let words = document.as_str().expect("text").split(' ').count();
                assert!((10..=30).contains(&words), "{words}");
            }
            assert_eq!(body["deadline_ms"], 700);
        }
    }

    #[test]
    fn a_seed_gives_the_same_requests_and_hot_ones_come_again() {
        let bodies = |seed: u64, hot: f64| {
            let mut texts = Texts::new(seed, ALONE);
            (0..40).map(|_| texts.ask(&traffic(Way::Http, hot)).body).collect::<Vec<_>>()
        };
        assert_eq!(bodies(3, 0.0), bodies(3, 0.0));
        let distinct =
            |bodies: Vec<String>| bodies.into_iter().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(distinct(bodies(3, 0.0)), 40);
        assert!(distinct(bodies(3, 1.0)) <= 8);
    }

    #[test]
    fn no_query_is_asked_in_two_lanes_and_another_seed_gives_other_documents() {
        let asked = |seed: u64, index: u64| {
            let mut texts = Texts::new(seed, Lane { index, of: 5 });
            let bodies = (0..200).map(move |_| texts.ask(&traffic(Way::Http, 0.0)).body);
            bodies.map(|body| serde_json::from_str::<serde_json::Value>(&body).expect("JSON"))
        };
        let queries: std::collections::BTreeSet<String> =
            (0..5).flat_map(|index| asked(3, index)).map(|body| body["query"].to_string()).collect();
        assert_eq!(queries.len(), 1000);
        for (seed, index) in [(4, 0), (3, 1)] {
            assert!(
                asked(3, 0)
                    .zip(asked(seed, index))
                    .all(|(one, other)| one["documents"] != other["documents"])
            );
        }
    }

    #[test]
    fn a_deadline_can_be_taken_away() {
        for way in [Way::Http, Way::Grpc] {
            let mut ask = Texts::new(7, ALONE).ask(&traffic(way, 0.0));
            ask.relax();
            assert!(
                !ask.body.contains("deadline_ms") && ask.wire.is_none_or(|wire| wire.deadline_ms.is_none())
            );
        }
    }

    #[test]
    fn the_same_texts_go_over_grpc() {
        let ask = Texts::new(7, ALONE).ask(&traffic(Way::Grpc, 0.0));
        let wire = ask.wire.expect("a message");
        assert_eq!((wire.documents.len(), wire.deadline_ms), (ask.pairs, Some(700)));
    }
}
