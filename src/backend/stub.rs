//! A backend without a model, for tests and for timing everything else.
//!
//! It answers with numbers derived from a hash of the whole path of tokens, and
//! it finds that path as a real device would: by following segments and KV
//! blocks. So a scheduling, sharing or caching fault changes its scores.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Backend, Description, IN_FLIGHT, Pass, Reading};
use crate::{
    engine::{
        kv::{BLOCK_TOKENS, KvRef},
        tree::{Read, TokenTree},
    },
    error::{Error, Result},
};

const BLOCK_BYTES: usize = 1024;
const EMPTY: u32 = u32::MAX;
/// What a pass that failed leaves behind.
const RUBBISH: u32 = u32::MAX - 1;

/// Steers a [`StubBackend`] from a test.
#[derive(Debug, Default)]
pub struct StubControl {
    /// Passes that may still begin; `None` for any number.
    allowed: Mutex<Option<usize>>,
    changed: Condvar,
    fault: Mutex<Option<Fault>>,
    pace: Mutex<Option<StubPace>>,
    passes: AtomicUsize,
    tokens: AtomicUsize,
    answers: AtomicUsize,
    waiting: AtomicUsize,
    submitted: AtomicUsize,
}

/// How long a stub's pass takes, as a device's would.
#[derive(Clone, Copy, Debug)]
pub struct StubPace {
    /// Every pass.
    pub overhead: Duration,
    /// Each token that is computed.
    pub token: Duration,
}

impl StubPace {
    fn time(&self, batch: &TokenTree) -> Duration {
        self.overhead + self.token * u32::try_from(batch.tokens.len()).unwrap_or(u32::MAX)
    }
}

/// What the next pass does instead of answering.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Fails as a whole.
    Fail(Error),
    /// Fails as a whole, and so does every other from then on.
    Lose(Error),
    /// Panics.
    Panic,
    /// Gives a number that is not finite for every answer whose path holds this token, from now on.
    NotFinite(u32),
}

impl StubControl {
    /// Passes wait until [`Self::release`].
    pub fn hold(&self) {
        self.allow(Some(0));
    }

    /// So many passes go on, then they wait as after [`Self::hold`].
    pub fn hold_after(&self, passes: usize) {
        self.allow(Some(passes));
    }

    /// Lets waiting passes go on.
    pub fn release(&self) {
        self.allow(None);
    }

    /// From now on passes take time.
    pub fn pace(&self, pace: StubPace) {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = Some(pace);
    }

    fn time(&self, batch: &TokenTree) -> Option<Duration> {
        let pace = *self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.map(|pace| pace.time(batch))
    }

    fn allow(&self, passes: Option<usize>) {
        *self.allowed.lock().unwrap_or_else(PoisonError::into_inner) = passes;
        self.changed.notify_all();
    }

    /// Sets the next pass's fault.
    pub fn inject(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Passes begun.
    pub fn passes(&self) -> usize {
        self.passes.load(Ordering::SeqCst)
    }

    /// Tokens computed.
    pub fn tokens(&self) -> usize {
        self.tokens.load(Ordering::SeqCst)
    }

    /// Answers read (duplicates in one batch once).
    pub fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }

    /// Passes that wait for [`Self::release`] now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Passes submitted to a stub that [overlaps](StubBackend::overlapping).
    pub fn submitted(&self) -> usize {
        self.submitted.load(Ordering::SeqCst)
    }

    /// Whether a pass may begin now; it then has begun.
    fn try_begin(&self) -> bool {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if *allowed == Some(0) {
            return false;
        }
        *allowed = allowed.map(|passes| passes - 1);
        self.passes.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn wait(&self) {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *allowed == Some(0) {
            allowed = self.changed.wait(allowed).unwrap_or_else(PoisonError::into_inner);
        }
        *allowed = allowed.map(|passes| passes - 1);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The stub.
pub struct StubBackend {
    grades: usize,
    /// Decoded after a token that is not in it: its first; after one that is: the next one.
    script: Vec<u32>,
    control: Arc<StubControl>,
    positions: usize,
    /// Most sequences of a pass.
    sequences: usize,
    /// Token by block and offset.
    cache: Vec<u32>,
    poison: Option<u32>,
    lost: Option<Error>,
    /// What was submitted, if passes run late; `None` if they run as they are submitted.
    late: Option<Late>,
}

/// Passes of a device that computes by itself: oldest first, and what those that ran gave.
#[derive(Default)]
struct Late {
    submitted: usize,
    waiting: VecDeque<Waiting>,
    /// When all that was submitted is over, if passes take time.
    free: Option<Instant>,
    results: HashMap<usize, Result<Vec<Reading>>>,
}

struct Waiting {
    number: usize,
    batch: TokenTree,
    /// When it is over.
    due: Option<Instant>,
}

impl Late {
    /// The place of the pass to run next: a step of reasons before the scores that were submitted
    /// before it, unless it must follow them.
    fn next(&self) -> Option<usize> {
        let free = |at: &usize| {
            let batch = &self.waiting[*at].batch;
            let mut before = self.waiting.iter().take(*at).map(|other| &other.batch);
            !before.any(|other| {
                other.is_explain() == batch.is_explain() || batch.blocks().must_follow(&other.blocks())
            })
        };
        let over = |at: &usize| self.waiting[*at].due.is_none_or(|due| Instant::now() >= due);
        (0..self.waiting.len()).rev().find(free).filter(over)
    }
}

impl StubBackend {
    /// A stub that gives `grades` logits and decodes `script` (distinct tokens; the last one should
    /// be a stop token).
    pub fn new(grades: usize, script: Vec<u32>, control: Arc<StubControl>) -> Self {
        let (positions, sequences) = (1 << 20, usize::MAX);
        let (cache, poison, lost, late) = (Vec::new(), None, None, None);
        Self { grades, script, control, positions, sequences, cache, poison, lost, late }
    }

    /// One whose sequences are of at most so many tokens.
    #[must_use]
    pub fn of_positions(mut self, positions: usize) -> Self {
        self.positions = positions;
        self
    }

    /// One that has no room for passes of more sequences.
    #[must_use]
    pub fn of_sequences(mut self, sequences: usize) -> Self {
        self.sequences = sequences;
        self
    }

    fn check_room(&self, batch: &TokenTree) -> Result<()> {
        let (most, sequences) = (self.sequences, batch.answers.len());
        if sequences > most { Err(Error::too_large("a batch", "sequences", most, sequences)) } else { Ok(()) }
    }

    /// As a device that computes by itself: a pass runs some time after it was submitted, when
    /// [`StubControl`] lets it.
    #[must_use]
    pub fn overlapping(mut self) -> Self {
        self.late = Some(Late::default());
        self
    }

    /// Runs what was submitted, as far as it may.
    fn catch_up(&mut self) {
        while let Some(at) = self.late.as_ref().and_then(Late::next) {
            if !self.control.try_begin() {
                return;
            }
            let waiting = self.late.as_mut().and_then(|late| late.waiting.remove(at));
            let Some(Waiting { number, batch, .. }) = waiting else { return };
            let result = self.compute(&batch);
            self.late.iter_mut().for_each(|late| drop(late.results.insert(number, result.clone())));
        }
    }

    fn compute(&mut self, batch: &TokenTree) -> Result<Vec<Reading>> {
        super::check(batch, self.positions, usize::MAX)?;
        let fault = self.control.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        match fault {
            Some(Fault::Fail(error)) => {
                self.write(batch, |_| RUBBISH);
                return Err(error);
            }
            Some(Fault::Lose(error)) => {
                self.lost = Some(error.clone());
                return Err(error);
            }
            Some(Fault::Panic) => panic!("a fault injected by a test"),
            Some(Fault::NotFinite(token)) => self.poison = Some(token),
            None => {}
        }
        if let (Some(time), None) = (self.control.time(batch), &self.late) {
            #[expect(clippy::disallowed_methods, reason = "a pass that takes time is what is asked for")]
            std::thread::sleep(time);
        }
        self.control.tokens.fetch_add(batch.tokens.len(), Ordering::SeqCst);
        self.control.answers.fetch_add(batch.answers.len(), Ordering::SeqCst);
        let readings = batch
            .answers
            .iter()
            .map(|answer| self.read(&self.path(batch, answer.segment), answer.read))
            .collect();
        self.write(batch, |row| batch.tokens[row]);
        Ok(readings)
    }

    fn cached(&self, part: &KvRef) -> impl Iterator<Item = u32> {
        (0..part.len).map(|i| {
            let (block, offset) = part.place(i);
            let token = self.cache[block * BLOCK_TOKENS + offset];
            assert_ne!(token, EMPTY, "the batch reads KV that was never written");
            token
        })
    }

    fn write(&mut self, batch: &TokenTree, token: impl Fn(usize) -> u32) {
        for segment in &batch.segments {
            let Some(keep) = &segment.keep else { continue };
            assert_eq!(keep.len, segment.rows.len(), "KV is kept for whole segments");
            for (i, row) in segment.rows.clone().enumerate() {
                let (block, offset) = keep.place(i);
                self.cache[block * BLOCK_TOKENS + offset] = token(row);
            }
        }
    }

    fn path(&self, batch: &TokenTree, segment: usize) -> Vec<u32> {
        let path = batch.path(segment);
        let root = &batch.segments[path[0]];
        let past: Vec<u32> =
            root.past.iter().flat_map(|part| self.cached(part).collect::<Vec<_>>()).collect();
        assert_eq!(past.len(), root.position, "the past ends where the segment starts");
        let rows = path.iter().flat_map(|&segment| batch.segments[segment].rows.clone());
        past.into_iter().chain(rows.map(|row| batch.tokens[row])).collect()
    }

    fn read(&self, path: &[u32], read: Read) -> Reading {
        if self.poison.is_some_and(|token| path.contains(&token)) {
            return Reading::NotFinite;
        }
        match read {
            Read::Nothing => Reading::Nothing,
            Read::Next => {
                let last = path.last().copied().unwrap_or_default();
                let at = self.script.iter().position(|token| *token == last).map_or(0, |i| i + 1);
                Reading::Next(self.script.get(at).copied().unwrap_or_default())
            }
            Read::Grades => {
                // FNV-1a over the path: any wrong token, order or length shows.
                let hash = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, token| {
                    (hash ^ u64::from(*token)).wrapping_mul(0x100_0000_01b3)
                });
                let logits =
                    (0..self.grades).map(|i| ((hash >> (i * 12)) & 0xfff) as f32 / 512.0 - 4.0).collect();
                Reading::Grades { logits, log_sum_exp: Some(6.0) }
            }
        }
    }
}

impl Backend for StubBackend {
    fn describe(&self) -> Description {
        Description {
            device: "stub".into(),
            weight_bytes: 0,
            kv_block_bytes: BLOCK_BYTES,
            max_positions: self.positions,
            overlaps: self.late.is_some(),
        }
    }

    fn lost(&mut self) -> Option<Error> {
        self.lost.clone()
    }

    fn reserve_kv(&mut self, blocks: usize) -> Result<()> {
        self.cache = vec![EMPTY; blocks * BLOCK_TOKENS];
        Ok(())
    }

    fn run(&mut self, batch: &TokenTree) -> Result<Vec<Reading>> {
        self.check_room(batch)?;
        self.control.passes.fetch_add(1, Ordering::SeqCst);
        self.control.wait();
        self.compute(batch)
    }

    fn submit(&mut self, batch: &TokenTree) -> Result<Pass> {
        self.check_room(batch)?;
        let Some(late) = &mut self.late else { return self.run(batch).map(Pass::Done) };
        let beside = late.waiting.iter().filter(|other| other.batch.is_explain() == batch.is_explain());
        assert!(beside.count() < IN_FLIGHT, "more passes on a lane than may be in flight");
        late.submitted += 1;
        if let Some(time) = self.control.time(batch) {
            let now = Instant::now();
            late.free = Some(late.free.map_or(now, |free| free.max(now)) + time);
        }
        late.waiting.push_back(Waiting { number: late.submitted, batch: batch.clone(), due: late.free });
        self.control.submitted.fetch_add(1, Ordering::SeqCst);
        Ok(Pass::Running(late.submitted))
    }

    fn is_done(&mut self, pass: &Pass) -> bool {
        self.catch_up();
        match (pass, &self.late) {
            (Pass::Running(number), Some(late)) => late.results.contains_key(number),
            _ => true,
        }
    }

    fn collect(&mut self, pass: Pass) -> Result<Vec<Reading>> {
        let number = match pass {
            Pass::Done(readings) => return Ok(readings),
            Pass::Running(number) => number,
        };
        while !self.is_done(&Pass::Running(number)) {
            std::thread::yield_now();
        }
        let result = self.late.as_mut().and_then(|late| late.results.remove(&number));
        result.unwrap_or_else(|| Err(Error::internal(format!("pass {number} was collected before"))))
    }
}
