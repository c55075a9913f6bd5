//! Matrix products by cublasLt: for each shape of weights one algorithm, chosen at start.
//!
//! **Invariance.** An algorithm without split-K that gives a row the same bits in products of
//! any number of rows: that is tried on the device before it is taken. Candidates are in the
//! order of cublasLt's own heuristic, so that equal machines choose equally.

use std::{
    collections::HashMap,
    ffi::{c_int, c_void},
    sync::Arc,
};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver::{CudaContext, result as driver, sys as cuda},
};

use super::{
    fault,
    memory::{Address, Region, upload},
};
use crate::error::{Error, Result};

/// What cublasLt may use beside its operands.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Rows of the product that an algorithm is chosen and tried with.
const TRIAL_ROWS: usize = 512;
/// Products of so many rows must repeat the first rows of [`TRIAL_ROWS`].
const TRIALS: [usize; 9] = [1, 2, 7, 16, 33, 64, 128, 200, 511];
/// Algorithms to ask for.
const CANDIDATES: usize = 32;

/// A weight matrix on the device: `[outputs, depth]` in bf16, by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) at: Address,
    pub(super) outputs: usize,
    pub(super) depth: usize,
}

/// What a product is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Output {
    /// Rows of bf16.
    Rows,
    /// Rows of f32.
    Wide,
    /// Added to rows of f32.
    Sum,
}

impl Output {
    fn kind(self) -> sys::cudaDataType_t {
        match self {
            Self::Rows => sys::cudaDataType_t::CUDA_R_16BF,
            Self::Wide | Self::Sum => sys::cudaDataType_t::CUDA_R_32F,
        }
    }

    fn bytes(self) -> usize {
        if self == Self::Rows { 2 } else { 4 }
    }
}

/// What cublasLt writes to beside its results; passes that run side by side share none.
pub(super) struct Workspace(Region);

impl Workspace {
    pub(super) fn allocate(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self(Region::allocate(context, WORKSPACE_BYTES, "cublasLt")?))
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// Where products run.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    pub(super) stream: cuda::CUstream,
    pub(super) workspace: &'a Workspace,
}

/// cublasLt, and the algorithm of each shape (outputs, depth) and result.
pub(super) struct Gemm {
    handle: sys::cublasLtHandle_t,
    /// y = x · wᵀ, in cublasLt's order by column.
    product: sys::cublasLtMatmulDesc_t,
    algorithms: HashMap<(usize, usize, Output), sys::cublasLtMatmulAlgo_t>,
}

impl Gemm {
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    pub(super) fn open() -> Result<Self> {
        let handle = result::create_handle().map_err(refused("it does not start"))?;
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        let product = result::create_matmul_desc(compute, scale).map_err(refused("a product"))?;
        // CUBLAS_OP_T: cublasLt reads our rows as columns.
        let transposed: i32 = 1;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: a live descriptor, and the attribute's own type.
        let set = unsafe {
            let value = std::ptr::from_ref(&transposed).cast();
            result::set_matmul_desc_attribute(product, attribute, value, size_of_val(&transposed))
        };
        set.map_err(refused("a product"))?;
        Ok(Self { handle, product, algorithms: HashMap::new() })
    }

    /// y\[rows, outputs\] = x\[rows, depth\] · wᵀ. `w` and `into` are what was chosen for.
    pub(super) fn multiply(
        &self,
        w: &Matrix,
        x: Address,
        (y, into): (Address, Output),
        rows: usize,
        on: On<'_>,
    ) -> Result<()> {
        let algorithm = self.algorithms.get(&(w.outputs, w.depth, into));
        let algorithm = algorithm.ok_or_else(|| Error::internal("a product of an unknown shape"))?;
        let layouts = Layouts::of(w, rows, into)?;
        self.run(w, &layouts, algorithm, (x, y), on).map_err(refused("a product"))
    }

    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn run(
        &self,
        w: &Matrix,
        layouts: &Layouts,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        (x, y): (Address, Address),
        on: On<'_>,
    ) -> Result<(), CublasError> {
        let (one, kept) = (1.0f32, if layouts.into == Output::Sum { 1.0f32 } else { 0.0 });
        let pointer = |address: Address| address as *mut c_void;
        // SAFETY: live descriptors of matrices that lie whole at these addresses; alpha and beta
        // are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                self.product,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&kept).cast(),
                pointer(w.at),
                layouts.w,
                pointer(x),
                layouts.x,
                pointer(y),
                layouts.y,
                pointer(y),
                layouts.y,
                algorithm,
                pointer(on.workspace.0.base()),
                on.workspace.bytes(),
                on.stream.cast(),
            )
        }
    }

    /// Chooses an algorithm for the shape of `w` and its result, unless there is one.
    pub(super) fn choose(
        &mut self,
        context: &Arc<CudaContext>,
        w: &Matrix,
        into: Output,
        on: On<'_>,
    ) -> Result<()> {
        if self.algorithms.contains_key(&(w.outputs, w.depth, into)) {
            return Ok(());
        }
        let trial = Trial::of(context, w, into)?;
        let candidates = self.candidates(w, into)?;
        for algorithm in &candidates {
            if self.keeps_bits(w, algorithm, &trial, on)? {
                self.algorithms.insert((w.outputs, w.depth, into), *algorithm);
                return Ok(());
            }
        }
        Err(Error::internal(format!(
            "device: cuda: none of {} algorithms of cublasLt multiplies by [{}, {}] with the same bits for any number of rows",
            candidates.len(),
            w.outputs,
            w.depth
        )))
    }

    /// What the heuristic proposes for many rows, without split-K, best first.
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn candidates(&self, w: &Matrix, into: Output) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
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
        let layouts = Layouts::of(w, TRIAL_ROWS, into)?;
        // SAFETY: plain numbers, for which zero is a value.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count: c_int = 0;
        // SAFETY: live descriptors; `found` has room for what is asked.
        let asked = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.product,
                layouts.w,
                layouts.x,
                layouts.y,
                layouts.y,
                preference,
                CANDIDATES as c_int,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        // SAFETY: made above, destroyed once.
        let ended = unsafe { result::destroy_matmul_pref(preference) };
        limited.and(whole).and(asked.result()).and(ended).map_err(refused("its heuristic"))?;
        let found = &found[..(count.max(0) as usize).min(CANDIDATES)];
        let usable = found.iter().filter(|candidate| candidate.state.result().is_ok());
        Ok(usable.map(|candidate| candidate.algo).filter(splits_nothing).collect())
    }

    /// Whether a row has the same bits in products of any number of rows.
    fn keeps_bits(
        &self,
        w: &Matrix,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        trial: &Trial,
        on: On<'_>,
    ) -> Result<bool> {
        let w = &Matrix { at: trial.w.base(), ..*w };
        let run = |rows: usize| -> Result<Option<Vec<u16>>> {
            let layouts = Layouts::of(w, rows, trial.into)?;
            let halves = rows * w.outputs * trial.into.bytes() / 2;
            if trial.into == Output::Sum {
                upload(trial.y.base(), &vec![0u16; halves])?;
            }
            // An algorithm that does not take so few rows is not for us.
            match self.run(w, &layouts, algorithm, (trial.x.base(), trial.y.base()), on) {
                Ok(()) => Ok(Some(download(trial.y.base(), halves, on.stream)?)),
                Err(_) => Ok(None),
            }
        };
        let Some(expected) = run(TRIAL_ROWS)? else { return Ok(false) };
        for rows in TRIALS {
            if run(rows)?.is_none_or(|found| found != expected[..found.len()]) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Gemm {
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once. A refusal leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_desc(self.product).and(result::destroy_handle(self.handle)) };
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

/// The layouts of one product's matrices.
struct Layouts {
    into: Output,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

impl Layouts {
    /// By column: w is depth x outputs, x depth x rows, y outputs x rows.
    fn of(w: &Matrix, rows: usize, into: Output) -> Result<Self> {
        let matrix = |kind, rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
                .map_err(refused("a matrix's layout"))
        };
        let narrow = Output::Rows.kind();
        Ok(Self {
            into,
            w: matrix(narrow, w.depth, w.outputs)?,
            x: matrix(narrow, w.depth, rows)?,
            y: matrix(into.kind(), w.outputs, rows)?,
        })
    }
}

impl Drop for Layouts {
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn drop(&mut self) {
        for layout in [self.w, self.x, self.y] {
            // SAFETY: made by `of`, destroyed once.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
    }
}

/// Operands to try an algorithm with.
struct Trial {
    into: Output,
    w: Region,
    x: Region,
    y: Region,
}

impl Trial {
    fn of(context: &Arc<CudaContext>, w: &Matrix, into: Output) -> Result<Self> {
        let depth = w.depth;
        let x = Region::allocate(context, TRIAL_ROWS * w.depth * 2, "a trial of cublasLt")?;
        let y = Region::allocate(context, TRIAL_ROWS * w.outputs * into.bytes(), "a trial of cublasLt")?;
        let w =
            Region::allocate(context, w.depth * w.outputs * 2, "a trial of cublasLt").and_then(|region| {
                upload(region.base(), &vec![0x3f80u16; w.depth * w.outputs])?;
                Ok(region)
            })?;
        // Sums of numbers from 1 to 2^25 in size, each with its negative half a row away: what is
        // left of them is what the order of summation made of it.
        let mut state = 1u32;
        let mut numbers: Vec<u16> = vec![0; TRIAL_ROWS * depth];
        for row in numbers.chunks_exact_mut(depth) {
            for i in 0..depth / 2 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let size = ((127 + (state >> 16) % 25) << 7) | ((state >> 24) & 0x7f);
                row[i] = size as u16;
                row[i + depth / 2] = size as u16 | 0x8000;
            }
        }
        upload(x.base(), &numbers)?;
        Ok(Self { into, w, x, y })
    }
}

/// What lies at an address once `stream` is done.
#[expect(unsafe_code, reason = "calls of the driver")]
fn download(from: Address, len: usize, stream: cuda::CUstream) -> Result<Vec<u16>> {
    let mut to = vec![0; len];
    // SAFETY: the region holds `len` numbers, and the copy ends before `to` is used.
    let copied =
        unsafe { driver::memcpy_dtoh_async(&mut to, from, stream).and(driver::stream::synchronize(stream)) };
    copied.map_err(fault("a copy from it"))?;
    Ok(to)
}

fn refused(what: &str) -> impl FnOnce(CublasError) -> Error {
    let message = format!("device: cuda: cublasLt: {what}");
    move |error| Error::internal(format!("{message}: {:?}", error.0))
}
