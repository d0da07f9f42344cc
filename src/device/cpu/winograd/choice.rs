//! Which convolutions are computed by Winograd's algorithm.
//!
//! `GRAD_CONV=direct|winograd` forces one way, so that both can be tested anywhere and compared: `winograd` wherever the
//! algorithm can compute a convolution at all, however small. Without it shapes decide by [`faster`], never the number of
//! images, so that what comes out for a picture does not depend on the batch it is in. Where AMX multiplies it is never
//! taken.

use std::sync::OnceLock;

use super::{fits, growth};
use crate::device::cpu::ConvGeometry;
use crate::{Error, Result};

/// How dense convolutions are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvChoice {
    /// The way that is faster for a shape.
    Fastest,
    /// As matrix products over patches.
    Direct,
    /// By Winograd's algorithm wherever it fits.
    Winograd,
}

impl ConvChoice {
    /// The choice that `GRAD_CONV` asks for; [`Self::Fastest`] without it.
    ///
    /// # Errors
    /// [`Error::Config`] when the variable names no way.
    pub fn requested() -> Result<Self> {
        Self::named(std::env::var("GRAD_CONV").ok().as_deref())
    }

    fn named(name: Option<&str>) -> Result<Self> {
        match name.unwrap_or_default() {
            "" => Ok(Self::Fastest),
            "direct" => Ok(Self::Direct),
            "winograd" => Ok(Self::Winograd),
            other => Err(Error::config(
                format!("GRAD_CONV={other} is no way to compute a convolution"),
                "use GRAD_CONV=direct or winograd, or leave the variable out",
            )),
        }
    }

    /// The choice of this process. A `GRAD_CONV` that cannot be honoured counts as absent here; [`Self::requested`] tells
    /// the user about it.
    pub fn of_process() -> Self {
        static CHOICE: OnceLock<ConvChoice> = OnceLock::new();
        *CHOICE.get_or_init(|| Self::requested().unwrap_or(Self::Fastest))
    }

    /// Whether a convolution is computed by Winograd's algorithm.
    pub(crate) fn takes_winograd(self, g: &ConvGeometry) -> bool {
        match self {
            Self::Fastest => fits(g) && faster(g),
            Self::Direct => false,
            Self::Winograd => fits(g),
        }
    }

    /// How many times coarser than in a direct sum the roundings of small convolutions may be, for judges: [`growth`] where
    /// Winograd's algorithm is forced on them.
    pub fn coarseness(self) -> f64 {
        if self == Self::Winograd { growth() } else { 1.0 }
    }
}

/// Whether the products saved are worth the transforms.
fn faster(g: &ConvGeometry) -> bool {
    g.ci.min(g.co) >= 32 && g.out_h().min(g.out_w()) >= 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_not_there_is_refused_with_advice() {
        for bad in ["fft", "Direct", "auto"] {
            let error = ConvChoice::named(Some(bad)).unwrap_err().to_string();
            assert!(error.contains(&format!("GRAD_CONV={bad}")) && error.contains("direct or winograd"), "{error}");
        }
        assert_eq!(ConvChoice::named(Some("winograd")).unwrap(), ConvChoice::Winograd);
        assert_eq!(ConvChoice::named(Some("")).unwrap(), ConvChoice::named(None).unwrap());
    }
}
