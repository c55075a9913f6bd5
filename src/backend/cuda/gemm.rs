//! Matrix products, the way that `choose` found at start: by an algorithm of cublasLt, or by `hopper`.

use std::{
    collections::HashMap,
    ffi::c_void,
    mem::{Discriminant, discriminant},
    sync::Arc,
};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys,
    },
    driver::{CudaContext, sys as cuda},
};

use super::{
    hopper::{ALL_CLUSTERS, Finish, Hopper, Own},
    memory::{Address, Region},
};
use crate::error::{Error, Result};

/// What cublasLt may use beside its operands.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;
/// Products of at most so many rows have an algorithm of their own; those of more rows have the last one's.
pub(super) const CLASSES: [usize; 20] = [
    16, 64, 128, 256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4608, 5120, 5632, 6144, 6656, 7168,
    7680, 8192,
];

/// What multiplies.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Library(sys::cublasLtMatmulAlgo_t),
    Own(Own),
}

/// Which of [`CLASSES`] so many rows are of.
pub(super) fn class(rows: usize) -> usize {
    CLASSES.iter().position(|&most| rows <= most).unwrap_or(CLASSES.len() - 1)
}

/// Ways with the same bits.
pub(super) struct Ways {
    /// The fastest for each of [`CLASSES`].
    pub(super) fastest: [Way; CLASSES.len()],
    /// One that takes any number of rows.
    pub(super) reference: Way,
}

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
    pub(super) fn kind(self) -> sys::cudaDataType_t {
        match self {
            Self::Rows => sys::cudaDataType_t::CUDA_R_16BF,
            Self::Wide | Self::Sum => sys::cudaDataType_t::CUDA_R_32F,
        }
    }

    pub(super) fn bytes(self) -> usize {
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

/// cublasLt, what there is beside it, and the ways of each shape (outputs, depth), result, and what is done to it.
pub(super) struct Gemm {
    pub(super) handle: sys::cublasLtHandle_t,
    /// y = x · wᵀ, in cublasLt's order by column.
    pub(super) product: sys::cublasLtMatmulDesc_t,
    pub(super) hopper: Option<Hopper>,
    ways: HashMap<(usize, usize, Output, Discriminant<Finish>), Ways>,
}

impl Gemm {
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    pub(super) fn open(hopper: Option<Hopper>) -> Result<Self> {
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
        Ok(Self { handle, product, hopper, ways: HashMap::new() })
    }

    /// y\[rows, outputs\] = x\[rows, depth\] · wᵀ. `w` and `into` are what was chosen for.
    pub(super) fn multiply(
        &self,
        w: &Matrix,
        x: Address,
        y: (Address, Output),
        rows: usize,
        on: On<'_>,
    ) -> Result<()> {
        self.by(self.ways(w, y.1, &Finish::Nothing)?, w, x, y, rows, on)
    }

    /// The product in bf16, to `finished` with what is to be done to it, if one kernel does both; else as it is to `y`, and
    /// false.
    pub(super) fn multiply_and_finish(
        &self,
        w: &Matrix,
        x: Address,
        (y, finished): (Address, Address),
        (rows, finish): (usize, &Finish),
        on: On<'_>,
    ) -> Result<bool> {
        let ways = self.ways(w, Output::Rows, finish)?;
        match (&ways.fastest[class(rows)], &self.hopper) {
            (Way::Own(own), Some(hopper)) if hopper.takes(*own, w, rows, finish) => {
                let y = (finished, Output::Rows);
                hopper.multiply((*own, finish, ALL_CLUSTERS), w, x, y, rows, on.stream).map(|()| true)
            }
            // What it makes without finishing it was not tried.
            (Way::Own(_), _) => self.run(w, x, (y, Output::Rows), rows, &ways.reference, on).map(|()| false),
            _ => self.by(ways, w, x, (y, Output::Rows), rows, on).map(|()| false),
        }
    }

    pub(super) fn keep(&mut self, w: &Matrix, into: Output, finish: &Finish, ways: Ways) {
        self.ways.insert((w.outputs, w.depth, into, discriminant(finish)), ways);
    }

    fn ways(&self, w: &Matrix, into: Output, finish: &Finish) -> Result<&Ways> {
        let ways = self.ways.get(&(w.outputs, w.depth, into, discriminant(finish)));
        ways.ok_or_else(|| Error::internal("a product of an unknown shape"))
    }

    /// Not every number of rows of a class was tried; what an algorithm does not take it refuses unlaunched.
    fn by(
        &self,
        ways: &Ways,
        w: &Matrix,
        x: Address,
        y: (Address, Output),
        rows: usize,
        on: On<'_>,
    ) -> Result<()> {
        let run = |way| self.run(w, x, y, rows, way, on);
        run(&ways.fastest[class(rows)]).or_else(|_| run(&ways.reference))
    }

    /// The product by one of the ways.
    pub(super) fn run(
        &self,
        w: &Matrix,
        x: Address,
        y: (Address, Output),
        rows: usize,
        way: &Way,
        on: On<'_>,
    ) -> Result<()> {
        match (way, &self.hopper) {
            (Way::Library(algorithm), _) => {
                let layouts = Layouts::of(w, rows, y.1)?;
                self.by_library(w, &layouts, algorithm, (x, y.0), on).map_err(refused("a product"))
            }
            (Way::Own(own), Some(hopper)) => {
                hopper.multiply((*own, &Finish::Nothing, ALL_CLUSTERS), w, x, y, rows, on.stream)
            }
            (Way::Own(_), None) => Err(Error::internal("a product by a kernel that is not there")),
        }
    }

    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn by_library(
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
}

impl Drop for Gemm {
    #[expect(unsafe_code, reason = "calls of cublasLt")]
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once. A refusal leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_desc(self.product).and(result::destroy_handle(self.handle)) };
    }
}

/// The layouts of one product's matrices.
pub(super) struct Layouts {
    pub(super) into: Output,
    pub(super) w: sys::cublasLtMatrixLayout_t,
    pub(super) x: sys::cublasLtMatrixLayout_t,
    pub(super) y: sys::cublasLtMatrixLayout_t,
}

impl Layouts {
    /// By column: w is depth x outputs, x depth x rows, y outputs x rows.
    pub(super) fn of(w: &Matrix, rows: usize, into: Output) -> Result<Self> {
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

pub(super) fn refused(what: &str) -> impl FnOnce(CublasError) -> Error {
    let message = format!("device: cuda: cublasLt: {what}");
    move |error| Error::internal(format!("{message}: {:?}", error.0))
}
