//! Which vector instructions the machine has, and one macro that compiles a
//! kernel once for each.
//!
//! Every kernel is plain Rust over fixed-size arrays with `mul_add`, so all the
//! variants round alike: a score does not depend on the instruction set. The one
//! exception is [`Isa::Amx`], whose matrix products add in another order.

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the target guarantees (NEON on aarch64; scalar `fma` elsewhere: correct and slow).
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL.
    Avx512,
    /// The same with Intel's tile unit for bf16 (AMX), which `amx` runs products on.
    Amx,
}

impl Isa {
    /// The best one this machine runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && super::amx::available() {
                return Isa::Amx;
            }
            if avx2 && avx512 {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }

    /// Short name for logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "avx512, amx",
        }
    }

    /// Whether it has 32 vector registers of sixteen f32.
    pub(super) fn is_avx512(self) -> bool {
        matches!(self, Isa::Avx512 | Isa::Amx)
    }
}

/// Defines `fn name(isa, args…)` that runs `body` compiled for `isa`.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$(const $generic:ident : usize),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls a function compiled for instructions that Isa::detect found")]
        #[inline]
        $vis fn $name $(<$(const $generic: usize),+>)? (isa: $crate::backend::cpu::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$(const $generic: usize),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$(const $generic: usize),+>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$($generic),+>)? ($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
            fn avx512 $(<$(const $generic: usize),+>)? ($($arg: $ty),*) $(-> $ret)? { body $(::<$($generic),+>)? ($($arg),*) }

            match isa {
                // SAFETY: an Isa value other than Portable only comes from `Isa::detect`, which saw these features.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::Isa::Avx512 | $crate::backend::cpu::isa::Isa::Amx => unsafe { avx512 $(::<$($generic),+>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::backend::cpu::isa::Isa::Avx2 => unsafe { avx2 $(::<$($generic),+>)? ($($arg),*) },
                _ => body $(::<$($generic),+>)? ($($arg),*),
            }
        }
    };
}
pub(super) use kernel;

/// Asks for the cache line at `from`, which need not be a valid place: only speed depends on it.
#[expect(unsafe_code, reason = "the instruction has no safe form")]
#[inline(always)]
pub(super) fn prefetch<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing but caches.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}
