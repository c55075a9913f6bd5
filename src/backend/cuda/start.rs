//! Finding the GPU and its libraries at run time. Each way in which there is none is one line.

use std::{
    env,
    ffi::{CStr, CString, c_int, c_void},
    panic,
    path::{Path, PathBuf},
    sync::Arc,
};

use cudarc::{
    cublaslt,
    driver::{CudaContext, DriverError, result, sys},
};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::fault;
use crate::error::{Error, Result};

/// A fatbin with every kernel, for every architecture that is supported; see `build.rs`.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Another fatbin, to try kernels without building the program.
const KERNELS_VARIABLE: &str = "VERDICT_CUDA_KERNELS";
/// The directory of cublasLt, before all others.
const CUBLASLT_VARIABLE: &str = "VERDICT_CUBLASLT_DIR";
const CUBLASLT: &str = "libcublasLt.so.13";
const CUBLASLT_VERSION: usize = 130_000;
/// One that every version has.
const CUBLASLT_FUNCTION: &[u8] = b"cublasLtGetVersion";

/// What multiplies on Hopper, of what has the same bits: `fastest`, which is what it is unset; `own`, the kernels of
/// `hopper` wherever they can; `library`, cublasLt alone.
pub(super) const PRODUCTS_VARIABLE: &str = "VERDICT_CUDA_PRODUCTS";

/// Shared memory of a multiprocessor that the system takes for each block.
pub(super) const RESERVED_SHARED: usize = 1 << 10;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    Fastest,
    Own,
    Library,
}

/// A GPU that is ready for work.
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    pub(super) name: String,
    pub(super) capability: (i32, i32),
    /// Bytes of shared memory of a multiprocessor.
    pub(super) shared_memory: usize,
    pub(super) multiprocessors: usize,
    pub(super) products: Products,
    module: sys::CUmodule,
}

impl Gpu {
    /// Opens the first GPU, cublasLt and the kernels.
    ///
    /// `Invalid`, saying in one line what is missing.
    pub(super) fn open() -> Result<Self> {
        let context = quietly(context)??;
        let capability = context.compute_capability().map_err(fault("its compute capability"))?;
        let name = context.name().map_err(fault("its name"))?;
        if capability.0 < 8 {
            let (major, minor) = capability;
            return Err(unusable(format!(
                "{name} has compute capability {major}.{minor}; 8.0 or newer is needed"
            )));
        }
        let shared = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR;
        let shared_memory = context.attribute(shared).map_err(fault("its shared memory"))?.max(0) as usize;
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(fault("its multiprocessors"))?.max(0) as usize;
        let products = products()?;
        open_cublaslt()?;
        let module = load_kernels()?;
        Ok(Self { context, name, capability, shared_memory, multiprocessors, products, module })
    }

    /// Whether it has the kernels of compute capability 9.0, which no other runs.
    pub(super) fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Blocks of so much shared memory that the device holds at once.
    pub(super) fn blocks_at_once(&self, shared: usize) -> usize {
        self.multiprocessors * (self.shared_memory / (shared + RESERVED_SHARED)).max(1)
    }

    /// The kernel `name`, allowed `shared` bytes of shared memory.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub(super) fn function(&self, name: &str, shared: usize) -> Result<sys::CUfunction> {
        let symbol =
            CString::new(name).map_err(|cause| Error::internal("a kernel's name").with_cause(cause))?;
        // SAFETY: the module is loaded, and stays so as long as this value.
        let found = unsafe { result::module::get_function(self.module, symbol) };
        let function = found.map_err(fault(&format!("the kernel {name}")))?;
        let set = |attribute, value: c_int| {
            // SAFETY: the function was found above.
            unsafe { sys::cuFuncSetAttribute(function, attribute, value).result() }
        };
        use sys::CUfunction_attribute as Attribute;
        // A block gets 48 KiB unasked.
        if shared > 48 << 10 {
            set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as c_int)
                .map_err(fault(&format!("{shared} bytes of shared memory for {name}")))?;
        }
        // Kernels that begin while the one before still runs wish for the same division of memory into shared memory and
        // cache: a change of it may wait for the device (CUDA's documentation of cudaFuncSetCacheConfig).
        if self.is_hopper() {
            let most = sys::CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as c_int;
            set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, most)
                .map_err(fault(&format!("shared memory for {name}")))?;
        }
        Ok(function)
    }
}

impl Drop for Gpu {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `open`, unloaded once. A refusal leaves nothing to do.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

fn products() -> Result<Products> {
    let named = env::var_os(PRODUCTS_VARIABLE).unwrap_or_else(|| "fastest".into());
    match named.to_str() {
        Some("fastest") => Ok(Products::Fastest),
        Some("own") => Ok(Products::Own),
        Some("library") => Ok(Products::Library),
        _ => Err(unusable(format!("{PRODUCTS_VARIABLE} is fastest, own or library, not {named:?}"))),
    }
}

fn unusable(reason: impl std::fmt::Display) -> Error {
    Error::invalid("device", format!("cuda: {reason}"))
}

/// cudarc panics where a library lacks a function: that is a reason, not a crash.
fn quietly<T>(work: impl FnOnce() -> T + panic::UnwindSafe) -> Result<T> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = panic::catch_unwind(work);
    panic::set_hook(hook);
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map_or("it lacks a function", String::as_str);
        unusable(format!("the NVIDIA driver is too old: {}", text.lines().next().unwrap_or_default()))
    })
}

#[expect(unsafe_code, reason = "asks for a shared library")]
fn context() -> Result<Arc<CudaContext>> {
    // SAFETY: opens and closes libcuda, whose initialisers may run anywhere.
    if !unsafe { sys::is_culib_present() } {
        return Err(unusable("there is no NVIDIA driver (libcuda.so.1 was not found)"));
    }
    let reason = |error: DriverError| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => unusable("the NVIDIA driver is there, but it sees no GPU"),
        _ => unusable(format!("the NVIDIA driver does not start: {}", describe(error))),
    };
    result::init().map_err(reason)?;
    if result::device::get_count().map_err(reason)? == 0 {
        return Err(unusable("the NVIDIA driver is there, but it sees no GPU"));
    }
    let context = CudaContext::new(0).map_err(reason)?;
    // SAFETY: this backend orders its work itself, on the streams of its lanes.
    unsafe { context.disable_event_tracking() };
    Ok(context)
}

/// A driver's error in words.
pub(super) fn describe(error: DriverError) -> String {
    let named = quietly(move || {
        let text: Option<&CStr> = error.error_string().ok();
        text.map(|text| text.to_string_lossy().into_owned())
    });
    named.ok().flatten().unwrap_or_else(|| format!("{:?}", error.0))
}

/// Opens cublasLt for the whole process: cudarc then finds it by its name.
#[expect(unsafe_code, reason = "opens a shared library")]
fn open_cublaslt() -> Result<()> {
    let mut tried = Vec::new();
    for path in cublaslt_places() {
        // SAFETY: NVIDIA's library, or the one that the operator named; its initialisers may run
        // anywhere.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // SAFETY: only the function's address is used.
                let opened = unsafe { library.get::<*const c_void>(CUBLASLT_FUNCTION) }.map(|found| *found);
                // It stays open as long as the process.
                std::mem::forget(library);
                // SAFETY: as above.
                if unsafe { cublaslt::sys::is_culib_present() } {
                    return check_cublaslt(&path, opened.ok());
                }
                tried.push(format!("{} (not found again by its name)", path.display()));
            }
            Err(cause) if path.is_file() => tried.push(format!("{} ({cause})", path.display())),
            Err(_) => tried.push(path.display().to_string()),
        }
    }
    Err(unusable(format!(
        "{CUBLASLT} was not found; set {CUBLASLT_VARIABLE} to its directory; tried {}",
        tried.join(", ")
    )))
}

/// cudarc asks for `libcublasLt.so` first, which may be another one than was opened at `path`, where `opened` lies: not in
/// place of one that was named, and not an older one.
#[expect(unsafe_code, reason = "asks a shared library")]
fn check_cublaslt(path: &Path, opened: Option<*const c_void>) -> Result<()> {
    // SAFETY: only the function's address is used.
    let used = unsafe { cublaslt::sys::culib().get::<*const c_void>(CUBLASLT_FUNCTION) }.map(|found| *found);
    let first = "one that LD_LIBRARY_PATH leads to by that name comes before it";
    if env::var_os(CUBLASLT_VARIABLE).is_some() && used.ok() != opened {
        return Err(unusable(format!(
            "{CUBLASLT_VARIABLE}: {} would not be used: the system has another libcublasLt.so; {first}",
            path.display()
        )));
    }
    // SAFETY: a function without arguments.
    let version = quietly(|| unsafe { cublaslt::sys::cublasLtGetVersion() }).unwrap_or(0);
    if version < CUBLASLT_VERSION {
        return Err(unusable(format!(
            "the system's libcublasLt.so has version {version}, {CUBLASLT_VERSION} or newer is needed; {first}"
        )));
    }
    tracing::debug!(version, opened = %path.display(), "cublasLt");
    Ok(())
}

fn cublaslt_places() -> Vec<PathBuf> {
    let named = env::var_os(CUBLASLT_VARIABLE).map(|dir| Path::new(&dir).join(CUBLASLT));
    if let Some(named) = named {
        return vec![named];
    }
    let mut places = vec![PathBuf::from(CUBLASLT)];
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    // An empty one would be the working directory.
    let homes = homes.filter(|home| !home.is_empty()).map(PathBuf::from);
    for home in homes.chain([PathBuf::from("/usr/local/cuda")]) {
        places.extend(["lib64", "lib"].map(|dir| home.join(dir).join(CUBLASLT)));
    }
    let environments = env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter();
    for root in environments.chain([PathBuf::from("/usr"), PathBuf::from("/usr/local")]) {
        let pythons = std::fs::read_dir(root.join("lib")).into_iter().flatten().flatten();
        for python in pythons.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                let path = python.path().join(packages).join("nvidia/cu13/lib").join(CUBLASLT);
                places.extend(path.is_file().then_some(path));
            }
        }
    }
    places
}

#[expect(unsafe_code, reason = "calls of the driver")]
fn load_kernels() -> Result<sys::CUmodule> {
    let other = env::var_os(KERNELS_VARIABLE).map(|path| {
        std::fs::read(&path)
            .map_err(|cause| unusable(format!("{KERNELS_VARIABLE}: {}: {cause}", path.display())))
    });
    let other = other.transpose()?;
    if other.as_deref().is_some_and(|image| !is_fatbin(image)) {
        return Err(unusable(format!("{KERNELS_VARIABLE}: it names no whole fatbin")));
    }
    let image = other.as_deref().unwrap_or(KERNELS);
    // SAFETY: a fatbin, and as long as it says; the driver checks what is in it.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
    module.map_err(|error| unusable(format!("the kernels are refused by the driver: {}", describe(error))))
}

/// Whether an image is as long as it says, for the driver is not told: a magic number, a version, the header's size, and
/// then that of what is behind it (fatbinary_section.h of the CUDA toolkit has the numbers).
fn is_fatbin(image: &[u8]) -> bool {
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    let Some((header, _)) = image.split_first_chunk::<16>() else { return false };
    let (_, size) = header.split_at(8);
    let behind = size.try_into().map_or(u64::MAX, u64::from_le_bytes);
    let header_size = u64::from(u16::from_le_bytes([header[6], header[7]]));
    header.starts_with(&MAGIC) && behind.saturating_add(header_size) <= image.len() as u64
}
