//! Colours of the anomaly scale: dark violet -> red -> orange -> yellow, brighter means more anomalous.
//!
//! A straight path in OKLCh (B. Ottosson, "A perceptual color space for image processing", 2020): lightness and hue
//! rise linearly, chroma stays, so equal steps of score look like equal steps of colour, also in grey or to
//! colour-blind eyes. The chroma is the largest, to two digits, for which the whole path is inside sRGB.

use std::sync::LazyLock;

const LIGHTNESS: [f64; 2] = [0.35, 0.92];
const HUE_DEGREES: [f64; 2] = [300.0, 465.0];
const CHROMA: f64 = 0.16;

/// sRGB colour at `t` in [0, 1]; values outside are clamped.
pub fn colour(t: f32) -> [u8; 3] {
    static COLOURS: LazyLock<[[u8; 3]; 256]> = LazyLock::new(|| {
        std::array::from_fn(|i| at(i as f64 / 255.0).map(|linear| (encode(linear) * 255.0).round() as u8))
    });
    COLOURS[(t.clamp(0.0, 1.0) * 255.0).round() as usize]
}

/// Linear sRGB at `t`.
fn at(t: f64) -> [f64; 3] {
    let along = |[from, to]: [f64; 2]| from + t * (to - from);
    oklch_to_linear(along(LIGHTNESS), CHROMA, along(HUE_DEGREES))
}

/// sRGB of an OKLCh colour, its hue in degrees; what sRGB cannot show is clamped.
pub(crate) fn oklch(lightness: f64, chroma: f64, hue: f64) -> [u8; 3] {
    oklch_to_linear(lightness, chroma, hue).map(|linear| (encode(linear.clamp(0.0, 1.0)) * 255.0).round() as u8)
}

fn oklch_to_linear(lightness: f64, chroma: f64, hue: f64) -> [f64; 3] {
    let (sin, cos) = hue.to_radians().sin_cos();
    oklab_to_linear(lightness, chroma * cos, chroma * sin)
}

/// The two matrices of the OKLab definition.
fn oklab_to_linear(lightness: f64, a: f64, b: f64) -> [f64; 3] {
    let l = (lightness + 0.3963377774 * a + 0.2158037573 * b).powi(3);
    let m = (lightness - 0.1055613458 * a - 0.0638541728 * b).powi(3);
    let s = (lightness - 0.0894841775 * a - 1.2914855480 * b).powi(3);
    [
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    ]
}

/// The sRGB transfer function (IEC 61966-2-1).
fn encode(linear: f64) -> f64 {
    if linear <= 0.0031308 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_path_is_inside_srgb() {
        for i in 0..=1000 {
            let linear = at(f64::from(i) / 1000.0);
            assert!(linear.iter().all(|x| (0.0..=1.0).contains(x)), "{i}: {linear:?}");
        }
    }

    #[test]
    fn no_stronger_chroma_would_do() {
        let stronger = |i: i32| {
            let t = f64::from(i) / 1000.0;
            let (sin, cos) = (HUE_DEGREES[0] + t * (HUE_DEGREES[1] - HUE_DEGREES[0])).to_radians().sin_cos();
            let chroma = CHROMA + 0.01;
            oklab_to_linear(LIGHTNESS[0] + t * (LIGHTNESS[1] - LIGHTNESS[0]), chroma * cos, chroma * sin)
        };
        assert!((0..=1000).any(|i| stronger(i).iter().any(|x| !(0.0..=1.0).contains(x))));
    }

    #[test]
    fn more_anomalous_is_brighter() {
        let decode = |x: u8| {
            let x = f64::from(x) / 255.0;
            if x <= 0.04045 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = |t: f32| {
            let [r, g, b] = colour(t).map(decode);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        for i in 0..64_u8 {
            let (low, high) = (luminance(f32::from(i) / 64.0), luminance(f32::from(i + 1) / 64.0));
            assert!(low < high, "{i}: {low} {high}");
        }
    }

    #[test]
    fn ends_are_reached_and_kept() {
        assert_eq!(colour(-3.0), colour(0.0));
        assert_eq!(colour(1.5), colour(1.0));
        // White stays white: the matrices are typed correctly.
        assert!(oklab_to_linear(1.0, 0.0, 0.0).iter().all(|x| (x - 1.0).abs() <= 1e-6));
    }
}
