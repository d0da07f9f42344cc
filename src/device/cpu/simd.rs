//! Which vector instructions this machine has, and `simd_fn!`: one loop, compiled for each of them.
//!
//! The level is found once. `GRAD_SIMD=avx512|avx2|portable` forces a lower one, so that all can be tested anywhere.

use crate::{Error, Result};
use std::sync::OnceLock;

/// A set of vector instructions that *this* machine has: a value cannot be made for one that it lacks, so holding one
/// is the proof that the code behind it may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Simd(Level);

/// The levels that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compiler makes of plain loops: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// AVX2 and FMA, 8 floats.
    Avx2,
    /// AVX-512 F, VL, DQ, BW, 16 floats.
    Avx512,
}

impl Simd {
    /// Every level this machine can run, lowest first.
    pub fn available() -> Vec<Simd> {
        let mut levels = vec![Simd(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Simd(Level::Avx2));
                let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
                if wide && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512bw") {
                    levels.push(Simd(Level::Avx512));
                }
            }
        }
        levels
    }

    /// The level asked for by `GRAD_SIMD`, or else the highest one of this machine.
    ///
    /// # Errors
    /// [`Error::Config`] when the variable names no level, or one that this machine lacks.
    pub fn requested() -> Result<Simd> {
        Self::choose(std::env::var("GRAD_SIMD").ok().as_deref())
    }

    fn choose(name: Option<&str>) -> Result<Simd> {
        let levels = Self::available();
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(Self::best());
        };
        let names = levels.iter().map(|l| l.name()).collect::<Vec<_>>().join("|");
        levels.into_iter().find(|l| l.name() == name).ok_or_else(|| {
            Error::config(
                format!("GRAD_SIMD={name} is not a vector level of this machine"),
                format!("use GRAD_SIMD={names}, or leave the variable out"),
            )
        })
    }

    fn best() -> Simd {
        Self::available().pop().unwrap_or(Simd(Level::Portable))
    }

    /// Which level it is.
    pub fn level(self) -> Level {
        self.0
    }

    /// The name that `GRAD_SIMD` knows it by.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

/// The level that kernels use in this process. A `GRAD_SIMD` that cannot be honoured counts as absent here;
/// [`Simd::requested`] tells the user about it.
pub fn simd() -> Simd {
    static LEVEL: OnceLock<Simd> = OnceLock::new();
    *LEVEL.get_or_init(|| Simd::requested().unwrap_or_else(|_| Simd::best()))
}

/// `a * b + c`: with one rounding where `FMA` says that the instruction exists, with two where it would be a slow
/// library call.
#[inline(always)]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Whether code compiled without further target features may use fused multiply-add.
pub const PORTABLE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Compiles one function for every SIMD level and picks at run time.
///
/// ```ignore
/// simd_fn! {
///     /// `y += alpha * x`.
///     pub fn axpy<FMA>(y: &mut [f32], alpha: f32, x: &[f32]) {
///         for (y, &x) in y.iter_mut().zip(x) {
///             *y = mul_add::<FMA>(alpha, x, *y);
///         }
///     }
/// }
/// axpy(simd(), &mut y, 0.5, &x);
/// ```
///
/// The function made takes a [`Simd`] before the written arguments, which lets a test run each level. The body is
/// inlined into one wrapper per level, where the compiler vectorises it with that level's registers; what the body
/// calls must be `#[inline(always)]` to come along. `FMA` names a constant that is true where [`mul_add`] is one
/// instruction. One more constant may follow it, `<FMA, const KIND: u8>`, given by the caller: a choice made outside the
/// loop. Call it on whole rows or chunks: the choice costs a jump, and the call cannot be inlined.
macro_rules! simd_fn {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident<$fma:ident $(, const $g:ident: $gt:ty)?>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)+) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name$(<const $g: $gt>)?(level: $crate::device::cpu::simd::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::too_many_arguments)]
            #[inline(always)]
            fn body<const $fma: bool $(, const $g: $gt)?>($($arg: $ty),*) $(-> $ret)? $body

            #[allow(clippy::too_many_arguments)]
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            fn avx512$(<const $g: $gt>)?($($arg: $ty),*) $(-> $ret)? { body::<true $(, $g)?>($($arg),*) }

            #[allow(clippy::too_many_arguments)]
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2$(<const $g: $gt>)?($($arg: $ty),*) $(-> $ret)? { body::<true $(, $g)?>($($arg),*) }

            match level.level() {
                // SAFETY: a `Simd` of this level exists only where these features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::device::cpu::simd::Level::Avx512 => unsafe { avx512$(::<$g>)?($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::cpu::simd::Level::Avx2 => unsafe { avx2$(::<$g>)?($($arg),*) },
                _ => body::<{ $crate::device::cpu::simd::PORTABLE_FMA } $(, $g)?>($($arg),*),
            }
        }
    )+};
}
pub(crate) use simd_fn;

#[cfg(test)]
mod tests {
    use super::*;

    simd_fn! {
        /// `y += alpha * x`.
        fn axpy<FMA>(y: &mut [f32], alpha: f32, x: &[f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = mul_add::<FMA>(alpha, x, *y);
            }
        }
        fn largest<FMA>(x: &[f32]) -> f32 {
            x.iter().fold(f32::MIN, |m, &v| if v > m { v } else { m })
        }
    }

    #[test]
    fn every_level_computes_the_same_function() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin()).collect();
        for level in Simd::available() {
            let mut y: Vec<f32> = x.iter().map(|v| 1.0 - v).collect();
            axpy(level, &mut y, 0.25, &x);
            for (y, &x) in y.iter().zip(&x) {
                assert!((f64::from(*y) - (1.0 - 0.75 * f64::from(x))).abs() <= 2e-7, "{level:?}");
            }
            assert_eq!(largest(level, &x), x.iter().copied().fold(f32::MIN, f32::max));
        }
    }

    #[test]
    fn a_level_that_is_not_there_is_refused_with_advice() {
        for bad in ["avx1024", "AVX2", "auto"] {
            let error = Simd::choose(Some(bad)).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("portable"), "{error}");
        }
        assert_eq!(Simd::choose(Some("portable")).unwrap().level(), Level::Portable);
        assert_eq!(Simd::choose(Some("")).unwrap(), Simd::choose(None).unwrap());
    }
}
