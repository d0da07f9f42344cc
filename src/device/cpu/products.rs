//! In which precision matrix products are computed, and by which instructions.
//!
//! | precision | factors | by | rounding of a factor |
//! | --- | --- | --- | --- |
//! | `f32` | f32 | fused multiply-add | 2⁻²⁴ |
//! | `tf32` | two bf16 terms, three products (hi·hi + hi·lo + lo·hi) | AMX | 2⁻¹⁶ |
//! | | f32 | fused multiply-add, where there is no AMX | 2⁻²⁴ |
//! | `bf16` | bf16 | AMX; else AVX-512 BF16; else fused multiply-add on rounded factors | 2⁻⁸ |
//!
//! `tf32` is at least as accurate as on a GPU, where it is 2⁻¹¹. Sums are f32 in all of them, and so is everything that is
//! no product: activations in memory, parameters, their gradients, statistics, grids, losses.
//!
//! The choice belongs to a pool of threads, not to the process: [`threads`] starts one, and [`products`] is what work on
//! it uses. On any other thread products are f32.
//!
//! The instructions are found once. `GRAD_PRODUCTS=fma|avx512bf16|amx` forces others of this machine, so that all can be
//! tested. `vdpbf16ps` is taken on AMD alone unless forced: Intel's cores multiply f32 as fast or faster.

use std::cell::Cell;
use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::amx;
use super::bf16;
use super::simd::{Level, Simd, simd};
use crate::device::cuda::Precision;
use crate::error::{Error, Result};

/// How products are computed, by instructions that *this* machine has: as with [`Simd`], a value is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Products {
    precision: Precision,
    unit: Unit,
    simd: Simd,
}

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// The vector level, in f32.
    Fma,
    /// `vdpbf16ps`.
    Avx512Bf16,
    /// The tiles of AMX.
    Amx,
    /// The model of AMX in plain Rust, which the tests run.
    #[cfg(any(test, feature = "emulator"))]
    AmxModel,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Fma => "fma",
            Unit::Avx512Bf16 => "avx512bf16",
            Unit::Amx => "amx",
            #[cfg(any(test, feature = "emulator"))]
            Unit::AmxModel => "amx-model",
        }
    }

    /// Those that multiply in `precision` where the vector level is `simd`, the one to take last.
    fn available(precision: Precision, simd: Simd) -> Vec<Unit> {
        let mut units = vec![Unit::Fma];
        if precision == Precision::F32 {
            return units;
        }
        #[cfg(any(test, feature = "emulator"))]
        units.insert(0, Unit::AmxModel);
        if simd.level() == Level::Avx512 {
            if precision == Precision::Bf16 && has_avx512_bf16() {
                // The last one is taken.
                units.insert(if is_amd() { units.len() } else { 0 }, Unit::Avx512Bf16);
            }
            if amx::state().is_ok() {
                units.push(Unit::Amx);
            }
        }
        units
    }
}

impl From<Simd> for Products {
    /// Products in f32 at this level.
    fn from(simd: Simd) -> Self {
        Products { precision: Precision::F32, unit: Unit::Fma, simd }
    }
}

impl Products {
    /// Every way to multiply in `precision` that this machine has, at the vector level in use; the best one last.
    pub fn available(precision: Precision) -> Vec<Products> {
        Unit::available(precision, simd()).into_iter().map(|unit| Products { precision, unit, simd: simd() }).collect()
    }

    /// [`Self::available`] in all precisions at all vector levels; the model of AMX, which is slow, at one.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Products> {
        let at = |precision, simd| {
            let units = Unit::available(precision, simd).into_iter();
            let units = units.filter(move |unit| *unit != Unit::AmxModel || simd == super::simd::simd());
            units.map(move |unit| Products { precision, unit, simd })
        };
        let levels = |precision| Simd::available().into_iter().flat_map(move |simd| at(precision, simd));
        Precision::ALL.into_iter().flat_map(levels).collect()
    }

    /// Products in `precision` by what `GRAD_PRODUCTS` asks for, or else by the best that this machine has.
    ///
    /// # Errors
    /// [`Error::Config`] when the variable names nothing, or something that this machine lacks.
    pub fn requested(precision: Precision) -> Result<Products> {
        Self::choose(precision, std::env::var("GRAD_PRODUCTS").ok().as_deref())
    }

    fn choose(precision: Precision, name: Option<&str>) -> Result<Products> {
        let of = |unit| Products { precision, unit, simd: simd() };
        let best = || Self::available(precision).pop().unwrap_or(of(Unit::Fma));
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(best()) };
        let units = Unit::available(Precision::Bf16, simd());
        let Some(&unit) = units.iter().find(|unit| unit.name() == name) else {
            let names = units.iter().map(|unit| unit.name()).collect::<Vec<_>>().join("|");
            return Err(Error::config(
                format!(
                    "GRAD_PRODUCTS={name} is nothing that multiplies bf16 on this machine, at GRAD_SIMD={}",
                    simd().name()
                ),
                format!("use GRAD_PRODUCTS={names}, or leave the variable out"),
            ));
        };
        let serves = Unit::available(precision, simd()).contains(&unit);
        Ok(of(if serves { unit } else { Unit::Fma }))
    }

    /// The precision that was asked for.
    pub fn precision(self) -> Precision {
        self.precision
    }

    /// The precision that is best where none is asked for: bf16 where this machine multiplies it faster than f32, else f32.
    /// What that costs in accuracy is in `docs/precision.md`.
    ///
    /// # Errors
    /// As [`Self::requested`].
    pub fn preferred() -> Result<Precision> {
        let fast = matches!(Self::requested(Precision::Bf16)?.unit, Unit::Amx | Unit::Avx512Bf16);
        Ok(if fast { Precision::Bf16 } else { Precision::F32 })
    }

    /// Into how many bf16 a factor is split; none where it stays f32 or is rounded to one bf16 as an f32.
    pub(super) fn terms(self) -> usize {
        match (self.precision, self.unit) {
            (Precision::F32, _) | (_, Unit::Fma) => 0,
            (Precision::Tf32, _) => 2,
            (Precision::Bf16, _) => 1,
        }
    }

    /// Whether AMX multiplies.
    pub(super) fn by_amx(self) -> bool {
        self.terms() > 0 && self.unit != Unit::Avx512Bf16
    }

    /// How many times coarser than f32 the factors of a product are rounded: no coarser than the precision allows.
    pub fn coarseness(self) -> f64 {
        match (self.precision, self.terms()) {
            (Precision::Bf16, _) => Precision::Bf16.coarseness(),
            (Precision::Tf32, 2) => 256.0,
            _ => 1.0,
        }
    }

    /// `v` as a factor of these products.
    pub fn factor(self, v: f32) -> f32 {
        match (self.precision, self.terms()) {
            (Precision::Bf16, _) => bf16::rounded(v),
            (Precision::Tf32, 2) => bf16::in_two_terms(v),
            _ => v,
        }
    }

    /// The precision and what multiplies, for people: `bf16 by avx512bf16`.
    pub fn describe(self) -> String {
        let by = if self.unit == Unit::Fma { self.simd.name() } else { self.unit.name() };
        format!("{} by {by}", self.precision.name())
    }

    /// What multiplies in each precision when it is asked for, and why AMX does not, for people.
    pub fn explain() -> String {
        let taken = |precision| Self::requested(precision).map_or_else(|_| "none".into(), Self::describe);
        let amx = amx::state().map_or_else(|why| format!("no AMX: {why}"), |()| "AMX agrees with its model".into());
        format!("{} ({amx})", Precision::ALL.map(taken).join(", "))
    }

    /// Which instructions multiply, for a key of what was computed: other instructions round differently.
    pub fn key(self) -> String {
        if self.coarseness() == 1.0 {
            self.simd.name().into()
        } else {
            format!("{} {}", self.simd.name(), self.describe())
        }
    }

    pub(super) fn unit(self) -> Unit {
        self.unit
    }

    pub(super) fn simd(self) -> Simd {
        self.simd
    }
}

thread_local! {
    /// What [`threads`] gave this thread.
    static PRODUCTS: Cell<Option<Products>> = const { Cell::new(None) };
}

/// How products are computed on this thread.
pub fn products() -> Products {
    PRODUCTS.get().unwrap_or_else(|| simd().into())
}

/// A pool of `count` threads that compute products so.
///
/// # Errors
/// When they cannot be started.
pub fn threads(count: usize, products: Products) -> std::result::Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(count).start_handler(move |_| PRODUCTS.set(Some(products))).build()
}

/// Whether the processor has `vdpbf16ps`.
fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether AMD, or its licensee Hygon, made the processor.
fn is_amd() -> bool {
    static AMD: OnceLock<bool> = OnceLock::new();
    *AMD.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: every x86-64 processor has CPUID.
            #[allow(unused_unsafe)] // it was unsafe in earlier versions of Rust
            let id = unsafe { std::arch::x86_64::__cpuid(0) };
            let name = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
            [b"AuthenticAMD", b"HygonGenuine"].iter().any(|maker| name == maker[..])
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_computes_as_it_was_told_and_other_threads_in_f32() {
        assert_eq!(products(), simd().into());
        for of_pool in Precision::ALL.into_iter().flat_map(Products::available) {
            let pool = threads(2, of_pool).unwrap();
            assert_eq!(pool.broadcast(|_| products()), [of_pool; 2]);
            assert_eq!(products(), simd().into());
        }
    }

    #[test]
    fn what_this_machine_lacks_is_refused_with_advice() {
        for bad in ["AMX", "bf16", "vnni"] {
            let error = Products::choose(Precision::Bf16, Some(bad)).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("fma"), "{error}");
        }
        let of = |precision, name| Products::choose(precision, Some(name)).unwrap();
        assert_eq!(of(Precision::Bf16, "fma").unit, Unit::Fma);
        // One variable serves all precisions: what cannot multiply in one leaves it to the vector level.
        assert_eq!(of(Precision::F32, "amx-model"), simd().into());
        assert_eq!(of(Precision::Tf32, "amx-model").unit, Unit::AmxModel);
        assert_eq!(of(Precision::Bf16, ""), Products::choose(Precision::Bf16, None).unwrap());
    }

    #[test]
    fn the_preferred_precision_is_bf16_where_an_instruction_multiplies_it() {
        let best = Products::available(Precision::Bf16).pop().unwrap();
        let expected = if best.unit == Unit::Fma { Precision::F32 } else { Precision::Bf16 };
        // A variable may have asked for another unit.
        if std::env::var_os("GRAD_PRODUCTS").is_none() {
            assert_eq!(Products::preferred().unwrap(), expected);
        }
    }

    #[test]
    fn no_way_is_coarser_than_its_precision() {
        for way in Products::all() {
            assert!(way.coarseness() <= way.precision().coarseness(), "{way:?}");
            let (v, step) = (1.0 + f32::EPSILON, f64::from(f32::EPSILON) / 2.0 * way.coarseness());
            assert!((f64::from(way.factor(v)) - f64::from(v)).abs() <= step, "{way:?}");
        }
    }
}
