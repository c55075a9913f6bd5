//! Which of cublasLt's algorithms multiply, and where `hopper` does: found at start, by trying them on this device.
//!
//! **Invariance.** The reference is the first algorithm, in the order of cublasLt's own heuristic for
//! many rows, that splits no sum and gives a row the same bits in products of any number of rows. It
//! alone decides the bits, so equal machines answer equally. For each class of rows the fastest
//! way is taken among those that give the reference's bits, or, if they finish a product, those that the kernels give that do
//! that alone: which one that is may differ from start to start, what it computes does not.

use std::{
    ffi::{c_int, c_void},
    sync::Arc,
    time::{Duration, Instant},
};

use cudarc::{
    cublaslt::{result, sys},
    driver::CudaContext,
};

use super::{
    gemm::{CLASSES, Gemm, Layouts, Matrix, On, Output, WORKSPACE_BYTES, Way, Ways, class, refused},
    graph::Graph,
    hopper::{ALL_CLUSTERS, Finish, Hopper, Own},
    launch::Kernels,
    trial::{After, Of, TRIAL_ROWS, Trial, wait},
    watch::{Tried, Watch, way_out},
};
use crate::error::{Error, Result};

/// Products of so many rows, and of the most there are, must repeat those of [`TRIAL_ROWS`].
const TRIALS: [usize; 9] = [1, 2, 7, 16, 33, 64, 128, 200, 511];
/// Algorithms to ask for: for the reference, and for each class.
const CANDIDATES: usize = 32;
const CANDIDATES_OF_CLASS: usize = 16;
/// The weights that a timed product reads in turn: more than a cache holds, as in a pass. Fewer where bringing them
/// is little of it.
const TIMED_WEIGHTS: usize = 16;
const TIMED_WEIGHTS_OF_MANY_ROWS: (usize, usize) = (1024, 4);
/// What our own products save: seconds, and bytes a second. The kernel for gates (on an H100, of 3,072: 1.8 microseconds for
/// 128 rows, 8.1 for 1,024, 33 for 4,480); `rotate`, and what attention takes to turn queries (of 2,048 queries and 1,024
/// keys: 4.7 microseconds for 128 rows, 18 for 4,480).
const GATES: (f64, f64) = (1.2e-6, 2.6e12);
const TURNS: (f64, f64) = (4.4e-6, 2.7e12);
/// How often the clock is asked; the least time counts.
const ROUNDS: usize = 2;

/// Chooses ways for products of up to `rows` rows with matrices of the shape of `weights`, all of one shape, and their
/// result, of which becomes what `after` says.
///
/// # Errors
///
/// `Internal` if no algorithm gives a row the same bits in products of any number of rows.
pub(super) fn choose(
    (gemm, kernels): (&mut Gemm, &Kernels),
    context: &Arc<CudaContext>,
    weights: &[Matrix],
    (into, after): (Output, After),
    (rows, on): (usize, On<'_>),
    watch: &Watch,
) -> Result<()> {
    let Some(w) = weights.first() else { return Ok(()) };
    let trial = Trial::of(context, w, (into, after), rows, (kernels, on))?;
    let bench = Bench { gemm, weights, trial, on, watch };
    let reference = bench.reference()?;
    let mut fastest = [reference; CLASSES.len()];
    let mut least = 1;
    for at in 0..CLASSES.len() {
        // Beyond the lanes' rows there are no products.
        let needed = at == 0 || CLASSES[at - 1] < rows;
        fastest[at] = if needed { bench.fastest(&reference, least, CLASSES[at])? } else { fastest[at - 1] };
        least = CLASSES[at] + 1;
    }
    let finish = bench.trial.finish;
    drop(bench);
    gemm.keep(w, into, &finish, Ways { fastest, reference });
    Ok(())
}

/// Where algorithms are tried.
struct Bench<'a> {
    gemm: &'a Gemm,
    weights: &'a [Matrix],
    trial: Trial<'a>,
    on: On<'a>,
    watch: &'a Watch,
}

impl Bench<'_> {
    /// The first algorithm of use, whose rows all others are compared with.
    fn reference(&self) -> Result<Way> {
        let candidates = self.candidates(TRIAL_ROWS, CANDIDATES)?;
        for way in &candidates {
            if !self.makes(way, &Finish::Nothing, ALL_CLUSTERS, TRIAL_ROWS)? {
                continue;
            }
            self.trial.expect()?;
            if self.repeats(way, &TRIALS)? && self.repeats(way, &[self.trial.rows])? {
                return Ok(*way);
            }
        }
        let Matrix { outputs, depth, .. } = self.weights[0];
        Err(Error::internal(format!(
            "device: cuda: none of {} algorithms multiplies by [{outputs}, {depth}] with the same bits for any number of rows",
            candidates.len(),
        )))
    }

    /// The fastest for products of `least` to `most` rows: the reference, or one with its bits.
    fn fastest(&self, reference: &Way, least: usize, most: usize) -> Result<Way> {
        let rows = [least, most];
        let base = self.cost(reference, most)?.unwrap_or(Duration::MAX);
        let (mut best, mut shortest) = (*reference, base);
        let taking = Own::ALL.into_iter().filter(|own| self.hopper(*own, most).is_some());
        let mut own: Vec<_> = taking.map(Way::Own).collect();
        if self.gemm.hopper.as_ref().is_some_and(|hopper| hopper.always) {
            // Another one first for each class, so that there is use for all.
            let turns = class(most) % own.len().max(1);
            own.rotate_left(turns);
            for way in &own {
                if self.is_right(way, &rows)? {
                    return Ok(*way);
                }
            }
            own.clear();
        }
        let candidates = self.candidates(most, CANDIDATES_OF_CLASS)?.into_iter().chain(own);
        for way in candidates.filter(|way| !same(way, reference)) {
            if own_of(&way).is_some() && own_of(&best).is_none() {
                tracing::debug!(rows = most, took = ?shortest, "the fastest of cublasLt's");
            }
            // Its bits are compared last: that takes longest.
            if let Some(took) = self.cost(&way, most)?
                && took < shortest
                && self.is_right(&way, &rows)?
            {
                (best, shortest) = (way, took);
            }
        }
        let (Matrix { outputs, depth, .. }, into) = (self.weights[0], self.trial.into);
        let us = |took: Duration| took.as_secs_f64() * 1e6;
        tracing::debug!(
            outputs,
            depth,
            ?into,
            rows = most,
            us = us(shortest),
            reference_us = us(base),
            own = ?own_of(&best),
            "a product's way"
        );
        Ok(best)
    }

    /// Our own kernels, if one of them takes so many rows.
    fn hopper(&self, own: Own, rows: usize) -> Option<&Hopper> {
        let hopper = self.gemm.hopper.as_ref();
        hopper.filter(|hopper| hopper.takes(own, &self.weights[0], rows, &self.trial.finish))
    }

    /// How long a way takes for `rows` rows, with what is done to the result. `None` if it does not take so many.
    fn cost(&self, way: &Way, rows: usize) -> Result<Option<Duration>> {
        let Matrix { outputs, depth, .. } = self.weights[0];
        let took = self.time(way, rows).map_err(blaming(way))?;
        if let Some(own) = own_of(way) {
            tracing::debug!(?own, outputs, depth, rows, ?took, "a kernel of our own");
            return Ok(took);
        }
        let numbers = (rows * outputs) as f64;
        let after = match self.trial.finish {
            Finish::Nothing => 0.0,
            // Gates and ups are read, and half as much is written, two bytes each.
            Finish::Gates => GATES.0 + numbers * 3.0 / GATES.1,
            Finish::Turn(_) => TURNS.0 + numbers * 2.0 / TURNS.1,
        };
        Ok(took.map(|took| took + Duration::from_secs_f64(after)))
    }

    /// Whether a way gives what is expected of it.
    fn is_right(&self, way: &Way, rows: &[usize]) -> Result<bool> {
        let right = self.repeats(way, rows).map_err(blaming(way))?
            && self.goes_on(way, rows[rows.len() - 1]).map_err(blaming(way))?;
        if let (false, Some(own)) = (right, own_of(way)) {
            let Matrix { outputs, depth, .. } = self.weights[0];
            tracing::debug!(?own, outputs, depth, ?rows, "a kernel of our own has other results");
        }
        Ok(right)
    }

    /// Whether products of so many rows, finished by those of our own, are what is expected of them.
    fn repeats(&self, way: &Way, counts: &[usize]) -> Result<bool> {
        let of = if own_of(way).is_some() { Of::Finished } else { Of::Product };
        for &rows in counts {
            if !self.makes(way, &self.trial.finish, ALL_CLUSTERS, rows)?
                || !self.trial.repeats(rows, of, TRIAL_ROWS)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a kernel of our own for many rows, which computes tile after tile, does to each what it does to one, with
    /// norms and angles too.
    fn goes_on(&self, way: &Way, rows: usize) -> Result<bool> {
        let Some(Own::ManyRows(_)) = own_of(way) else { return Ok(true) };
        let (finish, few) = (self.trial.as_in_a_pass(), rows.min(TRIAL_ROWS));
        let of = if let Finish::Turn(_) = finish { Of::Kept } else { Of::Finished };
        if of == Of::Kept {
            if !self.makes(way, &finish, ALL_CLUSTERS, few)? {
                return Ok(false);
            }
            self.trial.keep(few)?;
            if rows > few
                && !(self.makes(way, &finish, ALL_CLUSTERS, rows)? && self.trial.repeats(rows, of, few)?)
            {
                return Ok(false);
            }
        }
        // By one cluster each tile but the last is finished while the next one is multiplied, as where there are more tiles
        // than clusters.
        Ok(self.makes(way, &finish, 1, few)? && self.trial.repeats(few, of, few)?)
    }

    /// Puts a product of so many rows on the stream, to the trial's `y`, by at most so many clusters; false if the way does
    /// not take so many.
    fn makes(&self, way: &Way, finish: &Finish, clusters: usize, rows: usize) -> Result<bool> {
        self.tries(way, rows);
        self.trial.reset(rows)?;
        let w = Matrix { at: self.trial.w.base(), ..self.weights[0] };
        Ok(self.put(way, (finish, clusters), &w, rows).is_ok())
    }

    /// The same with weights that are as large; what a way of cublasLt's leaves to be done to it is not done.
    fn put(&self, way: &Way, (finish, clusters): (&Finish, usize), w: &Matrix, rows: usize) -> Result<()> {
        let (x, y) = (self.trial.x.base(), (self.trial.y.base(), self.trial.into));
        match (own_of(way), &self.gemm.hopper) {
            (Some(own), Some(hopper)) => {
                hopper.multiply((own, finish, clusters), w, x, y, rows, self.on.stream)
            }
            _ => self.gemm.run(w, x, y, rows, way, self.on),
        }
    }

    /// What the heuristic proposes for so many rows, without split-K, best first.
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn candidates(&self, rows: usize, most: usize) -> Result<Vec<Way>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref().map_err(refused("a preference"))?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: a live preference, and the attribute's own type.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        let (bytes, scheme) = (WORKSPACE_BYTES, 0u32);
        let limited = set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&bytes).cast(),
            size_of_val(&bytes),
        );
        let whole = set(
            Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            std::ptr::from_ref(&scheme).cast(),
            size_of_val(&scheme),
        );
        let layouts = Layouts::of(&self.weights[0], rows, self.trial.into)?;
        // SAFETY: plain numbers, for which zero is a value.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count: c_int = 0;
        // SAFETY: live descriptors; `found` has room for what is asked.
        let asked = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.gemm.handle,
                self.gemm.product,
                layouts.w,
                layouts.x,
                layouts.y,
                layouts.y,
                preference,
                most.min(CANDIDATES) as c_int,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        // SAFETY: made above, destroyed once.
        let ended = unsafe { result::destroy_matmul_pref(preference) };
        limited.and(whole).and(asked.result()).and(ended).map_err(refused("its heuristic"))?;
        let found = &found[..(count.max(0) as usize).min(CANDIDATES)];
        let usable = found.iter().filter(|candidate| candidate.state.result().is_ok());
        Ok(usable.map(|candidate| candidate.algo).filter(splits_nothing).map(Way::Library).collect())
    }

    /// Tells who watches.
    fn tries(&self, way: &Way, rows: usize) {
        let Matrix { outputs, depth, .. } = self.weights[0];
        self.watch.at(Tried { own: own_of(way).is_some(), rows, outputs, depth });
    }

    /// The mean time of a product, of our own with what is done to it, the least of some rounds; `None` if the algorithm does not
    /// take so many rows, or cannot be recorded: as in a pass of few rows, where it counts most, the device finds the
    /// next by itself.
    fn time(&self, way: &Way, rows: usize) -> Result<Option<Duration>> {
        let finish = self.trial.as_in_a_pass();
        let (many, fewer) = TIMED_WEIGHTS_OF_MANY_ROWS;
        let turns = self.weights.iter().take(if rows > many { fewer } else { TIMED_WEIGHTS });
        let run = |w: &Matrix| self.put(way, (&finish, ALL_CLUSTERS), w, rows);
        self.tries(way, rows);
        // Once by itself: what the driver loads at first use it cannot load into a graph.
        if run(&self.weights[0]).is_err() {
            return Ok(None);
        }
        wait(self.on.stream)?;
        let Ok(graph) = Graph::record(self.on.stream, || turns.clone().try_for_each(run)) else {
            return Ok(None);
        };
        let mut least = Duration::MAX;
        for round in 0..=ROUNDS {
            let began = Instant::now();
            graph.launch(self.on.stream)?;
            wait(self.on.stream)?;
            // The first round brings the graph to the device.
            if round > 0 {
                least = least.min(began.elapsed());
            }
        }
        Ok(Some(least / turns.len() as u32))
    }
}

/// A kernel of our own that faults takes the device from the whole process: the error says how to do without.
fn blaming(way: &Way) -> impl FnOnce(Error) -> Error {
    let own = own_of(way).is_some();
    move |error| match own {
        true => Error::internal(format!("{}{}", error.message(), way_out(own))).with_cause(error),
        false => error,
    }
}

fn own_of(way: &Way) -> Option<Own> {
    if let Way::Own(own) = way { Some(*own) } else { None }
}

fn same(a: &Way, b: &Way) -> bool {
    match (a, b) {
        (Way::Library(a), Way::Library(b)) => a.data == b.data,
        (Way::Own(a), Way::Own(b)) => a == b,
        _ => false,
    }
}

#[expect(unsafe_code, reason = "calls of cublasLt")]
fn splits_nothing(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    let read = |attribute| {
        let mut value = 0u32;
        let mut written = 0usize;
        // SAFETY: a live algorithm; both attributes are 32-bit numbers.
        let status = unsafe {
            sys::cublasLtMatmulAlgoConfigGetAttribute(
                algorithm,
                attribute,
                (&raw mut value).cast(),
                size_of::<u32>(),
                &raw mut written,
            )
        };
        status.result().is_ok().then_some(value)
    };
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    // 0 is how an algorithm says that it knows no split.
    read(Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM).is_some_and(|parts| parts <= 1)
        && read(Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) == Some(0)
}
