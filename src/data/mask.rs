//! How a mask is brought to the size of a map. Rules differ between publications, and with them every pixel figure.
//!
//! A mask's value is first made 0 or 255, 255 where it is anything but 0; resizing is Pillow's, on bytes.

use super::decode::Mask;
use super::resize::{Bilinear, nearest};
use serde::{Deserialize, Serialize};

/// Which pixels of a resized mask are positive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskRule {
    /// Nearest pixel, positive where > 0.
    #[default]
    Nearest,
    /// Bilinear to this side, from there the nearest pixel as PyTorch's `interpolate` finds it (its index rounded down),
    /// positive where > 0: regions grow.
    BilinearThenNearest(usize),
    /// Bilinear, positive where above one half.
    BilinearHalf,
}

impl MaskRule {
    /// Whether its size can be used.
    pub fn check(self) -> bool {
        !matches!(self, MaskRule::BilinearThenNearest(0 | 16385..))
    }

    /// The rule in words.
    pub fn describe(self) -> String {
        match self {
            MaskRule::Nearest => "a pixel is positive where mask > 0".into(),
            MaskRule::BilinearThenNearest(via) => {
                format!("a pixel is positive where the mask, bilinear to {via}x{via} and then nearest, is > 0")
            }
            MaskRule::BilinearHalf => {
                "a pixel is positive where the mask, resized bilinearly, is above one half".into()
            }
        }
    }

    /// The mask at `[size, size]`: 1 where positive, else 0.
    pub fn apply(self, mask: &Mask, size: usize) -> Vec<u8> {
        let from = (mask.width, mask.height);
        let bilinear = |size: usize| {
            let bytes: Vec<u8> = mask.grey.iter().map(|&v| if v > 0 { 255 } else { 0 }).collect();
            Bilinear::new(from, (size, size)).apply(&bytes, 1)
        };
        match self {
            MaskRule::Nearest => nearest(&mask.grey, from, (size, size)).into_iter().map(|v| u8::from(v > 0)).collect(),
            MaskRule::BilinearThenNearest(via) => {
                let between = bilinear(via);
                let at = |i: usize| i * via / size;
                let pixels = (0..size).flat_map(|y| (0..size).map(move |x| (y, x)));
                pixels.map(|(y, x)| u8::from(between[at(y) * via + at(x)] > 0)).collect()
            }
            MaskRule::BilinearHalf => bilinear(size).into_iter().map(|v| u8::from(v > 127)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn agrees_with_pillow_and_pytorch() {
        let file = SafeTensors::deserialize(include_bytes!("../../fixtures/metrics.safetensors")).unwrap();
        let stored = file.tensor("mask.grey").unwrap();
        let (height, width) = (stored.shape()[0], stored.shape()[1]);
        let mask = Mask { width, height, grey: stored.data().to_vec() };
        for (name, rule) in [
            ("official", MaskRule::Nearest),
            ("dinomaly", MaskRule::BilinearThenNearest(448)),
            ("ader", MaskRule::BilinearHalf),
        ] {
            let ours = rule.apply(&mask, 256);
            let truth = file.tensor(&format!("mask.{name}")).unwrap();
            assert_eq!(ours.iter().copied().step_by(29).collect::<Vec<_>>(), truth.data(), "{name}");
            assert!(rule.check());
        }
        assert!(!MaskRule::BilinearThenNearest(0).check());
    }
}
